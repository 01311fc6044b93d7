//! CPU kernels.

use std::ops::Range;

use super::super::PoolKind;
use super::super::cpu::{Groups, Members};
use super::PoolGrad;
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRow, InRows, grain};
use crate::cpu::simd::MAX_LANES;
use crate::cpu::{CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::sums::{GradRows, add_row};
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for PoolGrad {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "rows-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

/// Elements of a row that a thread takes at once: few segments of many rows are shared out as well.
const COLUMNS: usize = 256;

fn launch(op: &PoolGrad, cx: &CpuCx) -> Result<(), KernelError> {
    let (d_out, dx) = (InRows::new(cx, &op.d_out)?, GradRows::new(cx, &op.dx, &op.d_out)?);
    let x = op.x.as_ref().map(|view| InRows::new(cx, view)).transpose()?;
    let groups = Groups::new(cx, &op.over, op.dx.size(0), PoolGrad::NAME)?;
    let (rows, d) = (op.d_out.size(0), op.dx.size(1));
    let across = d.div_ceil(COLUMNS);
    let (parts, each) = (rows * across, op.dx.len().checked_div(rows * across).unwrap_or(0).max(1));
    cx.pool.run_ranges(parts, grain(parts, each, cx.pool.threads()), |range, _| {
        for part in range {
            let (row, first) = (part / across, part % across * COLUMNS);
            let (members, columns) = (groups.members(row), first..d.min(first + COLUMNS));
            if members.count == 0 {
                continue;
            }
            // SAFETY: `spec` and `Groups::new` keep members within `dx`; no row is a member twice, and each part of a row is one thread's
            // alone.
            unsafe {
                let d_out = d_out.row(row).skip(first);
                let add = |i: usize, scale: f32| {
                    add_row(cx.isa, d_out, columns.len(), scale, dx.row(members.row(i)).skip(first));
                };
                match (op.kind, &x) {
                    (PoolKind::First, _) => add(0, 1.0),
                    (PoolKind::Last, _) => add(members.count - 1, 1.0),
                    (PoolKind::Max, Some(x)) => add_to_largest(cx.isa, x, members, d_out, &dx, columns),
                    (PoolKind::Mean | PoolKind::Max, _) => {
                        (0..members.count).for_each(|i| add(i, 1.0 / members.count as f32));
                    }
                }
            }
        }
    });
    Ok(())
}

crate::simd_fn! {
    /// Adds each element of `d_out` to that of the first member which has the largest, in some columns. The members have them.
    fn add_to_largest<S>(
        s: S,
        x: &InRows<'_>,
        members: Members,
        d_out: InRow<'_>,
        dx: &GradRows<'_>,
        columns: Range<usize>,
    ) {
        for at in columns.clone().step_by(S::LANES) {
            let n = S::LANES.min(columns.end - at);
            // SAFETY: as the caller vouches.
            unsafe {
                let mut most = x.row(members.row(0)).load(s, at, n);
                // Numbers of members, as bits.
                let mut first = s.zero();
                for i in 1..members.count {
                    let v = x.row(members.row(i)).load(s, at, n);
                    let more = s.lt(most, v);
                    first = s.select(more, s.of_bits(s.splat_i(i as i32)), first);
                    most = s.select(more, v, most);
                }
                let mut members_of = [0; MAX_LANES];
                s.store_i(members_of.as_mut_ptr(), s.to_bits(first));
                for (lane, &i) in members_of.iter().enumerate().take(n) {
                    let col = at + lane;
                    dx.row(members.row(i as usize)).give_one(col, d_out.get(col - columns.start));
                }
            }
        }
    }
}
