//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::{Pool, PoolKind, PoolOver};
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for Pool {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant { name: "slices", reject: |_, _| None, est_us: |_, _| 1.0, launch }])
    }
}

/// Columns that a workgroup makes: twice `PAIRS` of `pool.wgsl`.
const COLUMNS: usize = 64;

/// `Params` of `pool.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    outputs: u32,
    d: u32,
    x: u32,
    x_stride: u32,
    out: u32,
    out_stride: u32,
    /// First boundary of the segments.
    segments: u32,
    /// Of a grid: columns of patches, and the size of a block.
    grid_w: u32,
    block_h: u32,
    block_w: u32,
}

fn launch(op: &Pool, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let (outputs, d) = (op.out.size(0), op.x.size(1));
    if op.out.is_empty() {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/pool/pool.wgsl");
    let kind = match op.kind {
        PoolKind::Mean => "mean",
        PoolKind::Max => "max",
        PoolKind::First => "first",
        PoolKind::Last => "last",
    };
    kernel.define("X", op.x.dtype()).define("OUT", op.out.dtype()).define("KIND", kind);
    let mut params = Params {
        rows: op.x.size(0) as u32,
        outputs: outputs as u32,
        d: d as u32,
        x: kernel.bind(0, &op.x)?,
        x_stride: op.x.stride(0) as u32,
        out: kernel.bind(1, &op.out)?,
        out_stride: op.out.stride(0) as u32,
        segments: 0,
        grid_w: 0,
        block_h: 0,
        block_w: 0,
    };
    match op.over {
        PoolOver::Segments(ref starts) => {
            kernel.define("SEGMENTS", true);
            params.segments = kernel.bind(2, starts)?;
        }
        PoolOver::Grid { grid_w, block_h, block_w, .. } => {
            kernel.define("SEGMENTS", false);
            (params.grid_w, params.block_h, params.block_w) = (grid_w as u32, block_h as u32, block_w as u32);
        }
    }
    kernel.params(&params);
    kernel.dispatch_linear(outputs * d.div_ceil(COLUMNS))
}
