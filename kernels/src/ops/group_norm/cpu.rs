//! CPU kernels.
//!
//! A task takes neighbouring whole groups of a picture, as many as fill a vector, and goes through the rows three times: for the
//! means, for the variances about them, so that nothing cancels, and for the result. Channels keep sums of their own until a
//! pass ends.

use super::GroupNorm;
use crate::cpu::CpuCx;
use crate::cpu::gemm::epilogue::activate;
use crate::cpu::rows::{InRow, InRows, OutRows};
use crate::cpu::{CpuOp, CpuRows};
use crate::ops::Activation;
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for GroupNorm {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "channels-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

struct Rows<'a> {
    x: InRows<'a>,
    weight: InRow<'a>,
    bias: InRow<'a>,
    out: OutRows<'a>,
    rows: usize,
    /// Channels of a group.
    each: usize,
    eps: f32,
    act: Activation,
}

fn launch(op: &GroupNorm, cx: &CpuCx) -> Result<(), KernelError> {
    if op.x.is_empty() {
        return Ok(());
    }
    let channels = op.x.size(1);
    // SAFETY: weights are never written while an op reads them: the output does not overlap them.
    let vector = |view| InRows::new(cx, view).map(|rows| unsafe { rows.row(0) });
    let all = Rows {
        x: InRows::new(cx, &op.x)?,
        weight: vector(&op.weight)?,
        bias: vector(&op.bias)?,
        out: OutRows::new(cx, &op.out)?,
        rows: op.rows,
        each: channels / op.groups,
        eps: op.eps,
        act: op.act,
    };
    let span = all.each * (cx.isa.lanes() / all.each).max(1);
    let spans = channels.div_ceil(span);
    cx.pool.run(op.pictures() * spans, |task, worker| {
        let (picture, first) = (task / spans, task % spans * span);
        let len = span.min(channels - first);
        of_groups(cx.isa, &all, picture * all.rows, first, worker.scratch.slice::<f32>(2 * len));
    });
    Ok(())
}

crate::simd_fn! {
    /// The groups of `buffer.len() / 2` channels from `first` on, of the rows of the picture that begins at row `top`. They are this
    /// thread's alone.
    fn of_groups<S>(s: S, p: &Rows<'_>, top: usize, first: usize, buffer: &mut [f32]) {
        let len = buffer.len() / 2;
        let (centres, sums) = buffer.split_at_mut(len);
        centres.fill(0.0);
        let count = (p.rows * p.each) as f32;
        for squares in [false, true] {
            sums.fill(0.0);
            for row in top..top + p.rows {
                // SAFETY: `spec` checked that there are these rows; `first + len` is no more than the channels.
                unsafe {
                    let x = p.x.row(row).skip(first);
                    for at in (0..len).step_by(S::LANES) {
                        let n = S::LANES.min(len - at);
                        let (centre, sum) = (centres.as_ptr().add(at), sums.as_mut_ptr().add(at));
                        let v = s.sub(x.load(s, at, n), s.load_n(centre, n));
                        let term = if squares { s.mul(v, v) } else { v };
                        s.store_n(sum, s.add(s.load_n(sum, n), term), n);
                    }
                }
            }
            for (sums, centres) in sums.chunks_mut(p.each).zip(centres.chunks_mut(p.each)) {
                let mean = sums.iter().sum::<f32>() / count;
                if squares {
                    sums.fill(1.0 / (mean + p.eps).sqrt());
                } else {
                    centres.fill(mean);
                }
            }
        }
        for row in top..top + p.rows {
            // SAFETY: as above; an element is read before it is written.
            unsafe {
                let (x, out) = (p.x.row(row).skip(first), p.out.row(row).part(first, len));
                let (weight, bias) = (p.weight.skip(first), p.bias.skip(first));
                for at in (0..len).step_by(S::LANES) {
                    let n = S::LANES.min(len - at);
                    let (centre, scale) = (centres.as_ptr().add(at), sums.as_ptr().add(at));
                    let v = s.mul(s.sub(x.load(s, at, n), s.load_n(centre, n)), s.load_n(scale, n));
                    let v = s.fma(v, weight.load(s, at, n), bias.load(s, at, n));
                    out.store(s, at, activate(s, p.act, v), n);
                }
            }
        }
    }
}
