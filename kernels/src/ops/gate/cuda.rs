//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::Gate;
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CudaOp for Gate {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "vectors", reject: |_, _| None, est_us: |_, _| 2.0, launch }])
    }
}

/// `Params` of `gate.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    gate: u64,
    out: u64,
    x_row: u64,
    x_head: u64,
    gate_row: u64,
    gate_head: u64,
    out_row: u64,
    out_head: u64,
    rows: u32,
    heads: u32,
    d: u32,
    padding: u32,
}

fn launch(op: &Gate, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (rows, heads, d) = (op.x.size(0), op.x.size(1), op.x.size(2));
    if op.x.is_empty() {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/gate/gate.cu");
    let vec = if d.is_multiple_of(8) && kernel.all_aligned([&op.x, &op.gate, &op.out])? { 8 } else { 1 };
    kernel.define("X", op.x.dtype()).define("GATE", op.gate.dtype()).define("OUT", op.out.dtype());
    kernel.define("VEC", vec).dependent();
    let params = Params {
        x: kernel.address(&op.x)?,
        gate: kernel.address(&op.gate)?,
        out: kernel.address(&op.out)?,
        x_row: op.x.stride(0) as u64,
        x_head: op.x.stride(1) as u64,
        gate_row: op.gate.stride(0) as u64,
        gate_head: op.gate.stride(1) as u64,
        out_row: op.out.stride(0) as u64,
        out_head: op.out.stride(1) as u64,
        rows: rows as u32,
        heads: heads as u32,
        d: d as u32,
        padding: 0,
    };
    let blocks = (rows * heads * (d / vec)).div_ceil(128);
    kernel.launch([blocks as u32, 1, 1], 128, &params)
}
