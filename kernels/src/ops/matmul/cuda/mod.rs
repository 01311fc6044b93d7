//! CUDA kernels.
//!
//! | row | source | for |
//! | --- | --- | --- |
//! | `gemv` | `gemv.cu` | up to 8 rows, floats and codes in groups, in exact f32; with what is done to rows of x first and to heads after |
//! | `gemm-f32` | `gemm_f32.cu` | everything, in exact f32 |
//! | `quant-mma` | `quant_x.cu`, `quant_mma.cu` | codes in groups, decoded in registers, on tensor cores |
//! | `quant-wgmma` | `quant_wgmma_x.cu`, `quant_wgmma.cu` | the same on Hopper: many rows of x |
//! | `gemm-mma` | `gemm_mma.cu` | dense weights of 16 bits, on tensor cores |
//! | `gemm-fp8-mma` | `fp8_x.cu`, `gemm_mma.cu` | 8-bit floats times x rounded to them; from sm_89 on |
//! | `gemm-wgmma-128x256` | `gemm_wgmma.cu` | the same on Hopper; least traffic: large products |
//! | `gemm-wgmma-256x128` | `gemm_wgmma.cu` | as much, where the result is narrow |
//! | `gemm-wgmma-128x128` | `gemm_wgmma.cu` | ends of tiles beside products: short rows, fewer tiles |
//! | `gemm-wgmma-64x128` | `gemm_wgmma.cu` | still fewer tiles |
//! | `gemm-fp8-wgmma` | `fp8_x.cu`, `gemm_wgmma.cu` | 8-bit floats times x rounded to them, on Hopper |
//!
//! A launch gives neighbouring columns of the result whose weights lie in one stored tensor (`params::segments`) and ends
//! them (`epilogue.cuh`). Kernels of tensor cores take x in the type of the weights; where the op allows it, x is rounded first
//! (`halves`).

mod fp8;
mod gemm;
mod gemv;
mod halves;
mod heads;
mod mma;
mod params;
mod quant;
mod quant_wgmma;
mod wgmma;

use super::Matmul;
use crate::cuda::{CudaOp, CudaRows};

impl CudaOp for Matmul {
    fn cuda_variants() -> CudaRows<Self> {
        const ROWS: &[params::Row] = &[
            gemv::GEMV,
            gemm::F32,
            quant::MMA,
            quant_wgmma::ROW,
            mma::MMA,
            mma::FP8,
            wgmma::LARGE,
            wgmma::TALL,
            wgmma::MIDDLE,
            wgmma::SMALL,
            wgmma::FP8,
        ];
        Ok(ROWS)
    }
}
