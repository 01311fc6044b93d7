//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::{GatherRows, GatherRowsSpec};
use crate::cuda::{CudaCx, value_type};
use crate::op::{CudaLaunch, CudaOp};
use crate::select::Variant;
use crate::spec::{Format, KernelError};

impl CudaOp for GatherRows {
    fn cuda_variants() -> &'static [Variant<GatherRowsSpec, CudaLaunch<Self>>] {
        &[Variant { name: "decode-rows", reject: |_, _| None, est_us: |_, _| 2.0, launch }]
    }
}

/// Elements of a row that a block decodes.
const COLUMNS: usize = 512;

/// `Params` of `rows.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    data: u64,
    scales: u64,
    zeros: u64,
    stride: i64,
    scale_stride: i64,
    zero_stride: i64,
    group: i32,
    kind: u32,
    ids: u64,
    out: u64,
    out_stride: i64,
    out_type: u32,
    d: u32,
    first: u32,
    rows: u32,
    columns: u32,
    scale: f32,
}

fn launch(op: &GatherRows, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (tokens, d) = (op.ids.size(0), op.table.k());
    if op.out.is_empty() {
        return Ok(());
    }
    let mut first = 0;
    for part in op.table.parts() {
        let mut kernel = cx.kernel("ops/gather_rows/rows.cu");
        let (bits, floats) = match op.table.format() {
            Format::Dense(_) => (0, part.planes.first()),
            Format::IntGroup { bits, .. } => (bits, part.planes.get(1)),
        };
        kernel.define("BITS", bits).dependent();
        let stride = |plane: usize| part.planes.get(plane).map_or(0, |view| view.stride(0) as i64);
        let params = Params {
            data: kernel.address_or_null(part.planes.first())?,
            scales: kernel.address_or_null(part.planes.get(1))?,
            zeros: kernel.address_or_null(part.planes.get(2))?,
            stride: stride(0),
            scale_stride: stride(1),
            zero_stride: stride(2),
            group: op.table.format().group_len(d).max(1) as i32,
            kind: value_type(floats),
            ids: kernel.address(&op.ids)?,
            out: kernel.address(&op.out)?,
            out_stride: op.out.stride(0) as i64,
            out_type: value_type(Some(&op.out)),
            d: d as u32,
            first: first as u32,
            rows: part.rows as u32,
            columns: COLUMNS as u32,
            scale: op.scale,
        };
        kernel.launch([(tokens * d.div_ceil(COLUMNS)) as u32, 1, 1], 128, &params)?;
        first += part.rows;
    }
    Ok(())
}
