//! What an op has for the CPU.

use super::CpuCx;
use crate::op::Op;
use crate::select::Variant;
use crate::spec::KernelError;

/// A CPU kernel of op `O`. The op's `spec()` has passed.
pub type CpuLaunch<O> = fn(&O, &CpuCx) -> Result<(), KernelError>;

/// CPU kernels of op `O`.
pub type CpuRows<O> = &'static [Variant<<O as Op>::Spec, CpuLaunch<O>>];

/// An op's kernels for the CPU, which every op has.
pub trait CpuOp: Op {
    /// The rows, in table order.
    fn cpu_variants() -> CpuRows<Self>;
}
