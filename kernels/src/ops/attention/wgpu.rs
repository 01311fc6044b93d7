//! WGSL kernels.

use super::{Attention, AttentionSpec};
use crate::op::{WgpuLaunch, WgpuOp};
use crate::select::Variant;

impl WgpuOp for Attention {
    fn wgpu_variants() -> &'static [Variant<AttentionSpec, WgpuLaunch<Self>>] {
        &[]
    }
}
