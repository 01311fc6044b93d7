//! CPU kernels.

pub(in crate::ops) mod args;
mod gemm;
mod gemv;

use super::Matmul;
use crate::op::{CpuLaunch, CpuOp, Op};
use crate::select::Variant;

impl CpuOp for Matmul {
    fn cpu_variants() -> &'static [Variant<<Self as Op>::Spec, CpuLaunch<Self>>] {
        &[
            Variant { name: "gemv-f32", reject: gemv::reject_dense, est_us: gemv::est, launch: gemv::dense },
            Variant {
                name: "gemv-w8-f32",
                reject: gemv::reject_int::<8>,
                est_us: gemv::est,
                launch: gemv::int::<8>,
            },
            Variant {
                name: "gemv-w4-f32",
                reject: gemv::reject_int::<4>,
                est_us: gemv::est,
                launch: gemv::int::<4>,
            },
            Variant {
                name: "gemv-w8-int8",
                reject: gemv::reject_bytes::<8>,
                est_us: gemv::est_bytes,
                launch: gemv::bytes::<8>,
            },
            Variant {
                name: "gemv-w4-int8",
                reject: gemv::reject_bytes::<4>,
                est_us: gemv::est_bytes,
                launch: gemv::bytes::<4>,
            },
            Variant { name: "gemm-f32", reject: gemm::reject_f32, est_us: gemm::est_f32, launch: gemm::f32 },
        ]
    }
}
