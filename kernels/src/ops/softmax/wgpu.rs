//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::Softmax;
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for Softmax {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant { name: "rows", reject: |_, _| None, est_us: |_, _| 1.0, launch }])
    }
}

/// `Params` of `softmax.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    d: u32,
    x: u32,
    x_stride: u32,
    out: u32,
    out_stride: u32,
}

fn launch(op: &Softmax, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let (rows, d) = (op.x.size(0), op.x.size(1));
    if op.x.is_empty() {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/softmax/softmax.wgsl");
    kernel.define("X", op.x.dtype()).define("OUT", op.out.dtype());
    let params = Params {
        rows: rows as u32,
        d: d as u32,
        x: kernel.bind(0, &op.x)?,
        x_stride: op.x.stride(0) as u32,
        out: kernel.bind(1, &op.out)?,
        out_stride: op.out.stride(0) as u32,
    };
    kernel.params(&params);
    kernel.dispatch_linear(rows)
}
