//! CPU kernels: a pass over each row, which is read before its gradient is written.

use std::ops::Range;

use super::SquaredError;
use crate::cpu::rows::{InRows, OutRows, grain};
use crate::cpu::{CpuCx, CpuOp, CpuRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for SquaredError {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "rows-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

fn launch(op: &SquaredError, cx: &CpuCx) -> Result<(), KernelError> {
    let (rows, d) = (op.x.size(0), op.x.size(1));
    let (x, target) = (InRows::new(cx, &op.x)?, InRows::new(cx, &op.target)?);
    let weights = op.weights.as_ref().map(|view| InRows::new(cx, view)).transpose()?;
    let (loss, dx) = (OutRows::new(cx, &op.loss)?, op.dx.as_ref());
    let dx = dx.map(|view| OutRows::new(cx, view)).transpose()?;
    cx.pool.run_ranges(rows, grain(rows, 2 * d, cx.pool.threads()), |range, _| {
        of_rows(cx.isa, &x, &target, weights.as_ref(), op.scale, &loss, dx.as_ref(), range);
    });
    Ok(())
}

crate::simd_fn! {
    /// The rows of what is written are this thread's alone.
    fn of_rows<S>(
        s: S,
        x: &InRows<'_>,
        target: &InRows<'_>,
        weights: Option<&InRows<'_>>,
        scale: f32,
        loss: &OutRows<'_>,
        dx: Option<&OutRows<'_>>,
        rows: Range<usize>,
    ) {
        for row in rows {
            // SAFETY: `spec` checked that operands have these rows and columns; ranges of rows are disjoint.
            unsafe {
                let (x, target, loss) = (x.row(row), target.row(row), loss.row(0).part(row, 1));
                let (d, dx) = (x.len(), dx.map(|dx| dx.row(row)));
                let weight = weights.map_or(1.0, |weights| weights.row(0).get(row));
                if weight == 0.0 || d == 0 {
                    loss.store(s, 0, s.zero(), 1);
                    for at in (0..d).step_by(S::LANES) {
                        if let Some(dx) = dx {
                            dx.store(s, at, s.zero(), S::LANES.min(d - at));
                        }
                    }
                    continue;
                }
                let share = weight / d as f32;
                let factor = s.splat(2.0 * scale * share);
                let mut sums = [s.zero(); 2];
                for (i, at) in (0..d).step_by(S::LANES).enumerate() {
                    let n = S::LANES.min(d - at);
                    let gap = s.sub(x.load(s, at, n), target.load(s, at, n));
                    sums[i % 2] = s.fma(gap, gap, sums[i % 2]);
                    if let Some(dx) = dx {
                        dx.store(s, at, s.mul(gap, factor), n);
                    }
                }
                loss.store(s, 0, s.splat(share * s.sum(s.add(sums[0], sums[1]))), 1);
            }
        }
    }
}
