//! CUDA kernels.

use super::{PatchEmbed, PatchEmbedSpec};
use crate::op::{CudaLaunch, CudaOp};
use crate::select::Variant;

impl CudaOp for PatchEmbed {
    fn cuda_variants() -> &'static [Variant<PatchEmbedSpec, CudaLaunch<Self>>] {
        &[]
    }
}
