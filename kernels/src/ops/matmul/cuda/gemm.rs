//! `gemm_f32.cu`: products of anything in exact f32.

use bytemuck::{Pod, Zeroable};

use super::super::{Matmul, MatmulSpec};
use super::params::{Epilogue, Row, WeightRows, rows_aligned, segments};
use crate::cuda::CudaCx;
use crate::cuda::value_type;
use crate::select::Reject;
use crate::spec::{Caps, KernelError};

pub(super) const F32: Row = Row { name: "gemm-f32", reject, est_us: est_f32, launch: f32 };

/// Threads of `gemm_f32.cu`.
const F32_THREADS: u32 = 256;

/// `SIDE` of `gemm_f32.cu`, a sixteenth of a tile's rows and columns: large tiles where they are enough for the device.
fn side(m: usize, n: usize, caps: &Caps) -> usize {
    if m > 64 && tiles(m, n, 8) >= caps.units { 8 } else { 4 }
}

fn reject(spec: &MatmulSpec, _: &Caps) -> Option<Reject> {
    spec.reject_fused().or_else(|| spec.w.reject_k_major())
}

fn tiles(m: usize, n: usize, side: usize) -> usize {
    m.div_ceil(16 * side) * n.div_ceil(16 * side)
}

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
    let (side, units) = (side(m, n, caps), caps.units.max(1));
    let tiles = tiles(m, n, side).next_multiple_of(units);
    let flops = (2 * tiles * (16 * side).pow(2)) as f64 * k as f64;
    let share = if side == 8 { 0.8 } else { 0.5 };
    caps.cuda.estimate_us(spec.w.bytes(n, k) as f64, flops, share * caps.cuda.f32_tflops)
}

fn f32(op: &Matmul, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (x, k) = (&op.x, op.w.k());
    for segment in segments(op) {
        let products = if op.gated { 2 * segment.cols } else { segment.cols };
        let side = side(x.size(0), products, cx.caps());
        let mut kernel = cx.kernel("ops/matmul/gemm_f32.cu");
        kernel.codes(op.w.format()).define("GATED", op.gated).define("SIDE", side);
        // Two buffers of 16 columns of both operands, their rows and four more.
        kernel.shared(2 * 2 * 16 * (16 * side + 4) * 4).dependent();
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
        kernel.launch([tiles(x.size(0), products, side) as u32, 1, 1], F32_THREADS, &params)?;
    }
    Ok(())
}
