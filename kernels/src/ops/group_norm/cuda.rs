//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::{GroupNorm, GroupNormSpec};
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows, value_type};
use crate::select::Variant;
use crate::spec::{Caps, KernelError};

impl CudaOp for GroupNorm {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "groups", reject: |_, _| None, est_us, launch }])
    }
}

/// A launch, and the traffic: the input comes three times.
fn est_us(spec: &GroupNormSpec, caps: &Caps) -> f32 {
    let elements = spec.pictures as f32 * spec.rows as f32 * spec.channels as f32;
    let bytes = 3.0 * spec.x.size() as f32 + spec.out.size() as f32;
    2.0 + elements * bytes / (caps.cuda.read_gbps * 1e3)
}

/// Threads of a block.
const THREADS: usize = 512;

/// `Params` of `groups.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    weight: u64,
    bias: u64,
    out: u64,
    x_stride: i64,
    out_stride: i64,
    rows: u32,
    each: u32,
    groups: u32,
    x_type: u32,
    weight_type: u32,
    bias_type: u32,
    out_type: u32,
    act: u32,
    eps: f32,
    padding: u32,
}

fn launch(op: &GroupNorm, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    if op.x.is_empty() {
        return Ok(());
    }
    let each = op.x.size(1) / op.groups;
    let mut kernel = cx.kernel("ops/group_norm/groups.cu");
    // Groups begin at multiples of their own size.
    let aligned = kernel.all_aligned([&op.x, &op.out, &op.weight, &op.bias])?;
    let vec = [8, 4, 2].into_iter().find(|&vec| aligned && each.is_multiple_of(vec)).unwrap_or(1);
    kernel.define("VEC", vec).define("THREADS", THREADS).shared(THREADS / 32 * 4).dependent();
    let params = Params {
        x: kernel.address(&op.x)?,
        weight: kernel.address(&op.weight)?,
        bias: kernel.address(&op.bias)?,
        out: kernel.address(&op.out)?,
        x_stride: op.x.stride(0) as i64,
        out_stride: op.out.stride(0) as i64,
        rows: op.rows as u32,
        each: each as u32,
        groups: op.groups as u32,
        x_type: value_type(Some(&op.x)),
        weight_type: value_type(Some(&op.weight)),
        bias_type: value_type(Some(&op.bias)),
        out_type: value_type(Some(&op.out)),
        act: op.act as u32,
        eps: op.eps,
        padding: 0,
    };
    kernel.launch([(op.pictures() * op.groups) as u32, 1, 1], THREADS as u32, &params)
}
