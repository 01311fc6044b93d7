//! CUDA kernels.

use super::{MergePatches, MergePatchesSpec};
use crate::op::{CudaLaunch, CudaOp};
use crate::select::Variant;

impl CudaOp for MergePatches {
    fn cuda_variants() -> &'static [Variant<MergePatchesSpec, CudaLaunch<Self>>] {
        &[]
    }
}
