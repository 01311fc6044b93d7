//! WGSL kernels.

use super::{GatherRows, GatherRowsSpec};
use crate::op::{WgpuLaunch, WgpuOp};
use crate::select::Variant;

impl WgpuOp for GatherRows {
    fn wgpu_variants() -> &'static [Variant<GatherRowsSpec, WgpuLaunch<Self>>] {
        &[]
    }
}
