//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::{ConvForm, ShortConv};
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for ShortConv {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant { name: "window", reject: |_, _| None, est_us: |_, _| 1.0, launch }])
    }
}

/// Rows of a sequence that a workgroup makes, where sequences are longer.
const ROWS: usize = 32;
/// Channels of a workgroup.
const COLUMNS: usize = 128;

/// `Params` of `conv.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    seqs: u32,
    channels: u32,
    slots_count: u32,
    each: u32,
    blocks: u32,
    part: u32,
    x: u32,
    x_stride: u32,
    after: u32,
    input: u32,
    weight: u32,
    weight_stride: u32,
    bias: u32,
    state: u32,
    starts: u32,
    lens: u32,
    slots: u32,
    out: u32,
    out_stride: u32,
}

fn launch(op: &ShortConv, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    if op.seqs.most <= ROWS {
        return part(op, cx, 0, ROWS, 1);
    }
    part(op, cx, 1, ROWS, op.seqs.most.div_ceil(ROWS))?;
    part(op, cx, 2, 0, 1)
}

/// Both (0), the results (1) or the state (2).
fn part(
    op: &ShortConv,
    cx: &mut WgpuCx<'_>,
    part: u32,
    each: usize,
    blocks: usize,
) -> Result<(), KernelError> {
    let (rows, channels, seqs) = (op.x.size(0), op.weight.size(1), op.seqs.count());
    if seqs == 0 || channels == 0 || rows == 0 {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/short_conv/conv.wgsl");
    let form = match op.form {
        ConvForm::Plain => "plain",
        ConvForm::Silu => "silu",
        ConvForm::Gated => "gated",
    };
    kernel.define("X", op.x.dtype()).define("OUT", op.out.dtype()).define("FORM", form);
    kernel.define("TAPS", op.taps()).define("BIAS", op.bias.is_some());
    let (after, input) = op.columns();
    let params = Params {
        rows: rows as u32,
        seqs: seqs as u32,
        channels: channels as u32,
        slots_count: op.state.size(0) as u32,
        each: each as u32,
        blocks: blocks as u32,
        part,
        x: kernel.bind(0, &op.x)?,
        x_stride: op.x.stride(0) as u32,
        after: after as u32,
        input: input as u32,
        weight: kernel.bind(1, &op.weight)?,
        weight_stride: op.weight.stride(0) as u32,
        state: kernel.bind(2, &op.state)?,
        starts: kernel.bind(3, &op.seqs.starts)?,
        lens: kernel.bind(4, &op.seqs.lens)?,
        slots: kernel.bind(5, &op.seqs.slots)?,
        out: kernel.bind(6, &op.out)?,
        out_stride: op.out.stride(0) as u32,
        bias: op.bias.as_ref().map_or(Ok(0), |bias| kernel.bind(7, bias))?,
    };
    kernel.params(&params);
    kernel.dispatch_linear(seqs * blocks * channels.div_ceil(COLUMNS))
}
