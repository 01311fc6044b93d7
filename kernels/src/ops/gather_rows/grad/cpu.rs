//! CPU kernels.

use super::GatherRowsGrad;
use crate::cpu::CpuCx;
use crate::cpu::rows::InRows;
use crate::cpu::{CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::index::Indices;
use crate::ops::sums::{GradRows, add_rows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for GatherRowsGrad {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "columns-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

fn launch(op: &GatherRowsGrad, cx: &CpuCx) -> Result<(), KernelError> {
    let (d_out, to) = (InRows::new(cx, &op.d_out)?, GradRows::new(cx, &op.d_table, &op.d_out)?);
    let (ids, limit) = (Indices::new(cx, &op.ids)?, op.d_table.size(0));
    for index in ids.iter() {
        if index < 0 || index as usize >= limit {
            let (what, index) = ("id", index.into());
            return Err(KernelError::Index { op: GatherRowsGrad::NAME, what, index, limit });
        }
    }
    let (tokens, d) = (op.d_out.size(0), op.d_out.size(1));
    // SAFETY: `spec` checked the shapes and that the table shares no memory with the rest; the ids are below its rows.
    unsafe { add_rows(cx, d_out, tokens, d, op.scale, to, |token| ids.get(token) as usize) };
    Ok(())
}
