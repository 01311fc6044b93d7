//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::Gate;
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for Gate {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant { name: "pairs", reject: |_, _| None, est_us: |_, _| 1.0, launch }])
    }
}

/// Invocations of a workgroup.
const WG: usize = 128;

/// `Params` of `gate.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    heads: u32,
    d: u32,
    x: u32,
    x_row: u32,
    x_head: u32,
    gate: u32,
    gate_row: u32,
    gate_head: u32,
    out: u32,
    out_row: u32,
    out_head: u32,
}

fn launch(op: &Gate, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let (rows, heads, d) = (op.x.size(0), op.x.size(1), op.x.size(2));
    if op.x.is_empty() {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/gate/gate.wgsl");
    let in_place = op.out.same_elements(&op.x);
    kernel.define("X", op.x.dtype()).define("GATE", op.gate.dtype()).define("OUT", op.out.dtype());
    kernel.define("IN_PLACE", in_place);
    let out = kernel.bind(2, &op.out)?;
    let params = Params {
        rows: rows as u32,
        heads: heads as u32,
        d: d as u32,
        x: if in_place { out } else { kernel.bind(0, &op.x)? },
        x_row: op.x.stride(0) as u32,
        x_head: op.x.stride(1) as u32,
        gate: kernel.bind(1, &op.gate)?,
        gate_row: op.gate.stride(0) as u32,
        gate_head: op.gate.stride(1) as u32,
        out,
        out_row: op.out.stride(0) as u32,
        out_head: op.out.stride(1) as u32,
    };
    kernel.params(&params);
    kernel.dispatch_linear((rows * heads * d.div_ceil(2)).div_ceil(WG))
}
