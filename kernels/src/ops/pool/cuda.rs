//! CUDA kernels.

use super::{Pool, PoolSpec};
use crate::op::{CudaLaunch, CudaOp};
use crate::select::Variant;

impl CudaOp for Pool {
    fn cuda_variants() -> &'static [Variant<PoolSpec, CudaLaunch<Self>>] {
        &[]
    }
}
