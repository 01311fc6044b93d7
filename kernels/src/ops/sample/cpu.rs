//! CPU kernels.

use super::Sample;
use crate::op::{CpuLaunch, CpuOp, Op};
use crate::select::Variant;

impl CpuOp for Sample {
    fn cpu_variants() -> &'static [Variant<<Self as Op>::Spec, CpuLaunch<Self>>] {
        &[]
    }
}
