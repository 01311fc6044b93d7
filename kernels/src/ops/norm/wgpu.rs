//! WGSL kernels: one source, whose partial sums are joined by subgroups where a device has them.

use bytemuck::{Pod, Zeroable};

use super::{Norm, NormKind};
use crate::buffer::View;
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for Norm {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[
            Variant {
                name: "rows-subgroup",
                reject: |_, caps| {
                    (caps.wgpu.subgroup.0 < 4).then(|| "the device has no subgroups of 4 or more".into())
                },
                est_us: |_, _| 1.0,
                launch: |op, cx| launch(op, cx, true),
            },
            Variant {
                name: "rows",
                reject: |_, _| None,
                est_us: |_, _| 1.2,
                launch: |op, cx| launch(op, cx, false),
            },
        ])
    }
}

/// Quads of four elements that an invocation keeps in registers at most.
const MOST_KEPT: usize = 8;

/// Invocations of a workgroup, and quads that each keeps; 0 where the row is too long for that.
fn shape(d: usize) -> (usize, usize) {
    let quads = d.div_ceil(4);
    let invocations = (quads / 2).next_power_of_two().clamp(32, 256);
    let kept = quads.div_ceil(invocations);
    (invocations, if kept <= MOST_KEPT { kept } else { 0 })
}

/// `Params` of `rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Params {
    rows: u32,
    d: u32,
    x: u32,
    x_stride: u32,
    add: u32,
    add_stride: u32,
    weight: u32,
    bias: u32,
    sum: u32,
    sum_stride: u32,
    out: u32,
    out_stride: u32,
    weight_offset: f32,
    eps: f32,
}

impl Params {
    /// Whether every row begins at a multiple of four elements and ends at one.
    fn fours(&self) -> bool {
        let Self { d, x, x_stride, add, add_stride, weight, bias, sum, sum_stride, out, out_stride, .. } =
            self;
        [d, x, x_stride, add, add_stride, weight, bias, sum, sum_stride, out, out_stride]
            .iter()
            .all(|value| value.is_multiple_of(4))
    }
}

fn launch(op: &Norm, cx: &mut WgpuCx<'_>, subgroups: bool) -> Result<(), KernelError> {
    if op.x.is_empty() {
        return Ok(());
    }
    let (rows, d) = (op.x.size(0), op.x.size(1));
    let stride = |view: &View| view.stride(0) as u32;
    // The input whose very elements an output takes.
    let place = |to: &View, own: &'static str| match &op.add {
        _ if op.x.same_elements(to) => "x",
        Some(add) if add.same_elements(to) => "add",
        _ => own,
    };
    let out_to = place(&op.out, "out");
    let sum_to = op.sum.as_ref().map(|sum| place(sum, "sum"));
    let written = |name| out_to == name || sum_to == Some(name);

    let mut kernel = cx.kernel("ops/norm/rows.wgsl");
    kernel.define("SUBGROUP", subgroups).define("LAYER", op.kind == NormKind::Layer);
    kernel.define("X", op.x.dtype()).define("X_WRITTEN", written("x"));
    kernel.define("OUT", op.out.dtype()).define("OUT_TO", out_to);
    let mut params = Params {
        rows: rows as u32,
        d: d as u32,
        x: kernel.bind(0, &op.x)?,
        x_stride: stride(&op.x),
        weight_offset: op.weight_offset,
        eps: op.eps,
        ..Default::default()
    };
    if let Some(add) = &op.add {
        kernel.define("ADD", true).define("ADD_WRITTEN", written("add"));
        (params.add, params.add_stride) = (kernel.bind(1, add)?, stride(add));
    }
    if let Some(weight) = &op.weight {
        kernel.define("WEIGHT", weight.dtype());
        params.weight = kernel.read(2, weight)?;
    }
    if let Some(bias) = &op.bias {
        kernel.define("BIAS", bias.dtype());
        params.bias = kernel.read(3, bias)?;
    }
    let mut output = |view: &View, to: &str, index: u32| {
        Ok::<_, KernelError>(match to {
            "x" => (params.x, params.x_stride),
            "add" => (params.add, params.add_stride),
            _ => (kernel.bind(index, view)?, stride(view)),
        })
    };
    if let (Some(sum), Some(to)) = (&op.sum, sum_to) {
        (params.sum, params.sum_stride) = output(sum, to, 4)?;
    }
    (params.out, params.out_stride) = output(&op.out, out_to, 5)?;
    if let Some(to) = sum_to {
        kernel.define("SUM", true).define("SUM_TO", to);
    }
    let (invocations, kept) = shape(d);
    kernel.define("WG", invocations).define("KEEP", kept).define("VEC", params.fours());
    kernel.params(&params);
    kernel.dispatch_linear(rows)
}
