//! WGSL kernels.
//!
//! | row | source | for |
//! | --- | --- | --- |
//! | `gemm-tile` | `gemm.wgsl` | everything, at plain WebGPU limits |
//! | `split-k` | `gemm.wgsl`, `finish.wgsl` | few tiles and long k |
//! | `gemv`, `gemv-subgroup` | `gemv.wgsl` | at most eight rows of x |
//! | `gemv-dot4`, `gemm-dot4` | `round.wgsl`, then `gemv_dot4.wgsl` or `gemm_dot4.wgsl` | integer weights, math=int8 |
//! | `gemm-f16` | `gemm.wgsl` | x of f16, devices with f16 |
//! | `gemm-coop` | `gemm_coop.wgsl` | x of f16, devices with cooperative matrices; compiled in tests only |
//!
//! A launch multiplies the rows of one part of the weights and ends its columns (`epilogue.wgsl`), or leaves f32 sums in
//! working memory where slices of k, or gate and up from different parts, have to come together (`finish.wgsl`).

mod bytes;
mod gemm;
mod gemv;
mod product;

use super::{Matmul, MatmulSpec};
use crate::op::{WgpuLaunch, WgpuOp};
use crate::select::Variant;

impl WgpuOp for Matmul {
    fn wgpu_variants() -> &'static [Variant<MatmulSpec, WgpuLaunch<Self>>] {
        &[
            Variant {
                name: "gemv-dot4",
                reject: bytes::reject_gemv,
                est_us: bytes::est_gemv,
                launch: bytes::gemv,
            },
            Variant {
                name: "gemv-subgroup",
                reject: gemv::reject_subgroup,
                est_us: gemv::est_subgroup,
                launch: gemv::subgroup,
            },
            Variant { name: "gemv", reject: gemv::reject, est_us: gemv::est, launch: gemv::plain },
            Variant {
                name: "gemm-coop",
                reject: gemm::reject_coop,
                est_us: gemm::est_coop,
                launch: gemm::coop,
            },
            Variant {
                name: "gemm-dot4",
                reject: bytes::reject_gemm,
                est_us: bytes::est_gemm,
                launch: bytes::gemm,
            },
            Variant { name: "gemm-f16", reject: gemm::reject_f16, est_us: gemm::est_f16, launch: gemm::f16 },
            Variant {
                name: "split-k",
                reject: gemm::reject_split,
                est_us: gemm::est_split,
                launch: gemm::split,
            },
            Variant { name: "gemm-tile", reject: gemm::reject, est_us: gemm::est, launch: gemm::tile },
        ]
    }
}
