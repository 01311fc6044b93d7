//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::{MOST, Route, Scores};
use crate::cuda::{CudaCx, CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CudaOp for Route {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "rows", reject: |_, _| None, est_us: |_, _| 3.0, launch }])
    }
}

/// `Params` of `route.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    logits: u64,
    bias: u64,
    factors: u64,
    ids: u64,
    weights: u64,
    logits_stride: u64,
    experts: u32,
    top: u32,
    normalize: u32,
    scale: f32,
}

fn launch(op: &Route, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let rows = op.logits.size(0);
    if rows == 0 {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/route/route.cu");
    kernel.define("X", op.logits.dtype()).define("SOFTMAX", op.scores == Scores::Softmax);
    kernel.shared(2 * MOST * 4).dependent();
    let params = Params {
        logits: kernel.address(&op.logits)?,
        bias: kernel.address_or_null(op.bias.as_ref())?,
        factors: kernel.address_or_null(op.factors.as_ref())?,
        ids: kernel.address(&op.ids)?,
        weights: kernel.address(&op.weights)?,
        logits_stride: op.logits.stride(0) as u64,
        experts: op.logits.size(1) as u32,
        top: op.ids.size(1) as u32,
        normalize: u32::from(op.normalize),
        scale: op.scale,
    };
    kernel.launch([rows as u32, 1, 1], 32, &params)
}
