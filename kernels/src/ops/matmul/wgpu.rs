//! WGSL kernels.

use super::{Matmul, MatmulSpec};
use crate::op::{WgpuLaunch, WgpuOp};
use crate::select::Variant;

impl WgpuOp for Matmul {
    fn wgpu_variants() -> &'static [Variant<MatmulSpec, WgpuLaunch<Self>>] {
        &[]
    }
}
