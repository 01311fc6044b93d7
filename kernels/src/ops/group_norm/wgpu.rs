//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::GroupNorm;
use crate::ops::Activation;
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for GroupNorm {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant { name: "groups", reject: |_, _| None, est_us: |_, _| 1.0, launch }])
    }
}

/// `Params` of `groups.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    items: u32,
    rows: u32,
    each: u32,
    groups: u32,
    x: u32,
    x_stride: u32,
    weight: u32,
    bias: u32,
    out: u32,
    out_stride: u32,
    eps: f32,
}

fn launch(op: &GroupNorm, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    if op.x.is_empty() {
        return Ok(());
    }
    let in_place = op.x.same_elements(&op.out);
    let items = op.pictures() * op.groups;
    let mut kernel = cx.kernel("ops/group_norm/groups.wgsl");
    kernel.define("X", op.x.dtype()).define("OUT", op.out.dtype());
    kernel.define("WEIGHT", op.weight.dtype()).define("BIAS", op.bias.dtype());
    kernel.define("OUT_TO", if in_place { "x" } else { "out" });
    kernel.define(
        "ACT",
        match op.act {
            Activation::None => "none",
            Activation::GeluTanh => "gelu_tanh",
            Activation::GeluErf => "gelu_erf",
            Activation::QuickGelu => "quick_gelu",
            Activation::Relu => "relu",
            Activation::Silu => "silu",
        },
    );
    let (x, x_stride) = (kernel.bind(0, &op.x)?, op.x.stride(0) as u32);
    let (out, out_stride) =
        if in_place { (x, x_stride) } else { (kernel.bind(3, &op.out)?, op.out.stride(0) as u32) };
    let params = Params {
        items: items as u32,
        rows: op.rows as u32,
        each: (op.x.size(1) / op.groups) as u32,
        groups: op.groups as u32,
        x,
        x_stride,
        weight: kernel.read(1, &op.weight)?,
        bias: kernel.read(2, &op.bias)?,
        out,
        out_stride,
        eps: op.eps,
    };
    kernel.params(&params);
    kernel.dispatch_linear(items)
}
