//! WGSL kernels.

use super::{PatchEmbed, PatchEmbedSpec};
use crate::op::{WgpuLaunch, WgpuOp};
use crate::select::Variant;

impl WgpuOp for PatchEmbed {
    fn wgpu_variants() -> &'static [Variant<PatchEmbedSpec, WgpuLaunch<Self>>] {
        &[]
    }
}
