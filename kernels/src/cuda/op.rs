//! What an op has for CUDA.

use super::CudaCx;
use crate::op::Op;
use crate::select::Rows;
use crate::spec::KernelError;

/// A CUDA kernel of op `O`. The op's `spec()` has passed.
pub type CudaLaunch<O> = fn(&O, &mut CudaCx<'_>) -> Result<(), KernelError>;

/// CUDA kernels of op `O`, or why it has none.
pub type CudaRows<O> = Rows<<O as Op>::Spec, CudaLaunch<O>>;

/// An op's kernels for CUDA.
pub trait CudaOp: Op {
    /// The rows, in table order; an error says why there are none.
    fn cuda_variants() -> CudaRows<Self>;
}
