//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::GatherColumns;
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for GatherColumns {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant { name: "columns", reject: |_, _| None, est_us: |_, _| 1.0, launch }])
    }
}

/// `Params` of `columns.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    k: u32,
    n: u32,
    x: u32,
    x_stride: u32,
    columns: u32,
    out: u32,
    out_stride: u32,
}

fn launch(op: &GatherColumns, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    if op.out.is_empty() {
        return Ok(());
    }
    let rows = op.x.size(0);
    let mut kernel = cx.kernel("ops/gather_columns/columns.wgsl");
    kernel.define("X", op.x.dtype());
    let x = kernel.bind(0, &op.x)?;
    let columns = kernel.bind(1, &op.columns)?;
    let out = kernel.bind(2, &op.out)?;
    kernel.params(&Params {
        rows: rows as u32,
        k: op.x.size(1) as u32,
        n: op.columns.size(0) as u32,
        x,
        x_stride: op.x.stride(0) as u32,
        columns,
        out,
        out_stride: op.out.stride(0) as u32,
    });
    kernel.dispatch_linear(rows)
}
