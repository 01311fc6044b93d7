//! Products for many rows: packed panels.

use super::args::with_args;
use crate::cpu::CpuCx;
use crate::ops::Matmul;
use crate::ops::matmul::MatmulSpec;
use crate::select::Reject;
use crate::spec::{Caps, KernelError};

/// Exact products run under every kind of math: it says what may be rounded, not what must be.
pub(super) fn reject_f32(_: &MatmulSpec, _: &Caps) -> Option<Reject> {
    None
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
        unsafe { crate::cpu::gemm::gemm(cx.isa, &cx.pool, args) }
        Ok(())
    })
}
