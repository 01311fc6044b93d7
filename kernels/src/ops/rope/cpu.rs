//! CPU kernels.

use super::Rope;
use crate::op::{CpuLaunch, CpuOp, Op};
use crate::select::Variant;

impl CpuOp for Rope {
    fn cpu_variants() -> &'static [Variant<<Self as Op>::Spec, CpuLaunch<Self>>] {
        &[]
    }
}
