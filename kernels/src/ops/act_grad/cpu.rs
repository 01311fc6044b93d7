//! CPU kernels.

use std::ops::Range;

use super::ActGrad;
use crate::cpu::CpuCx;
use crate::cpu::gemm::epilogue::activate;
use crate::cpu::rows::{InRows, OutRows, grain};
use crate::cpu::simd::{Simd, math};
use crate::cpu::{CpuOp, CpuRows};
use crate::ops::Activation;
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for ActGrad {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "rows-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

/// `act(x)` and the derivative there.
#[inline(always)]
pub(in crate::ops) fn with_slope<S: Simd>(s: S, act: Activation, x: S::V) -> (S::V, S::V) {
    let one = s.splat(1.0);
    match act {
        Activation::None => (x, one),
        Activation::Relu => {
            let positive = s.lt(s.zero(), x);
            (activate(s, act, x), s.select(positive, one, s.zero()))
        }
        Activation::Silu => sigmoid(s, x, within(s, x, 128.0), s.splat(1.0), s.splat(1.0)),
        Activation::QuickGelu => sigmoid(s, x, within(s, x, 128.0), s.splat(1.702), s.splat(1.702)),
        Activation::GeluTanh => {
            // (1 + tanh u) / 2 = sigmoid(2 u)
            let near = within(s, x, 16.0);
            let square = s.mul(near, near);
            let t = s.fma(square, s.splat(0.071_354_82), s.splat(1.595_769));
            sigmoid(s, x, near, t, s.fma(square, s.splat(0.214_064_47), s.splat(1.595_769)))
        }
        Activation::GeluErf => {
            let near = within(s, x, 16.0);
            let half = s.splat(0.5);
            let part = s.fma(math::erf(s, s.mul(near, s.splat(std::f32::consts::FRAC_1_SQRT_2))), half, half);
            let density = math::exp(s, s.mul(s.mul(near, near), s.splat(-0.5)));
            let density = s.mul(density, s.splat(0.398_942_3));
            (activate(s, act, x), s.fma(near, density, part))
        }
    }
}

/// `x`, or the nearer of `-most` and `most`: beyond, where a derivative is 0 or 1, products of `x` and of an exponential that is zero need
/// not be numbers.
#[inline(always)]
fn within<S: Simd>(s: S, x: S::V, most: f32) -> S::V {
    s.select(s.lt(s.splat(most), s.abs(x)), s.copysign(s.splat(most), x), x)
}

/// `x sigmoid(t)` and its derivative by `x`, where `t = over near` and has the derivative `slope`; `near` is `x` where `sigmoid(t)` is
/// neither 0 nor 1.
#[inline(always)]
fn sigmoid<S: Simd>(s: S, x: S::V, near: S::V, over: S::V, slope: S::V) -> (S::V, S::V) {
    let one = s.splat(1.0);
    let t = s.mul(near, over);
    let e = math::exp(s, s.neg(s.abs(t)));
    let large = s.div(one, s.add(one, e));
    let small = s.mul(e, large);
    let part = s.select(s.lt(t, s.zero()), small, large);
    // The product is zero where x is infinite and negative.
    let value = s.select(s.lt(s.zero(), part), s.mul(x, part), s.mul(near, part));
    (value, s.fma(s.mul(near, slope), s.mul(small, large), part))
}

struct Rows<'a> {
    z: InRows<'a>,
    d_out: InRows<'a>,
    dz: OutRows<'a>,
    n_out: usize,
    act: Activation,
    gated: bool,
}

fn launch(op: &ActGrad, cx: &CpuCx) -> Result<(), KernelError> {
    let (rows, n_out) = (op.z.size(0), op.d_out.size(1));
    let (act, gated) = (op.act, op.gated);
    let (z, d_out) = (InRows::new(cx, &op.z)?, InRows::new(cx, &op.d_out)?);
    let all = Rows { z, d_out, dz: OutRows::new(cx, &op.dz)?, n_out, act, gated };
    cx.pool.run_ranges(rows, grain(rows, n_out, cx.pool.threads()), |range, _| of_rows(cx.isa, &all, range));
    Ok(())
}

crate::simd_fn! {
    /// Gradients of rows, which are this thread's alone.
    fn of_rows<S>(s: S, p: &Rows<'_>, rows: Range<usize>) {
        for row in rows {
            // SAFETY: `spec` checked that all operands have these rows, of `n_out` elements or twice as many; ranges of rows are disjoint,
            // and an element of `z` is read before it is written.
            unsafe {
                let (z, d_out, dz) = (p.z.row(row), p.d_out.row(row), p.dz.row(row));
                for at in (0..p.n_out).step_by(S::LANES) {
                    let n = S::LANES.min(p.n_out - at);
                    let (value, slope) = with_slope(s, p.act, z.load(s, at, n));
                    let mut d_gate = d_out.load(s, at, n);
                    if p.gated {
                        let by = z.load(s, p.n_out + at, n);
                        dz.store(s, p.n_out + at, s.mul(d_gate, value), n);
                        d_gate = s.mul(d_gate, by);
                    }
                    dz.store(s, at, s.mul(d_gate, slope), n);
                }
            }
        }
    }
}
