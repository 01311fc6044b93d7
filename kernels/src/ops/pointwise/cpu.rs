//! CPU kernels.

use std::ops::Range;

use super::Pointwise;
use crate::cpu::CpuCx;
use crate::cpu::gemm::epilogue::activate;
use crate::cpu::rows::{InRow, InRows, OutRows, grain};
use crate::cpu::simd::math;
use crate::cpu::{CpuOp, CpuRows};
use crate::ops::Activation;
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for Pointwise {
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
    add: Option<InRows<'a>>,
    out: OutRows<'a>,
    d: usize,
    bounds: Option<[f32; 2]>,
    softcap: f32,
    act: Activation,
    scale: f32,
}

/// Elements that a thread takes at once: few rows of many elements, as logits are, are shared out as well.
const COLUMNS: usize = 4096;

fn launch(op: &Pointwise, cx: &CpuCx) -> Result<(), KernelError> {
    let (rows, d) = (op.x.size(0), op.x.size(1));
    let input = |view| InRows::new(cx, view);
    // SAFETY: factors are never written while an op reads them: the output does not overlap them.
    let vector = |view| input(view).map(|rows| unsafe { rows.row(0) });
    let all = Rows {
        x: input(&op.x)?,
        col: op.col.as_ref().map(vector).transpose()?,
        row: op.row.as_ref().map(vector).transpose()?,
        by: op.by.as_ref().map(input).transpose()?,
        add: op.add.as_ref().map(input).transpose()?,
        out: OutRows::new(cx, &op.out)?,
        d,
        bounds: op.bounds,
        softcap: op.softcap,
        act: op.act,
        scale: op.scale,
    };
    if d == 0 {
        return Ok(());
    }
    let parts = rows * d.div_ceil(COLUMNS);
    cx.pool.run_ranges(parts, grain(parts, d.min(COLUMNS), cx.pool.threads()), |range, _| {
        of_parts(cx.isa, &all, range);
    });
    Ok(())
}

crate::simd_fn! {
    /// Stretches of rows, `COLUMNS` elements each; they are this thread's alone.
    fn of_parts<S>(s: S, p: &Rows<'_>, parts: Range<usize>) {
        let across = p.d.div_ceil(COLUMNS);
        for part in parts {
            let (row, first) = (part / across, part % across * COLUMNS);
            let scale = s.splat(p.row.as_ref().map_or(p.scale, |factors| p.scale * factors.get(row)));
            let (cap, inverse) = (s.splat(p.softcap), s.splat(1.0 / p.softcap));
            // SAFETY: `spec` checked that all operands have these rows of `d` elements; stretches are disjoint, and an element
            // is read before it is written.
            unsafe {
                let (x, out) = (p.x.row(row), p.out.row(row));
                let by = p.by.as_ref().map(|by| by.row(row));
                let add = p.add.as_ref().map(|add| add.row(row));
                let end = p.d.min(first + COLUMNS);
                for at in (first..end).step_by(S::LANES) {
                    let n = S::LANES.min(end - at);
                    let mut v = x.load(s, at, n);
                    if let Some([low, high]) = p.bounds {
                        v = s.min(s.max(v, s.splat(low)), s.splat(high));
                    }
                    if p.softcap != 0.0 {
                        v = s.mul(cap, math::tanh(s, s.mul(v, inverse)));
                    }
                    v = s.mul(activate(s, p.act, v), scale);
                    if let Some(col) = &p.col {
                        v = s.mul(v, col.load(s, at, n));
                    }
                    if let Some(by) = &by {
                        v = s.mul(v, by.load(s, at, n));
                    }
                    if let Some(add) = &add {
                        v = s.add(v, add.load(s, at, n));
                    }
                    out.store(s, at, v, n);
                }
            }
        }
    }
}
