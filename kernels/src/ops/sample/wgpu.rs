//! WGSL kernels.

use super::{Sample, SampleSpec};
use crate::op::{WgpuLaunch, WgpuOp};
use crate::select::Variant;

impl WgpuOp for Sample {
    fn wgpu_variants() -> &'static [Variant<SampleSpec, WgpuLaunch<Self>>] {
        &[]
    }
}
