//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::GatherRows;
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::{WeightParams, WgpuCx};
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for GatherRows {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant {
            name: "decode-rows",
            reject: |spec, _| spec.w.reject_k_major(),
            est_us: |_, _| 1.0,
            launch,
        }])
    }
}

/// Elements of a row that a workgroup writes: even.
const COLUMNS: usize = 512;

/// `Params` of `rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    tokens: u32,
    d: u32,
    /// First row of the part, and its rows.
    first: u32,
    rows: u32,
    ids: u32,
    out: u32,
    out_stride: u32,
    scale: f32,
    table: WeightParams,
}

fn launch(op: &GatherRows, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let (tokens, d) = (op.ids.size(0), op.table.k());
    if op.out.is_empty() {
        return Ok(());
    }
    let mut first = 0;
    for part in op.table.parts() {
        let mut kernel = cx.kernel("ops/gather_rows/rows.wgsl");
        kernel.define("OUT", op.out.dtype()).define("COLUMNS", COLUMNS);
        // The table may be an activation: rows of a batch that were asked for.
        let beside = |view: &crate::View| part.planes[0].storage().same(view.storage());
        let shared = op.table.format().dense().is_some() && (beside(&op.out) || beside(&op.ids));
        let table = kernel.weight(op.table.format(), d, part, shared)?;
        let ids = kernel.bind(3, &op.ids)?;
        let out = kernel.bind(4, &op.out)?;
        kernel.params(&Params {
            tokens: tokens as u32,
            d: d as u32,
            first: first as u32,
            rows: part.rows as u32,
            ids,
            out,
            out_stride: op.out.stride(0) as u32,
            scale: op.scale,
            table,
        });
        kernel.dispatch_linear(tokens * d.div_ceil(COLUMNS))?;
        first += part.rows;
    }
    Ok(())
}
