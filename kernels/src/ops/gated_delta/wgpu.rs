//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::{GatedDelta, Heads};
use crate::select::Variant;
use crate::spec::KernelError;
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for GatedDelta {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant {
            name: "scan",
            reject: |spec, _| {
                (spec.d_k > MOST_KEYS).then(|| format!("keys of more than {MOST_KEYS} elements").into())
            },
            est_us: |_, _| 1.0,
            launch,
        }])
    }
}

/// Largest key whose rows of the state fit in registers.
const MOST_KEYS: u32 = 256;
/// Columns of a workgroup.
const COLUMNS: usize = 32;
/// Slices that share the rows of the state.
const SLICES: usize = 8;

/// `Params` of `scan.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    seqs: u32,
    heads_k: u32,
    heads_v: u32,
    d_k: u32,
    d_v: u32,
    slots_count: u32,
    qkv: u32,
    qkv_stride: u32,
    gates: u32,
    gates_stride: u32,
    decay: u32,
    decay_stride: u32,
    state: u32,
    starts: u32,
    lens: u32,
    slots: u32,
    out: u32,
    out_stride: u32,
    scale: f32,
}

fn launch(op: &GatedDelta, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let (rows, seqs) = (op.qkv.size(0), op.seqs.count());
    if rows == 0 || seqs == 0 {
        return Ok(());
    }
    let Heads { k, v, d_k, d_v } = op.heads()?;
    let mut kernel = cx.kernel("ops/gated_delta/scan.wgsl");
    kernel.define("X", op.qkv.dtype()).define("OUT", op.out.dtype()).define("EACH", d_k.div_ceil(SLICES));
    let params = Params {
        rows: rows as u32,
        seqs: seqs as u32,
        heads_k: k as u32,
        heads_v: v as u32,
        d_k: d_k as u32,
        d_v: d_v as u32,
        slots_count: op.state.size(0) as u32,
        qkv: kernel.bind(0, &op.qkv)?,
        qkv_stride: op.qkv.stride(0) as u32,
        gates: kernel.bind(1, &op.gates)?,
        gates_stride: op.gates.stride(0) as u32,
        decay: kernel.bind(2, &op.decay)?,
        decay_stride: op.decay.stride(0) as u32,
        state: kernel.bind(3, &op.state)?,
        starts: kernel.bind(4, &op.seqs.starts)?,
        lens: kernel.bind(5, &op.seqs.lens)?,
        slots: kernel.bind(6, &op.seqs.slots)?,
        out: kernel.bind(7, &op.out)?,
        out_stride: op.out.stride(0) as u32,
        scale: 1.0 / (d_k as f32).sqrt(),
    };
    kernel.params(&params);
    kernel.dispatch_linear(seqs * v * d_v.div_ceil(COLUMNS))
}
