//! CPU kernels: the largest logit of a row, the sum of powers, then the gradient.

use std::ops::Range;

use super::CrossEntropy;
use crate::cpu::rows::{InRows, OutRows, grain};
use crate::cpu::simd::math;
use crate::cpu::{CpuCx, CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::index::Indices;
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for CrossEntropy {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "rows-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

fn launch(op: &CrossEntropy, cx: &CpuCx) -> Result<(), KernelError> {
    let (rows, classes) = (op.x.size(0), op.x.size(1));
    let labels = Indices::new(cx, &op.labels)?;
    for index in labels.iter() {
        if index >= 0 && index as usize >= classes {
            let index = index.into();
            return Err(KernelError::Index { op: CrossEntropy::NAME, what: "label", index, limit: classes });
        }
    }
    let (x, loss) = (InRows::new(cx, &op.x)?, OutRows::new(cx, &op.loss)?);
    let dx = op.dx.as_ref().map(|view| OutRows::new(cx, view)).transpose()?;
    let labels: Vec<i32> = labels.iter().collect();
    cx.pool.run_ranges(rows, grain(rows, 4 * classes, cx.pool.threads()), |range, _| {
        of_rows(cx.isa, &x, &labels, op.scale, &loss, dx.as_ref(), range);
    });
    Ok(())
}

crate::simd_fn! {
    /// The rows of what is written are this thread's alone.
    fn of_rows<S>(
        s: S,
        x: &InRows<'_>,
        labels: &[i32],
        scale: f32,
        loss: &OutRows<'_>,
        dx: Option<&OutRows<'_>>,
        rows: Range<usize>,
    ) {
        for row in rows {
            // SAFETY: `spec` checked that operands have these rows and columns, `launch` the labels; ranges of rows are disjoint.
            unsafe {
                let (x, loss) = (x.row(row), loss.row(0).part(row, 1));
                let (d, dx) = (x.len(), dx.map(|dx| dx.row(row)));
                let label = labels[row];
                if label < 0 {
                    loss.store(s, 0, s.zero(), 1);
                    for at in (0..d).step_by(S::LANES) {
                        if let Some(dx) = dx {
                            dx.store(s, at, s.zero(), S::LANES.min(d - at));
                        }
                    }
                    continue;
                }
                let label = label as usize;
                let lowest = s.splat(f32::NEG_INFINITY);
                let mut most = [lowest; 2];
                for (i, at) in (0..d).step_by(S::LANES).enumerate() {
                    let n = S::LANES.min(d - at);
                    let v = x.load(s, at, n);
                    let v = if n == S::LANES { v } else { s.select(s.first(n), v, lowest) };
                    most[i % 2] = s.max(most[i % 2], v);
                }
                let most = s.max_lane(s.max(most[0], most[1]));
                let (about, mut sums) = (s.splat(most), [s.zero(); 2]);
                for (i, at) in (0..d).step_by(S::LANES).enumerate() {
                    let n = S::LANES.min(d - at);
                    let power = math::exp(s, s.sub(x.load(s, at, n), about));
                    let power = if n == S::LANES { power } else { s.select(s.first(n), power, s.zero()) };
                    sums[i % 2] = s.add(sums[i % 2], power);
                }
                let total = s.sum(s.add(sums[0], sums[1]));
                let right = x.get(label);
                loss.store(s, 0, s.splat(total.ln() + (most - right)), 1);
                let Some(dx) = dx else { continue };
                let factor = s.splat(scale / total);
                for at in (0..d).step_by(S::LANES) {
                    let n = S::LANES.min(d - at);
                    let power = math::exp(s, s.sub(x.load(s, at, n), about));
                    dx.store(s, at, s.mul(power, factor), n);
                }
                let share = (right - most).exp() / total;
                dx.part(label, 1).store(s, 0, s.splat(scale * (share - 1.0)), 1);
            }
        }
    }
}
