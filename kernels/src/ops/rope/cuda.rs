//! CUDA kernels.

use super::{Rope, RopeSpec};
use crate::op::{CudaLaunch, CudaOp};
use crate::select::Variant;

impl CudaOp for Rope {
    fn cuda_variants() -> &'static [Variant<RopeSpec, CudaLaunch<Self>>] {
        &[]
    }
}
