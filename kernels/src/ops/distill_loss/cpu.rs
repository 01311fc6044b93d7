//! CPU kernels: the largest logits of a row, the sums of powers, then the gradient.

use std::ops::Range;

use super::DistillLoss;
use crate::cpu::rows::{InRow, InRows, OutRows, grain};
use crate::cpu::simd::{Simd, math};
use crate::cpu::{CpuCx, CpuOp, CpuRows};
use crate::ops::index::Indices;
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for DistillLoss {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "rows-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

/// Below it powers of e are zero: differences that are infinite are held here, where they have no part.
const LOWEST: f32 = -104.0;

fn launch(op: &DistillLoss, cx: &CpuCx) -> Result<(), KernelError> {
    let (rows, classes) = (op.x.size(0), op.x.size(1));
    let wanted: Vec<bool> = Indices::new(cx, &op.labels)?.iter().map(|label| label >= 0).collect();
    let all = Rows {
        x: InRows::new(cx, &op.x)?,
        teacher: InRows::new(cx, &op.teacher)?,
        wanted: &wanted,
        temperature: op.temperature,
        scale: op.scale,
        loss: OutRows::new(cx, &op.loss)?,
        before: op.dx.as_ref().filter(|_| op.add).map(|view| InRows::new(cx, view)).transpose()?,
        dx: op.dx.as_ref().map(|view| OutRows::new(cx, view)).transpose()?,
    };
    cx.pool.run_ranges(rows, grain(rows, 8 * classes, cx.pool.threads()), |range, _| {
        of_rows(cx.isa, &all, range);
    });
    Ok(())
}

struct Rows<'a> {
    x: InRows<'a>,
    teacher: InRows<'a>,
    wanted: &'a [bool],
    temperature: f32,
    scale: f32,
    loss: OutRows<'a>,
    /// What the gradient is added to.
    before: Option<InRows<'a>>,
    dx: Option<OutRows<'a>>,
}

/// The largest element of a row.
///
/// # Safety
/// Nobody writes the row meanwhile.
#[inline(always)]
unsafe fn most<S: Simd>(s: S, x: InRow<'_>) -> f32 {
    let lowest = s.splat(f32::NEG_INFINITY);
    let mut most = [lowest; 2];
    for (i, at) in (0..x.len()).step_by(S::LANES).enumerate() {
        let n = S::LANES.min(x.len() - at);
        // SAFETY: within the row.
        let v = unsafe { x.load(s, at, n) };
        let v = if n == S::LANES { v } else { s.select(s.first(n), v, lowest) };
        most[i % 2] = s.max(most[i % 2], v);
    }
    s.max_lane(s.max(most[0], most[1]))
}

/// Logits of a row about its largest one, at a temperature whose inverse is `cold`.
///
/// # Safety
/// As of [`InRow::load`].
#[inline(always)]
unsafe fn about<S: Simd>(s: S, x: InRow<'_>, most: f32, cold: f32, at: usize, n: usize) -> S::V {
    // SAFETY: as the caller vouches.
    let x = unsafe { x.load(s, at, n) };
    s.mul(s.sub(x, s.splat(most)), s.splat(cold))
}

crate::simd_fn! {
    /// The rows of what is written are this thread's alone.
    fn of_rows<S>(s: S, all: &Rows<'_>, rows: Range<usize>) {
        for row in rows {
            // SAFETY: `spec` checked that operands have these rows and columns; ranges of rows are disjoint.
            unsafe {
                let (x, teacher, loss) = (all.x.row(row), all.teacher.row(row), all.loss.row(0).part(row, 1));
                let (d, dx) = (x.len(), all.dx.map(|dx| dx.row(row)));
                let before = all.before.map(|before| before.row(row));
                if !all.wanted[row] {
                    loss.store(s, 0, s.zero(), 1);
                    if let (Some(dx), None) = (dx, before) {
                        for at in (0..d).step_by(S::LANES) {
                            dx.store(s, at, s.zero(), S::LANES.min(d - at));
                        }
                    }
                    continue;
                }
                let (most_x, most_teacher) = (most(s, x), most(s, teacher));
                let (cold, lowest) = (1.0 / all.temperature, s.splat(LOWEST));
                let (mut ps, mut qs, mut terms) = ([s.zero(); 2], [s.zero(); 2], [s.zero(); 2]);
                for (i, at) in (0..d).step_by(S::LANES).enumerate() {
                    let n = S::LANES.min(d - at);
                    let a = s.max(about(s, teacher, most_teacher, cold, at, n), lowest);
                    let b = about(s, x, most_x, cold, at, n);
                    let (mut p, mut q) = (math::exp(s, a), math::exp(s, b));
                    let mut gap = s.sub(a, b);
                    if n < S::LANES {
                        let there = s.first(n);
                        p = s.select(there, p, s.zero());
                        q = s.select(there, q, s.zero());
                        gap = s.select(there, gap, s.zero());
                    }
                    ps[i % 2] = s.add(ps[i % 2], p);
                    qs[i % 2] = s.add(qs[i % 2], q);
                    terms[i % 2] = s.fma(p, gap, terms[i % 2]);
                }
                let (p_total, q_total) = (s.sum(s.add(ps[0], ps[1])), s.sum(s.add(qs[0], qs[1])));
                let value = s.sum(s.add(terms[0], terms[1])) / p_total + (q_total.ln() - p_total.ln());
                loss.store(s, 0, s.splat(all.temperature * all.temperature * value), 1);
                let Some(dx) = dx else { continue };
                let factor = all.scale * all.temperature;
                let (of_p, of_q) = (s.splat(factor / p_total), s.splat(factor / q_total));
                for at in (0..d).step_by(S::LANES) {
                    let n = S::LANES.min(d - at);
                    let a = s.max(about(s, teacher, most_teacher, cold, at, n), lowest);
                    let b = about(s, x, most_x, cold, at, n);
                    let change = s.sub(s.mul(math::exp(s, b), of_q), s.mul(math::exp(s, a), of_p));
                    let value = before.map_or(change, |before| s.add(before.load(s, at, n), change));
                    dx.store(s, at, value, n);
                }
            }
        }
    }
}
