//! CPU kernels.
//!
//! A row stays in the first-level cache while it is gone over: for the mean, the variance about it, the sums of its gradient,
//! and the result. Gradients of scale and shift are summed block of rows by block of rows.

use std::ops::Range;

use super::NormGrad;
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRow, InRows, grain};
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::Simd;
use crate::cpu::{CpuOp, CpuRows};
use crate::ops::NormKind;
use crate::ops::sums::{Blocks, GradRows, load, store};
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for NormGrad {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "rows-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

struct Rows<'a> {
    x: InRows<'a>,
    weight: Option<InRow<'a>>,
    d_out: InRows<'a>,
    dx: Option<GradRows<'a>>,
    d: usize,
    layer: bool,
    weight_offset: f32,
    eps: f32,
    sums: Blocks,
    /// Where in the sums of a block those for the scale are, and those for the shift.
    d_weight: Option<usize>,
    d_bias: Option<usize>,
}

fn launch(op: &NormGrad, cx: &CpuCx) -> Result<(), KernelError> {
    let (rows, d) = (op.x.size(0), op.x.size(1));
    if rows == 0 || d == 0 {
        return Ok(());
    }
    let mut scratch = Scratch::new();
    let wanted = usize::from(op.d_weight.is_some()) + usize::from(op.d_bias.is_some());
    let gradient = |view| GradRows::new(cx, view, &op.d_out);
    let weight = op.weight.as_ref().map(|view| InRows::new(cx, view)).transpose()?;
    let all = Rows {
        x: InRows::new(cx, &op.x)?,
        // SAFETY: weights are never written while an op reads them: gradients do not overlap them.
        weight: weight.map(|rows| unsafe { rows.row(0) }),
        d_out: InRows::new(cx, &op.d_out)?,
        dx: op.dx.as_ref().map(gradient).transpose()?,
        d,
        layer: op.kind == NormKind::Layer,
        weight_offset: op.weight_offset,
        eps: op.eps,
        sums: Blocks::new(&mut scratch, rows, wanted * d),
        d_weight: op.d_weight.as_ref().map(|_| 0),
        d_bias: op.d_bias.as_ref().map(|_| (wanted - 1) * d),
    };
    let each = if wanted == 0 { grain(rows, d, cx.pool.threads()) } else { all.sums.rows };
    cx.pool.run_ranges(rows, each, |range, _| grad_rows(cx.isa, &all, range));
    for (view, at) in [(&op.d_weight, all.d_weight), (&op.d_bias, all.d_bias)] {
        if let (Some(view), Some(at)) = (view, at) {
            // SAFETY: a vector is one row, and no thread is at work.
            all.sums.add_up(cx, at, d, unsafe { gradient(view)?.row(0) });
        }
    }
    Ok(())
}

/// Partial sums in flight: hides the latency of additions.
const SUMS: usize = 4;

#[inline(always)]
fn mean<S: Simd>(s: S, sums: [S::V; SUMS], d: usize) -> f32 {
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))) / d as f32
}

crate::simd_fn! {
    /// Gradients of rows, which are this thread's alone; if sums are asked for, they are a block.
    fn grad_rows<S>(s: S, p: &Rows<'_>, rows: Range<usize>) {
        let d = p.d;
        let [d_weight, d_bias] =
            [p.d_weight, p.d_bias].map(|at| at.map(|at| p.sums.of(rows.start / p.sums.rows).wrapping_add(at)));
        let offset = s.splat(p.weight_offset);
        for row in rows.clone() {
            // SAFETY: `spec` checked that all operands have these rows of `d` elements; ranges of rows are disjoint, an element of
            // `d_out` is read before it is written, and a block has room for the sums.
            unsafe {
                let (x, d_out) = (p.x.row(row), p.d_out.row(row));
                let mut sums = [s.zero(); SUMS];
                for (i, at) in (0..d).step_by(S::LANES).enumerate() {
                    let v = x.load(s, at, S::LANES.min(d - at));
                    let term = if p.layer { v } else { s.mul(v, v) };
                    sums[i % SUMS] = s.add(sums[i % SUMS], term);
                }
                let (mut about, mut square) = (0.0, mean(s, sums, d));
                if p.layer {
                    about = square;
                    let (about, mut sums) = (s.splat(about), [s.zero(); SUMS]);
                    for (i, at) in (0..d).step_by(S::LANES).enumerate() {
                        let n = S::LANES.min(d - at);
                        let v = s.sub(x.load(s, at, n), about);
                        let v = if n == S::LANES { v } else { s.select(s.first(n), v, s.zero()) };
                        sums[i % SUMS] = s.fma(v, v, sums[i % SUMS]);
                    }
                    square = mean(s, sums, d);
                }
                let (about, scale) = (s.splat(about), s.splat(1.0 / (square + p.eps).sqrt()));
                // Lanes beyond the row are zero in `d_out` and so in every product with it.
                let (mut all, mut along) = ([s.zero(); SUMS], [s.zero(); SUMS]);
                for (i, at) in (0..d).step_by(S::LANES).enumerate() {
                    let n = S::LANES.min(d - at);
                    let unit = s.mul(s.sub(x.load(s, at, n), about), scale);
                    let dy = d_out.load(s, at, n);
                    let g = match &p.weight {
                        Some(weight) => s.mul(dy, s.add(weight.load(s, at, n), offset)),
                        None => dy,
                    };
                    all[i % SUMS] = s.add(all[i % SUMS], g);
                    along[i % SUMS] = s.fma(g, unit, along[i % SUMS]);
                    for (sums, term) in [(d_weight, s.mul(dy, unit)), (d_bias, dy)] {
                        if let Some(sums) = sums {
                            let sum = sums.add(at);
                            let before = if row == rows.start { s.zero() } else { load(s, sum, n) };
                            store(s, sum, s.add(before, term), n);
                        }
                    }
                }
                let Some(dx) = &p.dx else { continue };
                let dx = dx.row(row);
                let all = s.splat(if p.layer { mean(s, all, d) } else { 0.0 });
                let along = s.splat(mean(s, along, d));
                for at in (0..d).step_by(S::LANES) {
                    let n = S::LANES.min(d - at);
                    let unit = s.mul(s.sub(x.load(s, at, n), about), scale);
                    let mut g = d_out.load(s, at, n);
                    if let Some(weight) = &p.weight {
                        g = s.mul(g, s.add(weight.load(s, at, n), offset));
                    }
                    dx.give(s, at, s.mul(scale, s.fnma(unit, along, s.sub(g, all))), n);
                }
            }
        }
    }
}
