//! CPU kernels.

pub(in crate::ops) mod args;
mod gemm;
mod gemv;

pub(in crate::ops) use self::gemm::reject_tiles;
use super::Matmul;
use crate::cpu::{CpuOp, CpuRows};
use crate::select::Variant;

impl CpuOp for Matmul {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[
            Variant {
                name: "gemv-f32",
                reject: gemv::reject_dense,
                est_us: gemv::est_f32,
                launch: gemv::dense,
            },
            Variant {
                name: "gemv-codes-f32",
                reject: gemv::reject_codes,
                est_us: gemv::est_f32,
                launch: gemv::codes,
            },
            Variant {
                name: "gemv-codes-int8",
                reject: gemv::reject_bytes,
                est_us: gemv::est_bytes,
                launch: gemv::bytes,
            },
            Variant {
                name: "gemv-k-major-f32",
                reject: gemv::reject_k_major,
                est_us: gemv::est_f32,
                launch: gemv::k_major,
            },
            Variant {
                name: "gemm-bf16",
                reject: gemm::reject_bf16,
                est_us: gemm::est_bf16,
                launch: gemm::bf16,
            },
            Variant {
                name: "gemm-int8",
                reject: gemm::reject_int8,
                est_us: gemm::est_int8,
                launch: gemm::int8,
            },
            Variant { name: "gemm-amx", reject: gemm::reject_amx, est_us: gemm::est_amx, launch: gemm::amx },
            Variant {
                name: "gemm-amx-f32",
                reject: gemm::reject_amx_f32,
                est_us: gemm::est_amx_f32,
                launch: gemm::amx_f32,
            },
            Variant { name: "gemm-f32", reject: gemm::reject_f32, est_us: gemm::est_f32, launch: gemm::f32 },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{caps, isa::Isa};
    use crate::ops::matmul::{Math, MatmulSpec};
    use crate::select::select;
    use crate::spec::Caps;

    #[test]
    fn tiles_are_for_more_rows_than_are_streamed() {
        let caps = Caps { amx: true, int8_dot: true, ..caps(Isa::SCALAR, 2) };
        let pick = |w: &str, m, math| {
            let w = w.parse().expect("a format");
            let spec = MatmulSpec { m, n: 3072, k: 576, w, math, ..MatmulSpec::default() };
            select(Matmul::cpu_variants(), &spec, &caps).map(|row| row.name)
        };
        for (math, many) in [(Math::Exact, "gemm-amx-f32"), (Math::Bf16, "gemm-amx")] {
            assert_eq!(
                [1, 8, 16, 64, 1024].map(|m| pick("bf16", m, math)),
                [Some("gemv-f32"), Some("gemv-f32"), Some(many), Some(many), Some(many)]
            );
        }
        for (math, names) in [
            (Math::Exact, ["gemv-codes-f32", "gemm-f32", "gemm-amx-f32", "gemm-amx-f32"]),
            (Math::Bf16, ["gemv-codes-f32", "gemm-amx", "gemm-amx", "gemm-amx"]),
            (Math::Int8, ["gemv-codes-int8", "gemm-int8", "gemm-int8", "gemm-amx"]),
        ] {
            assert_eq!([1, 32, 128, 1024].map(|m| pick("int4g32", m, math)), names.map(Some), "{math:?}");
        }
    }

    #[test]
    fn few_rows_stream_and_many_rows_pack() {
        let caps = caps(Isa::SCALAR, 2);
        for (w, few, bytes) in [
            ("bf16", "gemv-f32", "gemv-f32"),
            ("int8g128", "gemv-codes-f32", "gemv-codes-int8"),
            ("int4g32", "gemv-codes-f32", "gemv-codes-int8"),
            ("fp8g128", "gemv-codes-f32", "gemv-codes-f32"),
            ("nf4g64.f32", "gemv-codes-f32", "gemv-codes-f32"),
            ("int4g64z.f16@awq", "gemv-k-major-f32", "gemv-k-major-f32"),
            ("int8g32.f16@act-order", "gemv-k-major-f32", "gemv-k-major-f32"),
        ] {
            let w = w.parse().expect("a format");
            let spec = |m, math| MatmulSpec { m, n: 960, k: 576, w, math, ..MatmulSpec::default() };
            let pick = |m, math| select(Matmul::cpu_variants(), &spec(m, math), &caps).map(|row| row.name);
            for m in [1, 4, 8] {
                assert_eq!(pick(m, Math::Exact), Some(few));
            }
            assert_eq!(pick(1, Math::Int8), Some(bytes));
            for m in [32, 1024] {
                assert_eq!(pick(m, Math::Exact), Some("gemm-f32"));
            }
        }
    }
}
