//! CUDA kernels.
//!
//! | row | source | for |
//! | --- | --- | --- |
//! | `gemm-f32` | `gemm_f32.cu` | everything, in exact f32 |
//!
//! A launch gives neighbouring columns of the result whose weights lie in one stored tensor (`params::segments`) and ends
//! them (`epilogue.cuh`).

mod gemm;
mod params;

use super::{Matmul, MatmulSpec};
use crate::op::{CudaLaunch, CudaOp};
use crate::select::Variant;

impl CudaOp for Matmul {
    fn cuda_variants() -> &'static [Variant<MatmulSpec, CudaLaunch<Self>>] {
        const ROWS: &[Variant<MatmulSpec, CudaLaunch<Matmul>>] = &[gemm::F32];
        ROWS
    }
}
