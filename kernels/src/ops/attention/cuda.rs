//! CUDA kernels.

use super::{Attention, AttentionSpec};
use crate::op::{CudaLaunch, CudaOp};
use crate::select::Variant;

impl CudaOp for Attention {
    fn cuda_variants() -> &'static [Variant<AttentionSpec, CudaLaunch<Self>>] {
        &[]
    }
}
