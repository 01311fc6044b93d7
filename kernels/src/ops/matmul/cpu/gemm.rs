//! Products for many rows: packed panels.

use super::args::with_args;
use crate::cpu::CpuCx;
use crate::cpu::gemm::{gemm_exact, products_on_tiles};
use crate::cpu::isa::Isa;
use crate::ops::Matmul;
use crate::ops::matmul::{Math, MatmulSpec};
use crate::select::Reject;
use crate::spec::{Caps, DType, Format, Grouped, KernelError};

/// Exact products run under every kind of math: it says what may be rounded, not what must be.
pub(super) fn reject_f32(spec: &MatmulSpec, _: &Caps) -> Option<Reject> {
    spec.reject_fused()
}

/// Multiplying at `rate` products per microsecond, and decoding the weights once.
fn est(spec: &MatmulSpec, caps: &Caps, rate: f32) -> f32 {
    let weights = spec.n as f32 * spec.k as f32;
    (spec.m as f32 * weights / rate + weights / 2_000.0) / caps.units as f32
}

pub(super) fn est_f32(spec: &MatmulSpec, caps: &Caps) -> f32 {
    est(spec, caps, 30_000.0)
}

pub(super) fn f32(op: &Matmul, cx: &CpuCx) -> Result<(), KernelError> {
    with_args(op, cx, |args, _| {
        // SAFETY: `with_args` gives operands that satisfy the contract.
        unsafe { gemm_exact(cx.isa, &cx.pool, args, false) }
        Ok(())
    })
}

pub(super) fn reject_bf16(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    if spec.math != Math::Bf16 {
        return Some("rounds x to bf16, which math=bf16 allows".into());
    }
    if spec.w != Format::Dense(DType::BF16) {
        return Some("for bf16 weights".into());
    }
    spec.reject_fused().or_else(|| (!caps.bf16_dot).then(|| "the CPU has no AVX512_BF16".into()))
}

pub(super) fn est_bf16(spec: &MatmulSpec, caps: &Caps) -> f32 {
    let gains = Isa::at(caps.isa).is_ok_and(Isa::bf16_gains);
    est(spec, caps, if gains { 60_000.0 } else { 14_000.0 })
}

pub(super) fn bf16(op: &Matmul, cx: &CpuCx) -> Result<(), KernelError> {
    with_args(op, cx, |args, _| {
        // SAFETY: `with_args` gives operands that satisfy the contract.
        unsafe {
            if !crate::cpu::gemm::gemm_bf16(cx.isa, &cx.pool, args) {
                crate::cpu::gemm::gemm(cx.isa, &cx.pool, args);
            }
        }
        Ok(())
    })
}

/// Weights of any format. What the rounding of `x` to 8 bits may change, that of bf16 changes by no more.
pub(super) fn reject_amx(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    match (spec.math, spec.w) {
        (Math::Bf16, _) => {}
        (Math::Int8, Format::Grouped(Grouped { code, .. })) if code.is_int() => {}
        _ => {
            return Some(
                "rounds x to bf16, which math=bf16 allows, and math=int8 with integer weights".into(),
            );
        }
    }
    reject_amx_f32(spec, caps)
}

/// Exact products of any types.
pub(super) fn reject_amx_f32(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    spec.reject_fused().or_else(|| reject_tiles(caps))
}

/// Why there are no products on tiles, where there are none.
pub(in crate::ops) fn reject_tiles(caps: &Caps) -> Option<Reject> {
    (!caps.amx).then(|| "the CPU has no AMX, or not for this process".into())
}

/// As [`est`], where packing `pack` weights a microsecond is most of the time for few rows: rows are streamed up to some 10 of bf16, and
/// codes, which are split as well, are for tiles from about 32 rows on.
fn est_tiles(spec: &MatmulSpec, caps: &Caps, rate: f32, pack: f32) -> f32 {
    let weights = spec.n as f32 * spec.k as f32;
    (spec.m as f32 * weights / rate + weights / pack) / caps.units as f32
}

pub(super) fn est_amx(spec: &MatmulSpec, caps: &Caps) -> f32 {
    match (spec.w, spec.math) {
        (Format::Dense(DType::BF16), _) => est_tiles(spec, caps, 600_000.0, 1_400.0),
        // Beside rows that round `x` to 8 bits, which are faster below some 400.
        (_, Math::Int8) => est_tiles(spec, caps, 200_000.0, 340.0),
        _ => est_tiles(spec, caps, 300_000.0, 800.0),
    }
}

pub(super) fn est_amx_f32(spec: &MatmulSpec, caps: &Caps) -> f32 {
    let pack = if spec.w == Format::Dense(DType::BF16) { 1_400.0 } else { 700.0 };
    est_tiles(spec, caps, 600_000.0 / products_on_tiles(spec.x, spec.w) as f32, pack)
}

pub(super) fn amx(op: &Matmul, cx: &CpuCx) -> Result<(), KernelError> {
    with_args(op, cx, |args, _| {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `with_args` gives operands that satisfy the contract.
        if unsafe { crate::cpu::gemm::gemm_amx(cx.isa, &cx.pool, args, true) } {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe { crate::cpu::gemm::gemm(cx.isa, &cx.pool, args) }
        Ok(())
    })
}

pub(super) fn amx_f32(op: &Matmul, cx: &CpuCx) -> Result<(), KernelError> {
    with_args(op, cx, |args, _| {
        // SAFETY: `with_args` gives operands that satisfy the contract.
        unsafe { gemm_exact(cx.isa, &cx.pool, args, true) }
        Ok(())
    })
}

pub(super) fn reject_int8(spec: &MatmulSpec, _: &Caps) -> Option<Reject> {
    if spec.math != Math::Int8 {
        return Some("rounds x to 8 bits, which math=int8 allows".into());
    }
    if let Some(why) = spec.reject_fused() {
        return Some(why);
    }
    match spec.w {
        Format::Grouped(Grouped { code, group, .. }) if code.is_int() => {
            let whole = group == 0 || group >= spec.k;
            let fits = whole || matches!(group, 32 | 64) || group % 128 == 0;
            (!fits).then(|| "for groups of 32, 64 or multiples of 128".into())
        }
        _ => Some("for integer weights".into()),
    }
}

pub(super) fn est_int8(spec: &MatmulSpec, caps: &Caps) -> f32 {
    est(spec, caps, if caps.int8_dot { 90_000.0 } else { 45_000.0 })
}

pub(super) fn int8(op: &Matmul, cx: &CpuCx) -> Result<(), KernelError> {
    with_args(op, cx, |args, _| {
        // SAFETY: `with_args` gives operands that satisfy the contract.
        unsafe {
            if !crate::cpu::gemm::gemm_int8(cx.isa, &cx.pool, args) {
                crate::cpu::gemm::gemm(cx.isa, &cx.pool, args);
            }
        }
        Ok(())
    })
}
