//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::{ConvForm, ShortConv};
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CudaOp for ShortConv {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "window", reject: |_, _| None, est_us: |_, _| 3.0, launch }])
    }
}

/// Rows of a sequence that a block makes, where sequences are longer.
const ROWS: usize = 32;
/// Channels of a block.
const COLUMNS: usize = 128;

/// `Params` of `conv.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    weight: u64,
    bias: u64,
    state: u64,
    starts: u64,
    lens: u64,
    slots: u64,
    out: u64,
    x_stride: u64,
    out_stride: u64,
    rows: u32,
    seqs: u32,
    channels: u32,
    slots_count: u32,
    weight_stride: u32,
    after: u32,
    input: u32,
    each: u32,
    blocks: u32,
    form: u32,
    part: u32,
    padding: u32,
}

fn launch(op: &ShortConv, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    if op.seqs.most <= ROWS {
        return part(op, cx, 0, ROWS, 1);
    }
    part(op, cx, 1, ROWS, op.seqs.most.div_ceil(ROWS))?;
    part(op, cx, 2, 0, 1)
}

/// Both (0), the results (1) or the state (2).
fn part(
    op: &ShortConv,
    cx: &mut CudaCx<'_>,
    part: u32,
    each: usize,
    blocks: usize,
) -> Result<(), KernelError> {
    let (rows, channels, seqs) = (op.x.size(0), op.weight.size(1), op.seqs.count());
    if seqs == 0 || channels == 0 || rows == 0 {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/short_conv/conv.cu");
    kernel.define("X", op.x.dtype()).define("OUT", op.out.dtype()).define("TAPS", op.taps()).dependent();
    let (after, input) = op.columns();
    let params = Params {
        x: kernel.address(&op.x)?,
        weight: kernel.address(&op.weight)?,
        bias: kernel.address_or_null(op.bias.as_ref())?,
        state: kernel.address(&op.state)?,
        starts: kernel.address(&op.seqs.starts)?,
        lens: kernel.address(&op.seqs.lens)?,
        slots: kernel.address(&op.seqs.slots)?,
        out: kernel.address(&op.out)?,
        x_stride: op.x.stride(0) as u64,
        out_stride: op.out.stride(0) as u64,
        rows: rows as u32,
        seqs: seqs as u32,
        channels: channels as u32,
        slots_count: op.state.size(0) as u32,
        weight_stride: op.weight.stride(0) as u32,
        after: after as u32,
        input: input as u32,
        each: each as u32,
        blocks: blocks as u32,
        form: match op.form {
            ConvForm::Plain => 0,
            ConvForm::Silu => 1,
            ConvForm::Gated => 2,
        },
        part,
        padding: 0,
    };
    let grid = seqs * blocks * channels.div_ceil(COLUMNS);
    kernel.launch([grid as u32, 1, 1], COLUMNS as u32, &params)
}
