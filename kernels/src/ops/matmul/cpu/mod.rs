//! CPU kernels.

mod args;
mod gemm;

use super::Matmul;
use crate::op::{CpuLaunch, CpuOp, Op};
use crate::select::Variant;

impl CpuOp for Matmul {
    fn cpu_variants() -> &'static [Variant<<Self as Op>::Spec, CpuLaunch<Self>>] {
        &[Variant { name: "gemm-f32", reject: gemm::reject_f32, est_us: gemm::est_f32, launch: gemm::f32 }]
    }
}
