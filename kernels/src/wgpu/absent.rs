//! What stands for wgpu where it is not part of the build: no op has kernels for it.

use std::convert::Infallible;

use crate::op::Op;
use crate::select::Rows;

/// WGSL kernels of op `O`: none.
pub type WgpuRows<O> = Rows<<O as Op>::Spec, Infallible>;

/// An op without kernels for wgpu.
pub trait WgpuOp: Op {
    /// Why there are none.
    fn wgpu_variants() -> WgpuRows<Self> {
        Err(WHY)
    }
}

impl<O: Op> WgpuOp for O {}

const WHY: &str = "this binary was built without the `wgpu` feature";

/// Why there are no kernels and no devices.
pub const ABSENT: Option<&str> = Some(WHY);
