//! What an op has for wgpu.

use super::WgpuCx;
use crate::op::Op;
use crate::select::Rows;
use crate::spec::KernelError;

/// A WGSL kernel of op `O`. The op's `spec()` has passed.
pub type WgpuLaunch<O> = fn(&O, &mut WgpuCx<'_>) -> Result<(), KernelError>;

/// WGSL kernels of op `O`, or why it has none.
pub type WgpuRows<O> = Rows<<O as Op>::Spec, WgpuLaunch<O>>;

/// An op's kernels for wgpu.
pub trait WgpuOp: Op {
    /// The rows, in table order; an error says why there are none.
    fn wgpu_variants() -> WgpuRows<Self>;
}
