//! CPU kernels.

use std::ops::Range;

use super::{AdamW, AdamWStep};
use crate::cpu::rows::{InRows, OutRows};
use crate::cpu::{CpuCx, CpuOp, CpuRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for AdamW {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "flat-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

/// Parameters of a piece of work.
const GRAIN: usize = 1 << 14;

fn launch(op: &AdamW, cx: &CpuCx) -> Result<(), KernelError> {
    let from = [&op.param, &op.grad, &op.m, &op.v].map(|view| InRows::new(cx, view));
    let to = [&op.param, &op.grad, &op.m, &op.v].map(|view| OutRows::new(cx, view));
    let ([param, grad, m, v], [to_param, to_grad, to_m, to_v]) = (from, to);
    let (from, to) = ([param?, grad?, m?, v?], [to_param?, to_grad?, to_m?, to_v?]);
    cx.pool.run_ranges(op.param.len(), GRAIN, |range, _| step(cx.isa, &from, &to, op.step, range));
    Ok(())
}

crate::simd_fn! {
    /// The range is this thread's alone.
    fn step<S>(s: S, from: &[InRows<'_>; 4], to: &[OutRows<'_>; 4], step: AdamWStep, range: Range<usize>) {
        let (beta1, rest1) = (s.splat(step.beta1), s.splat(1.0 - step.beta1));
        let (beta2, rest2) = (s.splat(step.beta2), s.splat(1.0 - step.beta2));
        let (scale, eps) = (s.splat(step.scale), s.splat(step.eps));
        let kept = s.splat(1.0 - step.rate * step.decay);
        let rate = s.splat(step.rate / step.correction1);
        let root = s.splat(1.0 / step.correction2.sqrt());
        for at in range.clone().step_by(S::LANES) {
            let n = S::LANES.min(range.end - at);
            // SAFETY: `spec` checked that all have these elements.
            unsafe {
                let [param, grad, m, v] = [0, 1, 2, 3].map(|i: usize| from[i].row(0).load(s, at, n));
                let grad = s.mul(grad, scale);
                let m = s.fma(beta1, m, s.mul(rest1, grad));
                let v = s.fma(beta2, v, s.mul(rest2, s.mul(grad, grad)));
                let bottom = s.fma(s.sqrt(v), root, eps);
                let param = s.fnma(rate, s.div(m, bottom), s.mul(param, kept));
                for (to, value) in to.iter().zip([param, s.zero(), m, v]) {
                    to.row(0).store(s, at, value, n);
                }
            }
        }
    }
}
