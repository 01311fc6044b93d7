//! CPU kernels.

use super::ScatterRows;
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRows, OutRows, copy_row};
use crate::cpu::{CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::index::Indices;
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for ScatterRows {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "copy", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

/// Threads share the columns, not the rows: rows that are named twice, against the contract, are then written one after
/// the other and not in a race.
fn launch(op: &ScatterRows, cx: &CpuCx) -> Result<(), KernelError> {
    let (count, d, limit) = (op.src.size(0), op.src.size(1), op.out.size(0));
    let (src, out) = (InRows::new(cx, &op.src)?, OutRows::new(cx, &op.out)?);
    let rows = Indices::new(cx, &op.rows)?;
    for index in rows.iter() {
        if index >= 0 && index as usize >= limit {
            return Err(KernelError::Index {
                op: ScatterRows::NAME,
                what: "row",
                index: index.into(),
                limit,
            });
        }
    }
    let columns = d.div_ceil(cx.pool.threads()).next_multiple_of(64);
    cx.pool.run_ranges(d, if count * d < 16384 { d } else { columns }, |range, _| {
        for (from, to) in rows.iter().enumerate() {
            if to >= 0 {
                // SAFETY: `from < count`, `to < limit`; no other thread has these columns.
                unsafe {
                    let to = out.row(to as usize).part(range.start, range.len());
                    copy_row(cx.isa, src.row(from).skip(range.start), to, 1.0);
                }
            }
        }
    });
    Ok(())
}
