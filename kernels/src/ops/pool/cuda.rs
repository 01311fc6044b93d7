//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::{Pool, PoolKind, PoolOver, PoolSpec};
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::{Caps, KernelError};

impl CudaOp for Pool {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "slices", reject: |_, _| None, est_us, launch }])
    }
}

/// A launch, and the traffic, as far as the spec tells: segments may have any number of rows.
fn est_us(spec: &PoolSpec, caps: &Caps) -> f32 {
    let members = (spec.block_h * spec.block_w).max(1) as f32;
    let column = members * spec.x.size() as f32 + spec.out.size() as f32;
    2.0 + spec.rows as f32 * spec.d as f32 * column / (caps.cuda.read_gbps * 1e3)
}

/// Warps of a block, among which the members of an output are shared out.
const SLICES: usize = 8;

/// `Params` of `pool.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    segments: u64,
    out: u64,
    x_stride: u64,
    out_stride: u64,
    rows: u32,
    d: u32,
    grid_w: u32,
    block_h: u32,
    block_w: u32,
    kind: u32,
}

fn launch(op: &Pool, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (outputs, d) = (op.out.size(0), op.x.size(1));
    if op.out.is_empty() {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/pool/pool.cu");
    let kind = match op.kind {
        PoolKind::Mean => 0,
        PoolKind::Max => 1,
        PoolKind::First => 2,
        PoolKind::Last => 3,
    };
    let vec = if d.is_multiple_of(8) && kernel.all_aligned([&op.x, &op.out])? { 8 } else { 1 };
    kernel.define("X", op.x.dtype()).define("OUT", op.out.dtype());
    kernel.define("VEC", vec).define("SLICES", SLICES);
    kernel.shared(SLICES * 32 * vec * 4).dependent();
    let (segments, grid_w, block_h, block_w) = match op.over {
        PoolOver::Segments(ref starts) => (kernel.address(starts)?, 0, 0, 0),
        PoolOver::Grid { grid_w, block_h, block_w, .. } => (0, grid_w as u32, block_h as u32, block_w as u32),
    };
    let params = Params {
        x: kernel.address(&op.x)?,
        segments,
        out: kernel.address(&op.out)?,
        x_stride: op.x.stride(0) as u64,
        out_stride: op.out.stride(0) as u64,
        rows: op.x.size(0) as u32,
        d: d as u32,
        grid_w,
        block_h,
        block_w,
        kind,
    };
    let blocks = outputs * d.div_ceil(32 * vec);
    kernel.launch([blocks as u32, 1, 1], 32 * SLICES as u32, &params)
}
