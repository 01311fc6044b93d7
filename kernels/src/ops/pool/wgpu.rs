//! WGSL kernels.

use super::{Pool, PoolSpec};
use crate::op::{WgpuLaunch, WgpuOp};
use crate::select::Variant;

impl WgpuOp for Pool {
    fn wgpu_variants() -> &'static [Variant<PoolSpec, WgpuLaunch<Self>>] {
        &[]
    }
}
