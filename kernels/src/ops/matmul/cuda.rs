//! CUDA kernels.

use super::{Matmul, MatmulSpec};
use crate::op::{CudaLaunch, CudaOp};
use crate::select::Variant;

impl CudaOp for Matmul {
    fn cuda_variants() -> &'static [Variant<MatmulSpec, CudaLaunch<Self>>] {
        &[]
    }
}
