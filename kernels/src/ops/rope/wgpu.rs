//! WGSL kernels.

use super::{Rope, RopeSpec};
use crate::op::{WgpuLaunch, WgpuOp};
use crate::select::Variant;

impl WgpuOp for Rope {
    fn wgpu_variants() -> &'static [Variant<RopeSpec, WgpuLaunch<Self>>] {
        &[]
    }
}
