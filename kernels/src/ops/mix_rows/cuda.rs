//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::MixRows;
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CudaOp for MixRows {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "rows", reject: |_, _| None, est_us: |_, _| 2.0, launch }])
    }
}

/// Elements of a row that a block makes.
const COLUMNS: usize = 512;

/// `Params` of `rows.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    src: u64,
    ids: u64,
    weights: u64,
    out: u64,
    src_stride: u64,
    out_stride: u64,
    taps: u32,
    d: u32,
    limit: u32,
    columns: u32,
}

fn launch(op: &MixRows, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (rows, d) = (op.weights.size(0), op.src.size(1));
    if op.out.is_empty() {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/mix_rows/rows.cu");
    kernel.define("X", op.src.dtype()).define("OUT", op.out.dtype()).define("ADD", op.add).dependent();
    let params = Params {
        src: kernel.address(&op.src)?,
        ids: kernel.address_or_null(op.ids.as_ref())?,
        weights: kernel.address(&op.weights)?,
        out: kernel.address(&op.out)?,
        src_stride: op.src.stride(0) as u64,
        out_stride: op.out.stride(0) as u64,
        taps: op.weights.size(1) as u32,
        d: d as u32,
        limit: op.src.size(0) as u32,
        columns: COLUMNS as u32,
    };
    kernel.launch([(rows * d.div_ceil(COLUMNS)) as u32, 1, 1], 128, &params)
}
