//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::GatherRows;
use crate::cuda::{CudaCx, WeightParams, value_type};
use crate::cuda::{CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CudaOp for GatherRows {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant {
            name: "decode-rows",
            reject: |spec, _| spec.w.reject_k_major(),
            est_us: |_, _| 2.0,
            launch,
        }])
    }
}

/// Elements of a row that a block decodes.
const COLUMNS: usize = 512;

/// `Params` of `rows.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    table: WeightParams,
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
        kernel.dependent();
        let table = kernel.weight(op.table.format(), d, part)?;
        let params = Params {
            table,
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
