//! CUDA kernels.

use bytemuck::{Pod, Zeroable};

use super::ExpertMatmul;
use crate::cuda::{CudaCx, CudaOp, CudaRows, WeightParams, value_type};
use crate::ops::matmul::Activation;
use crate::select::Variant;
use crate::spec::{DType, KernelError};

impl CudaOp for ExpertMatmul {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "rows", reject: |spec, _| spec.w.reject_k_major(), est_us: |_, _| 3.0, launch }])
    }
}

/// Columns of the result that a block makes: one a warp.
const COLUMNS: usize = 4;

/// `Params` of `experts.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    w: WeightParams,
    x: u64,
    ids: u64,
    out: u64,
    x_stride: i64,
    out_stride: i64,
    x_type: u32,
    out_type: u32,
    share: u32,
    experts: u32,
    n: u32,
    n_out: u32,
    k: u32,
    first: u32,
    rows: u32,
    act: u32,
}

/// `Params` of `gate.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GateParams {
    sums: u64,
    out: u64,
    out_stride: i64,
    out_type: u32,
    n_out: u32,
    count: u32,
    act: u32,
}

/// Where gate and up of an expert are not of one part, their sums come together in working memory.
fn launch(op: &ExpertMatmul, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    if op.out.is_empty() {
        return Ok(());
    }
    if !op.gated || op.whole_experts() {
        return products(op, cx);
    }
    let (choices, n) = (op.ids.size(0), op.n());
    let sums = cx.scratch(0, choices * n, DType::F32)?.reshape(&[choices, n])?;
    products(&ExpertMatmul { gated: false, act: Activation::None, out: sums.clone(), ..op.clone() }, cx)?;
    let mut kernel = cx.kernel("ops/expert_matmul/gate.cu");
    kernel.dependent();
    let count = choices * op.n_out();
    let params = GateParams {
        sums: kernel.address(&sums)?,
        out: kernel.address(&op.out)?,
        out_stride: op.out.stride(0) as i64,
        out_type: value_type(Some(&op.out)),
        n_out: op.n_out() as u32,
        count: count as u32,
        act: op.act as u32,
    };
    kernel.launch([count.div_ceil(128) as u32, 1, 1], 128, &params)
}

/// A launch for each part of the matrix: it makes the columns whose rows the part has.
fn products(op: &ExpertMatmul, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let choices = op.ids.size(0);
    let mut first = 0;
    for part in op.w.parts() {
        let mut kernel = cx.kernel("ops/expert_matmul/experts.cu");
        kernel.define("GATED", op.gated).dependent();
        let w = kernel.weight(op.w.format(), op.w.k(), part)?;
        let params = Params {
            w,
            x: kernel.address(&op.x)?,
            ids: kernel.address(&op.ids)?,
            out: kernel.address(&op.out)?,
            x_stride: op.x.stride(0) as i64,
            out_stride: op.out.stride(0) as i64,
            x_type: value_type(Some(&op.x)),
            out_type: value_type(Some(&op.out)),
            share: op.share as u32,
            experts: op.experts as u32,
            n: op.n() as u32,
            n_out: op.n_out() as u32,
            k: op.w.k() as u32,
            first: first as u32,
            rows: part.rows as u32,
            act: op.act as u32,
        };
        let blocks = choices * op.n_out().div_ceil(COLUMNS);
        kernel.launch([blocks as u32, 1, 1], 32 * COLUMNS as u32, &params)?;
        first += part.rows;
    }
    Ok(())
}
