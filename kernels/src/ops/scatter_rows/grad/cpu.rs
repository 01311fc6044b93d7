//! CPU kernels.

use super::ScatterRowsGrad;
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRows, OutRow, OutRows};
use crate::cpu::{CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::index::Indices;
use crate::ops::sums::{GradRows, add_row};
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for ScatterRowsGrad {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "columns-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

/// Threads share the columns, as those of the forward op do.
fn launch(op: &ScatterRowsGrad, cx: &CpuCx) -> Result<(), KernelError> {
    let (count, d, limit) = (op.rows.size(0), op.d_out.size(1), op.d_out.size(0));
    let (from, zeroed) = (InRows::new(cx, &op.d_out)?, OutRows::new(cx, &op.d_out)?);
    let d_src = op.d_src.as_ref().map(|view| GradRows::new(cx, view, &op.d_out)).transpose()?;
    let rows = Indices::new(cx, &op.rows)?;
    for index in rows.iter() {
        if index >= 0 && index as usize >= limit {
            let (what, index) = ("row", index.into());
            return Err(KernelError::Index { op: ScatterRowsGrad::NAME, what, index, limit });
        }
    }
    let columns = d.div_ceil(cx.pool.threads()).next_multiple_of(64);
    cx.pool.run_ranges(d, if count * d < 16384 { d } else { columns }, |range, _| {
        for (i, row) in rows.iter().enumerate().filter(|&(_, row)| row >= 0) {
            // SAFETY: `i < count`, `row < limit`; no other thread has these columns.
            unsafe {
                if let Some(d_src) = &d_src {
                    let from = from.row(row as usize).skip(range.start);
                    add_row(cx.isa, from, range.len(), 1.0, d_src.row(i).skip(range.start));
                }
                clear(cx.isa, zeroed.row(row as usize).part(range.start, range.len()));
            }
        }
    });
    Ok(())
}

crate::simd_fn! {
    /// Writes zeros.
    fn clear<S>(s: S, row: OutRow<'_>) {
        for at in (0..row.len()).step_by(S::LANES) {
            // SAFETY: within the row.
            unsafe { row.store(s, at, s.zero(), S::LANES.min(row.len() - at)) };
        }
    }
}
