//! CUDA kernels.

use super::{Norm, NormSpec};
use crate::op::{CudaLaunch, CudaOp};
use crate::select::Variant;

impl CudaOp for Norm {
    fn cuda_variants() -> &'static [Variant<NormSpec, CudaLaunch<Self>>] {
        &[]
    }
}
