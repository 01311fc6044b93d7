//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::ScatterRows;
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for ScatterRows {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant { name: "rows", reject: |_, _| None, est_us: |_, _| 1.0, launch }])
    }
}

/// `Params` of `rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    count: u32,
    d: u32,
    limit: u32,
    src: u32,
    src_stride: u32,
    rows: u32,
    out: u32,
    out_stride: u32,
}

fn launch(op: &ScatterRows, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let (count, d) = (op.src.size(0), op.src.size(1));
    if count == 0 || d == 0 || op.out.is_empty() {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/scatter_rows/rows.wgsl");
    kernel.define("X", op.src.dtype()).define("OUT", op.out.dtype());
    let src = kernel.bind(0, &op.src)?;
    let rows = kernel.bind(1, &op.rows)?;
    let out = kernel.bind(2, &op.out)?;
    kernel.params(&Params {
        count: count as u32,
        d: d as u32,
        limit: op.out.size(0) as u32,
        src,
        src_stride: op.src.stride(0) as u32,
        rows,
        out,
        out_stride: op.out.stride(0) as u32,
    });
    kernel.dispatch_linear(count)
}
