//! Products with x rounded to bytes, for weights of grouped integers: four products an instruction.

use bytemuck::{Pod, Zeroable};

use super::super::{Math, Matmul, MatmulSpec};
use super::gemv::{Shape, has_subgroups};
use super::product::{Product, by_eights, products};
use crate::buffer::View;
use crate::select::Reject;
use crate::spec::{Caps, DType, Format, Grouped, KernelError};
use crate::wgpu::{Kernel, WgpuCx};

/// Neighbours along k that share a scale of x.
const BLOCK: usize = 32;

/// `Params` of `round.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RoundParams {
    m: u32,
    k: u32,
    x: u32,
    x_stride: u32,
    bytes: u32,
    notes: u32,
}

fn reject(spec: &MatmulSpec) -> Option<Reject> {
    if spec.math != Math::Int8 {
        return Some("rounds x to 8 bits, which math=int8 allows".into());
    }
    if let Some(why) = spec.reject_fused() {
        return Some(why);
    }
    match spec.w {
        Format::Grouped(Grouped { code, group, .. }) if code.is_int() => {
            let whole = group == 0 || group >= spec.k || (group as usize).is_multiple_of(BLOCK);
            (!whole).then(|| format!("for groups of multiples of {BLOCK}").into())
        }
        _ => Some("for integer weights".into()),
    }
}

pub(super) fn reject_gemv(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    reject(spec).or_else(|| super::gemv::reject(spec, caps))
}

pub(super) fn reject_gemm(spec: &MatmulSpec, _: &Caps) -> Option<Reject> {
    reject(spec)
}

/// Rounding x, then reading the weights or multiplying.
pub(super) fn est_gemv(spec: &MatmulSpec, _: &Caps) -> f32 {
    let bytes = spec.w.bytes(spec.n as usize, spec.k as usize) as f32;
    let macs = spec.m as f32 * spec.n as f32 * spec.k as f32;
    5.0 + (bytes / 800_000.0).max(macs / 16e6)
}

pub(super) fn est_gemm(spec: &MatmulSpec, _: &Caps) -> f32 {
    let groups = (spec.m as usize).div_ceil(64) * (spec.n as usize).div_ceil(64);
    let macs = (groups.max(128) * 64 * 64) as f32 * spec.k as f32;
    let bytes = spec.w.bytes(spec.n as usize, spec.k as usize) as f32;
    6.0 + (macs / 14e6).max(bytes / 800_000.0)
}

/// x as `round.wgsl` leaves it.
struct Rounded {
    bytes: View,
    notes: View,
}

fn round(product: &Product<'_>, cx: &mut WgpuCx<'_>) -> Result<Rounded, KernelError> {
    let x = &product.op.x;
    let (m, k) = (x.size(0), x.size(1));
    let blocks = k.div_ceil(BLOCK);
    let bytes = cx.scratch(1, m * blocks * BLOCK / 4, DType::I32)?;
    let notes = cx.scratch(2, m * blocks * 2, DType::F32)?;
    let mut kernel = cx.kernel("ops/matmul/round.wgsl");
    let mut params =
        RoundParams { m: m as u32, k: k as u32, x: 0, x_stride: x.stride(0) as u32, bytes: 0, notes: 0 };
    params.x = kernel.bind(0, x)?;
    params.bytes = kernel.bind(1, &bytes)? / 4;
    params.notes = kernel.bind(2, &notes)? / 2;
    let bits = product.op.w.format().grouped().map_or(8, |grouped| grouped.code.bits());
    kernel
        .define("X", x.dtype())
        .define("XVEC", u8::from(by_eights(params.x, params.x_stride, m, k, x.dtype())))
        .define("BITS", bits)
        .params(&params);
    kernel.dispatch_linear((m * blocks).div_ceil(64))?;
    Ok(Rounded { bytes, notes })
}

/// Rounds x once for each block of its rows, and calls `launch` for each product with it.
fn run(
    op: &Matmul,
    cx: &mut WgpuCx<'_>,
    launch: impl Fn(&Product<'_>, &Rounded, &mut WgpuCx<'_>) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    let mut rounded: Option<(usize, Rounded)> = None;
    products(op, cx, 1, |product, cx| {
        let rows = product.op.x.offset();
        match &rounded {
            Some((of, x)) if *of == rows => launch(product, x, cx),
            _ => {
                let (_, x) = rounded.insert((rows, round(product, cx)?));
                launch(product, x, cx)
            }
        }
    })
}

/// A launch of `path` with every operand bound.
fn kernel<'c, 'a>(
    product: &Product<'_>,
    x: &Rounded,
    cx: &'c mut WgpuCx<'a>,
    path: &'static str,
) -> Result<Kernel<'c, 'a>, KernelError> {
    let blocks = product.op.w.k().div_ceil(BLOCK) as u32;
    let (mut kernel, mut params) = product.kernel(cx, path, true)?;
    params.x = kernel.bind(0, &x.bytes)? / 4;
    params.x_stride = 2 * blocks;
    params.notes = kernel.bind(7, &x.notes)? / 2;
    params.notes_stride = blocks;
    kernel.params(&params);
    Ok(kernel)
}

pub(super) fn gemv(op: &Matmul, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let subgroup = has_subgroups(cx.caps());
    run(op, cx, |product, x, cx| {
        let shape = Shape::of(product, BLOCK);
        let mut kernel = kernel(product, x, cx, "ops/matmul/gemv_dot4.wgsl")?;
        shape.define(&mut kernel, subgroup);
        kernel.dispatch_linear(shape.groups(product))
    })
}

pub(super) fn gemm(op: &Matmul, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    run(op, cx, |product, x, cx| {
        let cols = if product.gated() { 32 } else { 64 };
        let grid = [product.op.x.size(0).div_ceil(64), product.columns().div_ceil(cols), 1];
        kernel(product, x, cx, "ops/matmul/gemm_dot4.wgsl")?.dispatch(grid.map(|axis| axis as u32))
    })
}
