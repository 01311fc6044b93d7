//! WGSL kernels.
//!
//! | row | source | for |
//! | --- | --- | --- |
//! | `gemm-tile` | `gemm.wgsl` | everything, at plain WebGPU limits |
//! | `split-k` | `gemm.wgsl`, `finish.wgsl` | few tiles and long k |
//! | `gemv`, `gemv-subgroup` | `gemv.wgsl` | at most eight rows of x |
//!
//! A launch multiplies the rows of one part of the weights and ends its columns (`epilogue.wgsl`), or leaves f32 sums in
//! working memory where slices of k, or gate and up from different parts, have to come together (`finish.wgsl`).

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
                name: "gemv-subgroup",
                reject: gemv::reject_subgroup,
                est_us: gemv::est_subgroup,
                launch: gemv::subgroup,
            },
            Variant { name: "gemv", reject: gemv::reject, est_us: gemv::est, launch: gemv::plain },
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
