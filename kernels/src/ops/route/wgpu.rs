//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::{Route, Scores};
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for Route {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant { name: "rows", reject: |_, _| None, est_us: |_, _| 1.0, launch }])
    }
}

/// `Params` of `route.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    experts: u32,
    top: u32,
    logits: u32,
    logits_stride: u32,
    bias: u32,
    factors: u32,
    ids: u32,
    weights: u32,
    normalize: u32,
    scale: f32,
}

fn launch(op: &Route, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let rows = op.logits.size(0);
    if rows == 0 {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/route/route.wgsl");
    kernel.define("X", op.logits.dtype()).define("SOFTMAX", op.scores == Scores::Softmax);
    kernel.define("BIAS", op.bias.is_some()).define("FACTORS", op.factors.is_some());
    // Tables may be weights or activations.
    let mut access = |name, view: Option<&crate::View>| {
        let shared = view.is_some_and(|view| {
            [&op.logits, &op.ids, &op.weights].iter().any(|other| other.storage().same(view.storage()))
        });
        kernel.define(name, if shared { "read_write" } else { "read" });
        shared
    };
    let shared = (access("BIAS_ACCESS", op.bias.as_ref()), access("FACTORS_ACCESS", op.factors.as_ref()));
    let mut table = |index, view: &Option<crate::View>, shared: bool| match view {
        Some(view) if shared => kernel.bind(index, view),
        Some(view) => kernel.read(index, view),
        None => Ok(0),
    };
    let bias = table(1, &op.bias, shared.0)?;
    let factors = table(2, &op.factors, shared.1)?;
    let logits = kernel.bind(0, &op.logits)?;
    let ids = kernel.bind(3, &op.ids)?;
    let weights = kernel.bind(4, &op.weights)?;
    kernel.params(&Params {
        rows: rows as u32,
        experts: op.logits.size(1) as u32,
        top: op.ids.size(1) as u32,
        logits,
        logits_stride: op.logits.stride(0) as u32,
        bias,
        factors,
        ids,
        weights,
        normalize: u32::from(op.normalize),
        scale: op.scale,
    });
    kernel.dispatch_linear(rows)
}
