//! CPU kernels.

use std::ops::Range;

use super::PointwiseGrad;
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRow, InRows, grain};
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{Simd, math};
use crate::cpu::{CpuOp, CpuRows};
use crate::ops::Activation;
use crate::ops::act_grad::with_slope;
use crate::ops::sums::{Blocks, GradRows, load, store};
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for PointwiseGrad {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "rows-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

struct Rows<'a> {
    x: InRows<'a>,
    col: Option<InRow<'a>>,
    row: Option<InRow<'a>>,
    by: Option<InRows<'a>>,
    d_out: InRows<'a>,
    dx: Option<GradRows<'a>>,
    d_by: Option<GradRows<'a>>,
    d_add: Option<GradRows<'a>>,
    /// Sums for the columns, if they are asked for.
    d_col: Option<Blocks>,
    bounds: Option<[f32; 2]>,
    softcap: f32,
    act: Activation,
    scale: f32,
}

/// Elements of a row that a thread takes at once: few rows of many elements, as logits are, are shared out as well.
const COLUMNS: usize = 4096;

fn launch(op: &PointwiseGrad, cx: &CpuCx) -> Result<(), KernelError> {
    let (rows, d) = (op.x.size(0), op.x.size(1));
    if rows == 0 || d == 0 {
        return Ok(());
    }
    let input = |view| InRows::new(cx, view);
    // SAFETY: factors are never written while an op reads them: gradients do not overlap them.
    let vector = |view| input(view).map(|rows| unsafe { rows.row(0) });
    let gradient = |view| GradRows::new(cx, view, &op.d_out);
    let mut scratch = Scratch::new();
    let all = Rows {
        x: input(&op.x)?,
        col: op.col.as_ref().map(vector).transpose()?,
        row: op.row.as_ref().map(vector).transpose()?,
        by: op.by.as_ref().map(input).transpose()?,
        d_out: input(&op.d_out)?,
        dx: op.dx.as_ref().map(gradient).transpose()?,
        d_by: op.d_by.as_ref().map(gradient).transpose()?,
        d_add: op.d_add.as_ref().map(gradient).transpose()?,
        d_col: op.d_col.as_ref().map(|_| Blocks::new(&mut scratch, rows, d)),
        bounds: op.bounds,
        softcap: op.softcap,
        act: op.act,
        scale: op.scale,
    };
    let across = d.div_ceil(COLUMNS);
    let each = all.d_col.map_or_else(|| grain(rows, d.min(COLUMNS), cx.pool.threads()), |sums| sums.rows);
    cx.pool.run(rows.div_ceil(each) * across, |part, _| {
        let (block, first) = (part / across, part % across * COLUMNS);
        let range = block * each..rows.min((block + 1) * each);
        of_part(cx.isa, &all, range, first..d.min(first + COLUMNS));
    });
    if let (Some(sums), Some(view)) = (all.d_col, &op.d_col) {
        // SAFETY: a vector is one row, and no thread is at work.
        sums.add_up(cx, 0, d, unsafe { gradient(view)?.row(0) });
    }
    Ok(())
}

/// What the bounds and the cap make of `x`, and the derivative of that.
#[inline(always)]
fn capped<S: Simd>(s: S, p: &Rows<'_>, x: S::V) -> (S::V, S::V) {
    let (one, zero) = (s.splat(1.0), s.zero());
    let (mut value, mut slope) = (x, one);
    if let Some([low, high]) = p.bounds {
        let (low, high) = (s.splat(low), s.splat(high));
        value = s.min(s.max(x, low), high);
        slope = s.select(s.le(low, x), s.select(s.le(x, high), one, zero), zero);
    }
    if p.softcap != 0.0 {
        let t = s.mul(value, s.splat(1.0 / p.softcap));
        value = s.mul(s.splat(p.softcap), math::tanh(s, t));
        // 1 - tanh^2 t, without a difference of two that are nearly the same.
        let e = math::exp(s, s.mul(s.splat(-2.0), s.abs(t)));
        let inverse = s.div(s.splat(2.0), s.add(one, e));
        slope = s.mul(slope, s.mul(e, s.mul(inverse, inverse)));
    }
    (value, slope)
}

crate::simd_fn! {
    /// Some columns of rows, which are this thread's alone; if sums over them are asked for, the rows are those of a block.
    fn of_part<S>(s: S, p: &Rows<'_>, rows: Range<usize>, columns: Range<usize>) {
        let sums = p.d_col.as_ref().map(|sums| sums.of(rows.start / sums.rows));
        for row in rows.clone() {
            let scale = s.splat(p.row.as_ref().map_or(p.scale, |factors| p.scale * factors.get(row)));
            // SAFETY: `spec` checked that all operands have these rows of `d` elements; parts are disjoint, an element of `d_out` is read
            // before it is written, and a block has room for the sums.
            unsafe {
                let (x, d_out) = (p.x.row(row), p.d_out.row(row));
                let by = p.by.as_ref().map(|by| by.row(row));
                let [dx, d_by, d_add] =
                    [&p.dx, &p.d_by, &p.d_add].map(|rows| rows.as_ref().map(|rows| rows.row(row)));
                for at in columns.clone().step_by(S::LANES) {
                    let n = S::LANES.min(columns.end - at);
                    let dy = d_out.load(s, at, n);
                    let (value, mut slope) = capped(s, p, x.load(s, at, n));
                    let (value, act_slope) = with_slope(s, p.act, value);
                    slope = s.mul(slope, act_slope);
                    let scaled = s.mul(dy, scale);
                    let by = match &by {
                        Some(by) => by.load(s, at, n),
                        None => s.splat(1.0),
                    };
                    if let Some(sums) = sums {
                        let term = s.mul(s.mul(scaled, by), value);
                        let sum = sums.add(at);
                        let before = if row == rows.start { s.zero() } else { load(s, sum, n) };
                        store(s, sum, s.add(before, term), n);
                    }
                    let factor = match &p.col {
                        Some(col) => s.mul(scaled, col.load(s, at, n)),
                        None => scaled,
                    };
                    if let Some(d_by) = &d_by {
                        d_by.give(s, at, s.mul(factor, value), n);
                    }
                    if let Some(dx) = &dx {
                        dx.give(s, at, s.mul(s.mul(factor, by), slope), n);
                    }
                    if let Some(d_add) = &d_add {
                        d_add.give(s, at, dy, n);
                    }
                }
            }
        }
    }
}
