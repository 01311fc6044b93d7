//! CPU kernels.
//!
//! A row is summed with `add` into an f32 buffer that stays in the first-level cache; mean, variance (about the mean, so
//! that nothing cancels) and the result are passes over that buffer. In-place forms need nothing more: a row is read whole
//! before it is written.

use std::ops::Range;

use super::{Norm, NormKind};
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRow, InRows, OutRows, grain};
use crate::cpu::simd::Simd;
use crate::cpu::{CpuOp, CpuRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for Norm {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "rows-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

struct Rows<'a> {
    x: InRows<'a>,
    add: Option<InRows<'a>>,
    sum: Option<OutRows<'a>>,
    weight: Option<InRow<'a>>,
    bias: Option<InRow<'a>>,
    out: OutRows<'a>,
    layer: bool,
    weight_offset: f32,
    eps: f32,
}

fn launch(op: &Norm, cx: &CpuCx) -> Result<(), KernelError> {
    let (rows, d) = (op.x.size(0), op.x.size(1));
    let input = |view| InRows::new(cx, view);
    // SAFETY: weights are never written while an op reads them: outputs do not overlap them.
    let vector = |view| input(view).map(|rows| unsafe { rows.row(0) });
    let all = Rows {
        x: input(&op.x)?,
        add: op.add.as_ref().map(input).transpose()?,
        sum: op.sum.as_ref().map(|view| OutRows::new(cx, view)).transpose()?,
        weight: op.weight.as_ref().map(vector).transpose()?,
        bias: op.bias.as_ref().map(vector).transpose()?,
        out: OutRows::new(cx, &op.out)?,
        layer: op.kind == NormKind::Layer,
        weight_offset: op.weight_offset,
        eps: op.eps,
    };
    if d == 0 {
        return Ok(());
    }
    cx.pool.run_ranges(rows, grain(rows, d, cx.pool.threads()), |range, worker| {
        norm_rows(cx.isa, &all, range, worker.scratch.slice::<f32>(d));
    });
    Ok(())
}

/// Partial sums in flight: hides the latency of additions.
const SUMS: usize = 4;

#[inline(always)]
fn total<S: Simd>(s: S, sums: [S::V; SUMS]) -> f32 {
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

crate::simd_fn! {
    /// Normalizes rows of `buffer.len()` elements. The rows are this thread's alone.
    fn norm_rows<S>(s: S, p: &Rows<'_>, rows: Range<usize>, buffer: &mut [f32]) {
        let d = buffer.len();
        let buffer = buffer.as_mut_ptr();
        for row in rows {
            // SAFETY: `spec` checked that all operands have these rows of `d` elements; ranges of rows are disjoint.
            unsafe {
                let (x, add) = (p.x.row(row), p.add.as_ref().map(|add| add.row(row)));
                let stored = p.sum.as_ref().map(|sum| sum.row(row));
                let mut sums = [s.zero(); SUMS];
                for (i, at) in (0..d).step_by(S::LANES).enumerate() {
                    let n = S::LANES.min(d - at);
                    let mut v = x.load(s, at, n);
                    if let Some(add) = &add {
                        v = s.add(v, add.load(s, at, n));
                    }
                    if let Some(stored) = &stored {
                        stored.store(s, at, v, n);
                    }
                    s.store_n(buffer.add(at), v, n);
                    let term = if p.layer { v } else { s.mul(v, v) };
                    sums[i % SUMS] = s.add(sums[i % SUMS], term);
                }
                let (mut mean, mut square) = (0.0, total(s, sums) / d as f32);
                if p.layer {
                    mean = square;
                    let (about, mut sums) = (s.splat(mean), [s.zero(); SUMS]);
                    for (i, at) in (0..d).step_by(S::LANES).enumerate() {
                        let n = S::LANES.min(d - at);
                        let v = s.sub(s.load_n(buffer.add(at), n), about);
                        let v = if n == S::LANES { v } else { s.select(s.first(n), v, s.zero()) };
                        sums[i % SUMS] = s.fma(v, v, sums[i % SUMS]);
                    }
                    square = total(s, sums) / d as f32;
                }
                let (mean, scale) = (s.splat(mean), s.splat(1.0 / (square + p.eps).sqrt()));
                let (offset, out) = (s.splat(p.weight_offset), p.out.row(row));
                for at in (0..d).step_by(S::LANES) {
                    let n = S::LANES.min(d - at);
                    let mut v = s.mul(s.sub(s.load_n(buffer.add(at), n), mean), scale);
                    if let Some(weight) = &p.weight {
                        v = s.mul(v, s.add(weight.load(s, at, n), offset));
                    }
                    if let Some(bias) = &p.bias {
                        v = s.add(v, bias.load(s, at, n));
                    }
                    out.store(s, at, v, n);
                }
            }
        }
    }
}
