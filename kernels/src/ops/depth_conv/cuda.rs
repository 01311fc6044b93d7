//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::DepthConv;
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CudaOp for DepthConv {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "channels", reject: |_, _| None, est_us: |_, _| 3.0, launch }])
    }
}

/// Channels of a block.
const COLUMNS: usize = 128;

/// `Params` of `conv.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    weight: u64,
    bias: u64,
    out: u64,
    x_stride: u64,
    out_stride: u64,
    rows: u32,
    cols: u32,
    down: u32,
    across: u32,
    height: u32,
    width: u32,
    stride: u32,
    padding: u32,
    weight_stride: u32,
    wide: u32,
    multiplier: u32,
    places: u32,
}

fn launch(op: &DepthConv, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (places, wide) = (op.out.size(0), op.out.size(1));
    if places == 0 || wide == 0 {
        return Ok(());
    }
    let (down, across) = op.places();
    let mut kernel = cx.kernel("ops/depth_conv/conv.cu");
    kernel.define("X", op.x.dtype()).define("OUT", op.out.dtype()).dependent();
    let params = Params {
        x: kernel.address(&op.x)?,
        weight: kernel.address(&op.weight)?,
        bias: kernel.address_or_null(op.bias.as_ref())?,
        out: kernel.address(&op.out)?,
        x_stride: op.x.stride(0) as u64,
        out_stride: op.out.stride(0) as u64,
        rows: op.grid.0 as u32,
        cols: op.grid.1 as u32,
        down: down as u32,
        across: across as u32,
        height: op.filter.size.0,
        width: op.filter.size.1,
        stride: op.filter.stride,
        padding: op.filter.padding,
        weight_stride: op.weight.stride(0) as u32,
        wide: wide as u32,
        multiplier: op.multiplier() as u32,
        places: places as u32,
    };
    kernel.launch([(places * wide.div_ceil(COLUMNS)) as u32, 1, 1], COLUMNS as u32, &params)
}
