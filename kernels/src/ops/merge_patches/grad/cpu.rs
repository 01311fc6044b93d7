//! CPU kernels.

use super::super::cpu::Blocks;
use super::MergePatchesGrad;
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRows, grain};
use crate::cpu::{CpuOp, CpuRows};
use crate::ops::sums::{GradRows, add_row};
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for MergePatchesGrad {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "rows-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

fn launch(op: &MergePatchesGrad, cx: &CpuCx) -> Result<(), KernelError> {
    let (d_out, dx) = (InRows::new(cx, &op.d_out)?, GradRows::new(cx, &op.dx, &op.d_out)?);
    let (tokens, d) = (op.d_out.size(0), op.dx.size(1));
    let blocks = Blocks { grid_h: op.grid_h, grid_w: op.grid_w, factor: op.factor, order: op.order };
    cx.pool.run_ranges(tokens, grain(tokens, op.d_out.size(1), cx.pool.threads()), |range, _| {
        for token in range {
            for block in 0..op.factor * op.factor {
                // SAFETY: `spec` checked both shapes; each token is one thread's alone, and so are its patches.
                unsafe {
                    let from = d_out.row(token).skip(block * d);
                    add_row(cx.isa, from, d, 1.0, dx.row(blocks.patch(token, block)));
                }
            }
        }
    });
    Ok(())
}
