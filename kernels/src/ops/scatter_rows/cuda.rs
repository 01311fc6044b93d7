//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::ScatterRows;
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CudaOp for ScatterRows {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "rows", reject: |_, _| None, est_us: |_, _| 2.0, launch }])
    }
}

/// Elements of a row that a block copies.
const COLUMNS: usize = 512;

/// `Params` of `rows.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    src: u64,
    rows: u64,
    out: u64,
    src_stride: u64,
    out_stride: u64,
    count: u32,
    d: u32,
    limit: u32,
    columns: u32,
}

fn launch(op: &ScatterRows, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (count, d) = (op.src.size(0), op.src.size(1));
    if count == 0 || d == 0 || op.out.is_empty() {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/scatter_rows/rows.cu");
    kernel.define("X", op.src.dtype()).define("OUT", op.out.dtype()).dependent();
    let params = Params {
        src: kernel.address(&op.src)?,
        rows: kernel.address(&op.rows)?,
        out: kernel.address(&op.out)?,
        src_stride: op.src.stride(0) as u64,
        out_stride: op.out.stride(0) as u64,
        count: count as u32,
        d: d as u32,
        limit: op.out.size(0) as u32,
        columns: COLUMNS as u32,
    };
    kernel.launch([(count * d.div_ceil(COLUMNS)) as u32, 1, 1], 128, &params)
}
