//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::MixRows;
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for MixRows {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant { name: "rows", reject: |_, _| None, est_us: |_, _| 1.0, launch }])
    }
}

/// Elements of a row that a workgroup makes: even.
const COLUMNS: usize = 512;

/// `Params` of `rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    taps: u32,
    d: u32,
    limit: u32,
    src: u32,
    src_stride: u32,
    ids: u32,
    weights: u32,
    out: u32,
    out_stride: u32,
}

fn launch(op: &MixRows, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let (rows, d) = (op.weights.size(0), op.src.size(1));
    if op.out.is_empty() {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/mix_rows/rows.wgsl");
    kernel.define("X", op.src.dtype()).define("OUT", op.out.dtype()).define("ADD", op.add);
    kernel.define("COLUMNS", COLUMNS).define("IDS", op.ids.is_some());
    // The rows may be weights or activations.
    let shared = [&op.out, &op.weights].iter().any(|view| view.storage().same(op.src.storage()));
    kernel.define("ACCESS", if shared { "read_write" } else { "read" });
    let src = if shared { kernel.bind(0, &op.src)? } else { kernel.read(0, &op.src)? };
    let ids = op.ids.as_ref().map_or(Ok(0), |ids| kernel.bind(1, ids))?;
    let weights = kernel.bind(2, &op.weights)?;
    let out = kernel.bind(3, &op.out)?;
    kernel.params(&Params {
        rows: rows as u32,
        taps: op.weights.size(1) as u32,
        d: d as u32,
        limit: op.src.size(0) as u32,
        src,
        src_stride: op.src.stride(0) as u32,
        ids,
        weights,
        out,
        out_stride: op.out.stride(0) as u32,
    });
    kernel.dispatch_linear(rows * d.div_ceil(COLUMNS))
}
