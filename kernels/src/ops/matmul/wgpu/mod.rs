//! WGSL kernels.
//!
//! | row | source | for |
//! | --- | --- | --- |
//! | `gemm-tile` | `gemm.wgsl` | everything, at plain WebGPU limits |
//! | `split-k` | `gemm.wgsl`, `finish.wgsl` | few tiles and long k |
//! | `gemv`, `gemv-subgroup` | `gemv.wgsl` | at most eight rows of x |
//! | `gemv-dot4`, `gemm-dot4` | `round.wgsl`, then `gemv_dot4.wgsl` or `gemm_dot4.wgsl` | integer weights, math=int8 |
//! | `gemm-f16` | `gemm.wgsl` | x of f16, devices with f16 |
//! | `gemm-coop` | `gemm_coop.wgsl` | x of f16, cooperative matrices; never run on a GPU |
//!
//! A launch multiplies the rows of one part of the weights and ends its columns (`epilogue.wgsl`), or leaves f32 sums
//! in working memory where slices of k, or gate and up from different parts, have to come together (`finish.wgsl`).

mod bytes;
mod gemm;
mod gemv;
mod product;

use super::Matmul;
use crate::select::Variant;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for Matmul {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[
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
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::matmul::{Math, MatmulSpec};
    use crate::select::select;
    use crate::spec::{Backend, Caps, DType, WgpuCaps};

    fn pick(wgpu: WgpuCaps, spec: MatmulSpec) -> Option<&'static str> {
        let caps = Caps { backend: Backend::Wgpu, wgpu, ..Caps::default() };
        select(Matmul::wgpu_variants().unwrap_or_default(), &spec, &caps).map(|row| row.name)
    }

    #[test]
    fn few_rows_stream_and_many_rows_tile() {
        let plain = WgpuCaps::default();
        let subgroups = WgpuCaps { subgroup: (32, 32), ..plain };
        for w in ["bf16", "int8g128", "int4g32"] {
            let w = w.parse().expect("a format");
            let spec = |m| MatmulSpec { m, n: 4096, k: 4096, w, ..MatmulSpec::default() };
            for m in [1, 4, 8] {
                assert_eq!(pick(plain, spec(m)), Some("gemv"));
                assert_eq!(pick(subgroups, spec(m)), Some("gemv-subgroup"));
            }
            assert_eq!(pick(subgroups, spec(1024)), Some("gemm-tile"));
        }
    }

    #[test]
    fn few_tiles_of_long_rows_are_split() {
        let spec = MatmulSpec { m: 64, n: 576, k: 12288, ..MatmulSpec::default() };
        assert_eq!(pick(WgpuCaps::default(), spec), Some("split-k"));
        assert_eq!(pick(WgpuCaps::default(), MatmulSpec { k: 256, ..spec }), Some("gemm-tile"));
    }

    #[test]
    fn faster_arithmetic_is_taken_where_it_is_allowed() {
        let half = WgpuCaps { f16: true, subgroup: (32, 32), ..WgpuCaps::default() };
        let coop = WgpuCaps { matrix: 16, workgroup_memory: 48 << 10, ..half };
        let spec = MatmulSpec { m: 1024, n: 4096, k: 4096, x: DType::F16, ..MatmulSpec::default() };
        let (bf16, int4) = ("bf16".parse().expect("a format"), "int4g128".parse().expect("a format"));
        assert_eq!(pick(half, MatmulSpec { w: bf16, ..spec }), Some("gemm-f16"));
        assert_eq!(pick(coop, MatmulSpec { w: bf16, ..spec }), Some("gemm-coop"));
        assert_eq!(pick(coop, MatmulSpec { w: int4, ..spec }), Some("gemm-tile"));
        let bytes = MatmulSpec { w: int4, math: Math::Int8, ..spec };
        assert_eq!(pick(half, bytes), Some("gemm-dot4"));
        assert_eq!(pick(coop, bytes), Some("gemm-coop"));
        assert_eq!(pick(half, MatmulSpec { m: 1, ..bytes }), Some("gemv-subgroup"));
    }
}
