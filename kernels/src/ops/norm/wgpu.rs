//! WGSL kernels.

use super::{Norm, NormSpec};
use crate::op::{WgpuLaunch, WgpuOp};
use crate::select::Variant;

impl WgpuOp for Norm {
    fn wgpu_variants() -> &'static [Variant<NormSpec, WgpuLaunch<Self>>] {
        &[]
    }
}
