//! CUDA kernels.

use super::{GatherRows, GatherRowsSpec};
use crate::op::{CudaLaunch, CudaOp};
use crate::select::Variant;

impl CudaOp for GatherRows {
    fn cuda_variants() -> &'static [Variant<GatherRowsSpec, CudaLaunch<Self>>] {
        &[]
    }
}
