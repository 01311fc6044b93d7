//! CPU kernels.

use super::GatherRows;
use crate::cpu::CpuCx;
use crate::cpu::rows::{OutRows, grain};
use crate::cpu::table::Table;
use crate::cpu::{CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::index::Indices;
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for GatherRows {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant {
            name: "decode-rows",
            reject: |spec, _| spec.w.reject_k_major(),
            est_us: |_, _| 1.0,
            launch,
        }]
    }
}

fn launch(op: &GatherRows, cx: &CpuCx) -> Result<(), KernelError> {
    let (table, out) = (Table::new(cx, &op.table)?, OutRows::new(cx, &op.out)?);
    let (ids, limit) = (Indices::new(cx, &op.ids)?, op.table.n());
    for index in ids.iter() {
        if index < 0 || index as usize >= limit {
            return Err(KernelError::Index { op: GatherRows::NAME, what: "id", index: index.into(), limit });
        }
    }
    let tokens = op.ids.size(0);
    cx.pool.run_ranges(tokens, grain(tokens, op.table.k(), cx.pool.threads()), |range, _| {
        for token in range {
            // SAFETY: the ids were checked; each token is one thread's alone.
            unsafe { table.decode(cx.isa, ids.get(token) as usize, op.scale, out.row(token)) };
        }
    });
    Ok(())
}
