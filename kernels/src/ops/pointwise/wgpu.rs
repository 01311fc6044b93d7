//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::Pointwise;
use crate::buffer::View;
use crate::ops::Activation;
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for Pointwise {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant { name: "rows", reject: |_, _| None, est_us: |_, _| 1.0, launch }])
    }
}

/// Elements of a row that a workgroup takes: even.
const COLUMNS: usize = 512;

/// `Params` of `rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Params {
    rows: u32,
    d: u32,
    x: u32,
    x_stride: u32,
    col: u32,
    row: u32,
    by: u32,
    by_stride: u32,
    add: u32,
    add_stride: u32,
    out: u32,
    out_stride: u32,
    scale: f32,
    softcap: f32,
    low: f32,
    high: f32,
}

fn launch(op: &Pointwise, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    if op.x.is_empty() {
        return Ok(());
    }
    let (rows, d) = (op.x.size(0), op.x.size(1));
    let stride = |view: &View| view.stride(0) as u32;
    let same = |view: &Option<View>| view.as_ref().is_some_and(|view| view.same_elements(&op.out));
    // The input whose very elements the result takes.
    let out_to = match () {
        () if op.x.same_elements(&op.out) => "x",
        () if same(&op.by) => "by",
        () if same(&op.add) => "add",
        () => "out",
    };
    let mut kernel = cx.kernel("ops/pointwise/rows.wgsl");
    kernel.define("X", op.x.dtype()).define("OUT", op.out.dtype()).define("OUT_TO", out_to);
    kernel.define("COLUMNS", COLUMNS).define("CAP", op.softcap != 0.0);
    kernel.define("BOUNDS", op.bounds.is_some());
    let [low, high] = op.bounds.unwrap_or_default();
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
    let mut params = Params {
        rows: rows as u32,
        d: d as u32,
        x: kernel.bind(0, &op.x)?,
        x_stride: stride(&op.x),
        scale: op.scale,
        softcap: op.softcap,
        low,
        high,
        ..Default::default()
    };
    if let Some(col) = &op.col {
        kernel.define("COL", col.dtype());
        params.col = kernel.read(1, col)?;
    }
    if let Some(row) = &op.row {
        kernel.define("ROW", true);
        params.row = kernel.bind(2, row)?;
    }
    if let Some(by) = &op.by {
        kernel.define("BY", true);
        (params.by, params.by_stride) = (kernel.bind(3, by)?, stride(by));
    }
    if let Some(add) = &op.add {
        kernel.define("ADD", true);
        (params.add, params.add_stride) = (kernel.bind(4, add)?, stride(add));
    }
    (params.out, params.out_stride) = match out_to {
        "x" => (params.x, params.x_stride),
        "by" => (params.by, params.by_stride),
        "add" => (params.add, params.add_stride),
        _ => (kernel.bind(5, &op.out)?, stride(&op.out)),
    };
    kernel.params(&params);
    kernel.dispatch_linear(rows * d.div_ceil(COLUMNS))
}
