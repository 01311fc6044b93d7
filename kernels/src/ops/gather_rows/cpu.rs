//! CPU kernels.

use super::GatherRows;
use crate::op::{CpuLaunch, CpuOp, Op};
use crate::select::Variant;

impl CpuOp for GatherRows {
    fn cpu_variants() -> &'static [Variant<<Self as Op>::Spec, CpuLaunch<Self>>] {
        &[]
    }
}
