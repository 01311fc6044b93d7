//! `gemm_f32.cu`: products of anything in exact f32.

use bytemuck::{Pod, Zeroable};

use super::super::{Matmul, MatmulSpec};
use super::params::{Epilogue, Row, WeightRows, rows_aligned, segments};
use crate::cuda::CudaCx;
use crate::cuda::value_type;
use crate::spec::{Caps, Format, KernelError};

pub(super) const F32: Row = Row { name: "gemm-f32", reject: |_, _| None, est_us: est_f32, launch: f32 };

/// Rows and columns of a tile of `gemm_f32.cu`, its threads, and bytes of its two steps of both operands.
const F32_TILE: usize = 128;
const F32_THREADS: u32 = 256;
const F32_SHARED: usize = 2 * 2 * 16 * (F32_TILE + 4) * 4;

/// `Params` of `gemm_f32.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct F32Params {
    x: u64,
    x_stride: i64,
    w: WeightRows,
    up: WeightRows,
    e: Epilogue,
    k: i32,
    x_type: u32,
    x_aligned: u32,
    pad: u32,
}

fn est_f32(spec: &MatmulSpec, caps: &Caps) -> f32 {
    let (m, n, k) = (spec.m as usize, spec.n as usize, spec.k as usize);
    let tiles = m.div_ceil(F32_TILE) * n.div_ceil(F32_TILE);
    let waves = tiles.div_ceil(caps.units.max(1)) * caps.units.max(1);
    let flops = (2 * waves * F32_TILE * F32_TILE) as f64 * k as f64;
    caps.cuda.estimate_us(spec.w.bytes(n, k) as f64, flops, 0.8 * caps.cuda.f32_tflops)
}

fn f32(op: &Matmul, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (x, k) = (&op.x, op.w.k());
    for segment in segments(op) {
        let mut kernel = cx.kernel("ops/matmul/gemm_f32.cu");
        kernel.define("BITS", bits(op.w.format())).define("GATED", op.gated);
        kernel.shared(F32_SHARED).dependent();
        let [w, up] = segment.weights(&kernel)?;
        let address = kernel.address(x)?;
        let params = F32Params {
            x: address,
            x_stride: x.stride(0) as i64,
            w,
            up,
            e: segment.epilogue(&kernel)?,
            k: k as i32,
            x_type: value_type(Some(x)),
            x_aligned: u32::from(rows_aligned(address, x)),
            pad: 0,
        };
        let cols = if op.gated { F32_TILE / 2 } else { F32_TILE };
        let tiles = x.size(0).div_ceil(F32_TILE) * segment.cols.div_ceil(cols);
        kernel.launch([tiles as u32, 1, 1], F32_THREADS, &params)?;
    }
    Ok(())
}

/// `BITS` of `weights.cuh`.
fn bits(format: Format) -> u8 {
    match format {
        Format::Dense(_) => 0,
        Format::IntGroup { bits, .. } => bits,
    }
}
