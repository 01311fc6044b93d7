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

/// How patches are joined.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    pub grid_h: usize,
    pub grid_w: usize,
    pub factor: usize,
    pub order: MergeOrder,
}

impl Blocks {
    /// The patch at place `block` of a token.
    pub(super) fn patch(self, token: usize, block: usize) -> usize {
        let Self { grid_h, grid_w, factor, order } = self;
        let (down, across) = (grid_h / factor, grid_w / factor);
        let (image, place) = (token / (down * across), token % (down * across));
        let (top, left) = (place / across * factor, place % across * factor);
        let (major, minor) = (block / factor, block % factor);
        let (dy, dx) = match order {
            MergeOrder::RowFirst => (major, minor),
            MergeOrder::ColumnFirst => (minor, major),
        };
        (image * grid_h + top + dy) * grid_w + left + dx
    }
}

fn launch(op: &MergePatches, cx: &CpuCx) -> Result<(), KernelError> {
    let (x, out) = (InRows::new(cx, &op.x)?, OutRows::new(cx, &op.out)?);
    let (tokens, d) = (op.out.size(0), op.x.size(1));
    let blocks = Blocks { grid_h: op.grid_h, grid_w: op.grid_w, factor: op.factor, order: op.order };
    let grain = grain(tokens, op.out.size(1), cx.pool.threads());
    cx.pool.run_ranges(tokens, grain, |range, _| {
        for token in range {
            for block in 0..op.factor * op.factor {
                let patch = blocks.patch(token, block);
                // SAFETY: `spec` checked both shapes; each token is one thread's alone.
                unsafe { copy_row(cx.isa, x.row(patch), out.row(token).part(block * d, d), 1.0) };
            }
        }
    });
    Ok(())
}
