//! CPU kernels.

use super::MixRows;
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRow, InRows, OutRow, OutRows, grain};
use crate::cpu::{CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::index::Indices;
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for MixRows {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "rows-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

fn launch(op: &MixRows, cx: &CpuCx) -> Result<(), KernelError> {
    let (limit, d, taps) = (op.src.size(0), op.src.size(1), op.weights.size(1));
    let (src, out) = (InRows::new(cx, &op.src)?, OutRows::new(cx, &op.out)?);
    let before = if op.add { Some(InRows::new(cx, &op.out)?) } else { None };
    let ids = op.ids.as_ref().map(|ids| Indices::new(cx, ids)).transpose()?;
    let weights = InRows::new(cx, &op.weights)?;
    for index in ids.iter().flat_map(Indices::iter) {
        if index >= 0 && index as usize >= limit {
            return Err(KernelError::Index { op: MixRows::NAME, what: "id", index: index.into(), limit });
        }
    }
    let rows = op.weights.size(0);
    cx.pool.run_ranges(rows, grain(rows, d * (taps + 1), cx.pool.threads()), |range, _| {
        for row in range {
            let id = |tap: usize| match &ids {
                Some(ids) => usize::try_from(ids.get(row * taps + tap)).ok(),
                None => Some(row * taps + tap),
            };
            // SAFETY: the ids were checked; each row of `out` is one thread's alone.
            unsafe {
                let before = before.as_ref().map(|rows| rows.row(row));
                mix(cx.isa, &src, weights.row(row), &id, before, out.row(row));
            }
        }
    });
    Ok(())
}

/// Vectors of a row that are summed together.
const WIDE: usize = 4;

crate::simd_fn! {
    /// `out = before + sum_t weights[t] * src[id(t)]`; taps without an id add nothing.
    fn mix<S>(
        s: S,
        src: &InRows<'_>,
        weights: InRow<'_>,
        id: &(dyn Fn(usize) -> Option<usize> + '_),
        before: Option<InRow<'_>>,
        out: OutRow<'_>,
    ) {
        let d = out.len();
        for start in (0..d).step_by(WIDE * S::LANES) {
            let lanes = |i: usize| S::LANES.min(d.saturating_sub(start + i * S::LANES));
            let mut all = [s.zero(); WIDE];
            if let Some(before) = before {
                for (i, sum) in all.iter_mut().enumerate() {
                    // SAFETY: no lane beyond `d`.
                    *sum = unsafe { before.load(s, start + i * S::LANES, lanes(i)) };
                }
            }
            for tap in 0..weights.len() {
                let Some(row) = id(tap) else { continue };
                let factor = s.splat(weights.get(tap));
                // SAFETY: the caller vouches for the ids; `spec` checked that rows have `d` elements.
                let row = unsafe { src.row(row) };
                for (i, sum) in all.iter_mut().enumerate() {
                    // SAFETY: as above; no lane beyond `d`.
                    let v = unsafe { row.load(s, start + i * S::LANES, lanes(i)) };
                    *sum = s.fma(factor, v, *sum);
                }
            }
            for (i, &sum) in all.iter().enumerate() {
                // SAFETY: no lane beyond `d`.
                unsafe { out.store(s, start + i * S::LANES, sum, lanes(i)) };
            }
        }
    }
}
