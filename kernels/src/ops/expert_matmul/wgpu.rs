//! WGSL kernels.

use bytemuck::{Pod, Zeroable};

use super::ExpertMatmul;
use crate::ops::matmul::Activation;
use crate::select::Variant;
use crate::spec::{DType, KernelError};
use crate::wgpu::{Kernel, WeightParams, WgpuCx};
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for ExpertMatmul {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant { name: "rows", reject: |spec, _| spec.w.reject_k_major(), est_us: |_, _| 1.0, launch }])
    }
}

/// Columns of the result that a workgroup makes.
const COLUMNS: usize = 4;

/// `Params` of `experts.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    m: u32,
    share: u32,
    experts: u32,
    /// Rows of an expert.
    n: u32,
    n_out: u32,
    k: u32,
    /// First row of the part, and its rows.
    first: u32,
    rows: u32,
    x: u32,
    x_stride: u32,
    ids: u32,
    out: u32,
    out_stride: u32,
    weight: WeightParams,
}

/// `Params` of `gate.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GateParams {
    m: u32,
    n_out: u32,
    sums: u32,
    out: u32,
    out_stride: u32,
}

/// Where gate and up of an expert are not of one part, their sums come together in working memory.
fn launch(op: &ExpertMatmul, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    if op.out.is_empty() {
        return Ok(());
    }
    if !op.gated || op.whole_experts() {
        return products(op, cx);
    }
    let (choices, n) = (op.ids.size(0), op.n());
    let sums = cx.scratch(0, choices * n, DType::F32)?.reshape(&[choices, n])?;
    products(&ExpertMatmul { gated: false, act: Activation::None, out: sums.clone(), ..op.clone() }, cx)?;
    let mut kernel = cx.kernel("ops/expert_matmul/gate.wgsl");
    epilogue(&mut kernel, op);
    let params = GateParams {
        m: choices as u32,
        n_out: op.n_out() as u32,
        sums: kernel.bind(0, &sums)?,
        out: kernel.bind(6, &op.out)?,
        out_stride: op.out.stride(0) as u32,
    };
    kernel.params(&params);
    kernel.dispatch_linear((choices * op.n_out()).div_ceil(64))
}

/// Values that `epilogue.wgsl` is included with.
fn epilogue(kernel: &mut Kernel<'_, '_>, op: &ExpertMatmul) {
    let act = match op.act {
        Activation::None => "none",
        Activation::GeluTanh => "gelu_tanh",
        Activation::GeluErf => "gelu_erf",
        Activation::QuickGelu => "quick_gelu",
        Activation::Relu => "relu",
        Activation::Silu => "silu",
    };
    kernel.define("OUT", op.out.dtype()).define("ACT", act).define("GATED", u8::from(op.gated));
    kernel.define("BIAS", "none").define("RESIDUAL", "none").define("PARTIAL", 0);
}

/// A launch for each part of the matrix: it makes the columns whose rows the part has.
fn products(op: &ExpertMatmul, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let choices = op.ids.size(0);
    let mut first = 0;
    for part in op.w.parts() {
        let mut kernel = cx.kernel("ops/expert_matmul/experts.wgsl");
        epilogue(&mut kernel, op);
        kernel.define("X", op.x.dtype()).define("COLUMNS", COLUMNS);
        let weight = kernel.weight(op.w.format(), op.w.k(), part, false)?;
        let params = Params {
            m: choices as u32,
            share: op.share as u32,
            experts: op.experts as u32,
            n: op.n() as u32,
            n_out: op.n_out() as u32,
            k: op.w.k() as u32,
            first: first as u32,
            rows: part.rows as u32,
            x: kernel.bind(3, &op.x)?,
            x_stride: op.x.stride(0) as u32,
            ids: kernel.bind(4, &op.ids)?,
            out: kernel.bind(6, &op.out)?,
            out_stride: op.out.stride(0) as u32,
            weight,
        };
        kernel.params(&params);
        kernel.dispatch_linear(choices * op.n_out().div_ceil(COLUMNS))?;
        first += part.rows;
    }
    Ok(())
}
