//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::{GatedDelta, Heads};
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CudaOp for GatedDelta {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant {
            name: "scan",
            reject: |spec, _| {
                (spec.d_k > MOST_KEYS).then(|| format!("keys of more than {MOST_KEYS} elements").into())
            },
            est_us: |spec, _| 3.0 + spec.most as f32,
            launch,
        }])
    }
}

/// Largest key whose rows of the state fit in registers.
const MOST_KEYS: u32 = 256;
/// Warps of a block, which share the rows of the state.
const SLICES: usize = 8;

/// `Params` of `scan.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    qkv: u64,
    gates: u64,
    decay: u64,
    state: u64,
    starts: u64,
    lens: u64,
    slots: u64,
    out: u64,
    qkv_stride: u64,
    gates_stride: u64,
    out_stride: u64,
    rows: u32,
    heads_k: u32,
    heads_v: u32,
    d_k: u32,
    d_v: u32,
    slots_count: u32,
    decay_stride: u32,
    scale: f32,
}

fn launch(op: &GatedDelta, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (rows, seqs) = (op.qkv.size(0), op.seqs.count());
    if rows == 0 || seqs == 0 {
        return Ok(());
    }
    let Heads { k, v, d_k, d_v } = op.heads()?;
    let each = d_k.div_ceil(SLICES);
    let mut kernel = cx.kernel("ops/gated_delta/scan.cu");
    kernel.define("X", op.qkv.dtype()).define("OUT", op.out.dtype()).define("EACH", each).dependent();
    kernel.shared((2 * each * SLICES + 2 * 256 + 2 * SLICES) * 4);
    let params = Params {
        qkv: kernel.address(&op.qkv)?,
        gates: kernel.address(&op.gates)?,
        decay: kernel.address(&op.decay)?,
        state: kernel.address(&op.state)?,
        starts: kernel.address(&op.seqs.starts)?,
        lens: kernel.address(&op.seqs.lens)?,
        slots: kernel.address(&op.seqs.slots)?,
        out: kernel.address(&op.out)?,
        qkv_stride: op.qkv.stride(0) as u64,
        gates_stride: op.gates.stride(0) as u64,
        out_stride: op.out.stride(0) as u64,
        rows: rows as u32,
        heads_k: k as u32,
        heads_v: v as u32,
        d_k: d_k as u32,
        d_v: d_v as u32,
        slots_count: op.state.size(0) as u32,
        decay_stride: op.decay.stride(0) as u32,
        scale: 1.0 / (d_k as f32).sqrt(),
    };
    let grid = seqs * v * d_v.div_ceil(32);
    kernel.launch([grid as u32, 1, 1], 32 * SLICES as u32, &params)
}
