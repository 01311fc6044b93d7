//! CPU kernels.

use super::{Pool, PoolKind, PoolOver};
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRows, OutRow, OutRows, copy_row, grain};
use crate::cpu::{CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::index::Indices;
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for Pool {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "rows-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

/// The rows `first + i / across * stride + i % across` for `i < count`.
#[derive(Clone, Copy)]
pub(super) struct Members {
    first: usize,
    across: usize,
    stride: usize,
    pub count: usize,
}

impl Members {
    /// Member `i`.
    #[inline(always)]
    pub(super) fn row(self, i: usize) -> usize {
        self.first + i / self.across * self.stride + i % self.across
    }
}

/// Which rows of `x` each row of the result is made of.
pub(super) enum Groups<'a> {
    Segments(Indices<'a>),
    Grid { grid_h: usize, grid_w: usize, block_h: usize, block_w: usize },
}

impl<'a> Groups<'a> {
    /// Those of `limit` rows; segments beyond them are an error of `op`.
    pub(super) fn new(
        cx: &CpuCx,
        over: &'a PoolOver,
        limit: usize,
        op: &'static str,
    ) -> Result<Self, KernelError> {
        match *over {
            PoolOver::Segments(ref starts) => {
                let starts = Indices::new(cx, starts)?;
                let mut from = 0;
                for to in starts.iter() {
                    if to < from || to as usize > limit {
                        let (what, index) = ("segment", to.into());
                        return Err(KernelError::Index { op, what, index, limit: limit + 1 });
                    }
                    from = to;
                }
                Ok(Self::Segments(starts))
            }
            PoolOver::Grid { grid_h, grid_w, block_h, block_w } => {
                Ok(Self::Grid { grid_h, grid_w, block_h, block_w })
            }
        }
    }

    /// The rows of `x` for a row of the result.
    pub(super) fn members(&self, out: usize) -> Members {
        match *self {
            Self::Segments(starts) => {
                let (first, end) = (starts.get(out) as usize, starts.get(out + 1) as usize);
                Members { first, across: usize::MAX, stride: 0, count: end - first }
            }
            Self::Grid { grid_h, grid_w, block_h, block_w } => {
                let (down, across) = (grid_h / block_h, grid_w / block_w);
                let (image, place) = (out / (down * across), out % (down * across));
                let (top, left) = (place / across * block_h, place % across * block_w);
                let first = (image * grid_h + top) * grid_w + left;
                Members { first, across: block_w, stride: grid_w, count: block_h * block_w }
            }
        }
    }
}

fn launch(op: &Pool, cx: &CpuCx) -> Result<(), KernelError> {
    let (x, out) = (InRows::new(cx, &op.x)?, OutRows::new(cx, &op.out)?);
    let groups = Groups::new(cx, &op.over, op.x.size(0), Pool::NAME)?;
    let (rows, d) = (op.out.size(0), op.x.size(1));
    let each = op.x.len().checked_div(rows).unwrap_or(0).max(d);
    cx.pool.run_ranges(rows, grain(rows, each, cx.pool.threads()), |range, _| {
        for row in range {
            let members = groups.members(row);
            // SAFETY: `spec` and the check above keep members within `x`; each row of `out` is one thread's alone.
            unsafe {
                let out = out.row(row);
                match (op.kind, members.count) {
                    (PoolKind::First, 1..) => copy_row(cx.isa, x.row(members.row(0)), out, 1.0),
                    (PoolKind::Last, 1..) => {
                        copy_row(cx.isa, x.row(members.row(members.count - 1)), out, 1.0)
                    }
                    (kind, _) => reduce(cx.isa, &x, members, kind == PoolKind::Max, out),
                }
            }
        }
    });
    Ok(())
}

/// Vectors of a row that are reduced together.
const WIDE: usize = 4;

crate::simd_fn! {
    /// Mean or largest of the members' elements; zero if there is none.
    fn reduce<S>(s: S, x: &InRows<'_>, members: Members, largest: bool, out: OutRow<'_>) {
        let d = out.len();
        let share = s.splat(1.0 / members.count.max(1) as f32);
        for start in (0..d).step_by(WIDE * S::LANES) {
            let lanes = |i: usize| S::LANES.min(d.saturating_sub(start + i * S::LANES));
            let mut all = [s.zero(); WIDE];
            for member in 0..members.count {
                // SAFETY: the caller vouches for the members; `spec` checked that rows have `d` elements.
                let row = unsafe { x.row(members.row(member)) };
                for (i, sum) in all.iter_mut().enumerate() {
                    // SAFETY: as above; no lane beyond `d`.
                    let v = unsafe { row.load(s, start + i * S::LANES, lanes(i)) };
                    *sum = match largest {
                        true if member == 0 => v,
                        true => s.max(*sum, v),
                        false => s.add(*sum, v),
                    };
                }
            }
            for (i, &sum) in all.iter().enumerate() {
                let value = if largest { sum } else { s.mul(sum, share) };
                // SAFETY: no lane beyond `d`.
                unsafe { out.store(s, start + i * S::LANES, value, lanes(i)) };
            }
        }
    }
}
