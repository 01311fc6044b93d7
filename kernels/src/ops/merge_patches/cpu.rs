//! CPU kernels.

use super::{MergeOrder, MergePatches};
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRows, OutRows, copy_row, grain};
use crate::cpu::{CpuOp, CpuRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for MergePatches {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "copy", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

fn launch(op: &MergePatches, cx: &CpuCx) -> Result<(), KernelError> {
    let (x, out) = (InRows::new(cx, &op.x)?, OutRows::new(cx, &op.out)?);
    let (tokens, d, factor) = (op.out.size(0), op.x.size(1), op.factor);
    let (down, across) = (op.grid_h / factor, op.grid_w / factor);
    let grain = grain(tokens, op.out.size(1), cx.pool.threads());
    cx.pool.run_ranges(tokens, grain, |range, _| {
        for token in range {
            let (image, place) = (token / (down * across), token % (down * across));
            let (top, left) = (place / across * factor, place % across * factor);
            for block in 0..factor * factor {
                let (major, minor) = (block / factor, block % factor);
                let (dy, dx) = match op.order {
                    MergeOrder::RowFirst => (major, minor),
                    MergeOrder::ColumnFirst => (minor, major),
                };
                let patch = (image * op.grid_h + top + dy) * op.grid_w + left + dx;
                // SAFETY: `spec` checked both shapes; each token is one thread's alone.
                unsafe { copy_row(cx.isa, x.row(patch), out.row(token).part(block * d, d), 1.0) };
            }
        }
    });
    Ok(())
}
