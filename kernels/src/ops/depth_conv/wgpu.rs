//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::DepthConv;
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for DepthConv {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant { name: "channels", reject: |_, _| None, est_us: |_, _| 1.0, launch }])
    }
}

/// Channels of a workgroup.
const COLUMNS: usize = 128;

/// `Params` of `conv.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    places: u32,
    wide: u32,
    multiplier: u32,
    rows: u32,
    cols: u32,
    down: u32,
    across: u32,
    height: u32,
    width: u32,
    stride: u32,
    padding: u32,
    x: u32,
    x_stride: u32,
    weight: u32,
    weight_stride: u32,
    bias: u32,
    out: u32,
    out_stride: u32,
}

fn launch(op: &DepthConv, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let (places, wide) = (op.out.size(0), op.out.size(1));
    if places == 0 || wide == 0 {
        return Ok(());
    }
    let (down, across) = op.places();
    let mut kernel = cx.kernel("ops/depth_conv/conv.wgsl");
    kernel.define("X", op.x.dtype()).define("OUT", op.out.dtype()).define("BIAS", op.bias.is_some());
    let params = Params {
        places: places as u32,
        wide: wide as u32,
        multiplier: op.multiplier() as u32,
        rows: op.grid.0 as u32,
        cols: op.grid.1 as u32,
        down: down as u32,
        across: across as u32,
        height: op.filter.size.0,
        width: op.filter.size.1,
        stride: op.filter.stride,
        padding: op.filter.padding,
        x: kernel.bind(0, &op.x)?,
        x_stride: op.x.stride(0) as u32,
        weight: kernel.bind(1, &op.weight)?,
        weight_stride: op.weight.stride(0) as u32,
        out: kernel.bind(2, &op.out)?,
        out_stride: op.out.stride(0) as u32,
        bias: op.bias.as_ref().map_or(Ok(0), |bias| kernel.bind(3, bias))?,
    };
    kernel.params(&params);
    kernel.dispatch_linear(places * wide.div_ceil(COLUMNS))
}
