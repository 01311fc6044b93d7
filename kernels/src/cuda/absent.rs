//! What stands for CUDA where it is not part of the build: no op has kernels for it.

use std::convert::Infallible;

use crate::op::Op;
use crate::select::Rows;

/// CUDA kernels of op `O`: none.
pub type CudaRows<O> = Rows<<O as Op>::Spec, Infallible>;

/// An op without kernels for CUDA.
pub trait CudaOp: Op {
    /// Why there are none.
    fn cuda_variants() -> CudaRows<Self> {
        Err(WHY)
    }
}

impl<O: Op> CudaOp for O {}

const WHY: &str = "this binary was built without the `cuda` feature";

/// Why there are no kernels and no devices.
pub const ABSENT: Option<&str> = Some(WHY);
