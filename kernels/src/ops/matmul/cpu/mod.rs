//! CPU kernels.

mod args;
mod gemm;
mod gemv;

use super::Matmul;
use crate::op::{CpuLaunch, CpuOp, Op};
use crate::select::Variant;

impl CpuOp for Matmul {
    fn cpu_variants() -> &'static [Variant<<Self as Op>::Spec, CpuLaunch<Self>>] {
        &[
            Variant {
                name: "gemv-dense",
                reject: gemv::reject_dense,
                est_us: gemv::est,
                launch: gemv::dense,
            },
            Variant {
                name: "gemv-int8",
                reject: gemv::reject_int::<8>,
                est_us: gemv::est,
                launch: gemv::int::<8>,
            },
            Variant {
                name: "gemv-int4",
                reject: gemv::reject_int::<4>,
                est_us: gemv::est,
                launch: gemv::int::<4>,
            },
            Variant { name: "gemm-f32", reject: gemm::reject_f32, est_us: gemm::est_f32, launch: gemm::f32 },
        ]
    }
}
