//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::GatherColumns;
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CudaOp for GatherColumns {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "columns", reject: |_, _| None, est_us: |_, _| 2.0, launch }])
    }
}

/// Columns of a row that a block copies.
const COLUMNS: usize = 512;

/// `Params` of `columns.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    columns: u64,
    out: u64,
    x_stride: u64,
    out_stride: u64,
    k: u32,
    n: u32,
    part: u32,
    pad: u32,
}

fn launch(op: &GatherColumns, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    if op.out.is_empty() {
        return Ok(());
    }
    let (rows, n) = (op.x.size(0), op.columns.size(0));
    let mut kernel = cx.kernel("ops/gather_columns/columns.cu");
    kernel.define("X", op.x.dtype()).dependent();
    let params = Params {
        x: kernel.address(&op.x)?,
        columns: kernel.address(&op.columns)?,
        out: kernel.address(&op.out)?,
        x_stride: op.x.stride(0) as u64,
        out_stride: op.out.stride(0) as u64,
        k: op.x.size(1) as u32,
        n: n as u32,
        part: COLUMNS as u32,
        pad: 0,
    };
    kernel.launch([(rows * n.div_ceil(COLUMNS)) as u32, 1, 1], 128, &params)
}
