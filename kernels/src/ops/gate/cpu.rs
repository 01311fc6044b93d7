//! CPU kernels.

use std::ops::Range;

use super::Gate;
use crate::buffer::View;
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRows, OutRows, grain};
use crate::cpu::simd::math;
use crate::cpu::{CpuOp, CpuRows};
use crate::select::Variant;
use crate::spec::{KernelError, ShapeError};

impl CpuOp for Gate {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "rows-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

fn launch(op: &Gate, cx: &CpuCx) -> Result<(), KernelError> {
    let (rows, heads, d) = (op.x.size(0), op.x.size(1), op.x.size(2));
    let all = [&op.x, &op.gate, &op.out];
    // Heads side by side are one row.
    let whole: Result<Vec<View>, ShapeError> =
        all.iter().map(|view| view.reshape(&[rows, heads * d])).collect();
    if let Ok(whole) = whole {
        return of_rows(&whole, cx);
    }
    (0..heads).try_for_each(|head| {
        let of_head = |view: &&View| view.narrow(1, head, 1)?.reshape(&[rows, d]);
        let of_head = all.iter().map(of_head).collect::<Result<Vec<View>, ShapeError>>()?;
        of_rows(&of_head, cx)
    })
}

struct Rows<'a> {
    x: InRows<'a>,
    gate: InRows<'a>,
    out: OutRows<'a>,
}

/// Factors, gates and results, `[rows, d]` each.
fn of_rows(views: &[View], cx: &CpuCx) -> Result<(), KernelError> {
    let [x, gate, out] = views else { return Ok(()) };
    let (rows, d) = (x.size(0), x.size(1));
    let all = Rows { x: InRows::new(cx, x)?, gate: InRows::new(cx, gate)?, out: OutRows::new(cx, out)? };
    cx.pool.run_ranges(rows, grain(rows, d, cx.pool.threads()), |range, _| gate_rows(cx.isa, &all, range, d));
    Ok(())
}

crate::simd_fn! {
    /// Rows of `d` elements, which are this thread's alone.
    fn gate_rows<S>(s: S, p: &Rows<'_>, rows: Range<usize>, d: usize) {
        for row in rows {
            // SAFETY: `spec` checked that all operands have these rows of `d` elements; ranges of rows are disjoint.
            unsafe {
                let (x, gate, out) = (p.x.row(row), p.gate.row(row), p.out.row(row));
                for at in (0..d).step_by(S::LANES) {
                    let n = S::LANES.min(d - at);
                    let factor = math::sigmoid(s, gate.load(s, at, n));
                    out.store(s, at, s.mul(x.load(s, at, n), factor), n);
                }
            }
        }
    }
}
