//! WGSL kernels.

use super::{MergePatches, MergePatchesSpec};
use crate::op::{WgpuLaunch, WgpuOp};
use crate::select::Variant;

impl WgpuOp for MergePatches {
    fn wgpu_variants() -> &'static [Variant<MergePatchesSpec, WgpuLaunch<Self>>] {
        &[]
    }
}
