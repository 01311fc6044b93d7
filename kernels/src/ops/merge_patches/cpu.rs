//! CPU kernels.

use super::MergePatches;
use crate::op::{CpuLaunch, CpuOp, Op};
use crate::select::Variant;

impl CpuOp for MergePatches {
    fn cpu_variants() -> &'static [Variant<<Self as Op>::Spec, CpuLaunch<Self>>] {
        &[]
    }
}
