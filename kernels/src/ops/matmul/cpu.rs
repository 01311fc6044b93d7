//! CPU kernels.

use super::Matmul;
use crate::op::{CpuLaunch, CpuOp, Op};
use crate::select::Variant;

impl CpuOp for Matmul {
    fn cpu_variants() -> &'static [Variant<<Self as Op>::Spec, CpuLaunch<Self>>] {
        &[]
    }
}
