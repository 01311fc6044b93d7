//! CUDA kernels.

use super::{Sample, SampleSpec};
use crate::op::{CudaLaunch, CudaOp};
use crate::select::Variant;

impl CudaOp for Sample {
    fn cuda_variants() -> &'static [Variant<SampleSpec, CudaLaunch<Self>>] {
        &[]
    }
}
