//! CPU kernels: the largest logit of a row, then powers in an f32 buffer with their sum, then what is stored.

use std::ops::Range;

use super::Softmax;
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRows, OutRows, grain};
use crate::cpu::simd::math;
use crate::cpu::{CpuOp, CpuRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for Softmax {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "rows-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

fn launch(op: &Softmax, cx: &CpuCx) -> Result<(), KernelError> {
    let (rows, d) = (op.x.size(0), op.x.size(1));
    let (x, out) = (InRows::new(cx, &op.x)?, OutRows::new(cx, &op.out)?);
    if d == 0 {
        return Ok(());
    }
    cx.pool.run_ranges(rows, grain(rows, 4 * d, cx.pool.threads()), |range, worker| {
        probabilities(cx.isa, &x, &out, range, worker.scratch.slice::<f32>(d));
    });
    Ok(())
}

/// Maxima and sums in flight: hides the latency of their operations.
const PARTS: usize = 4;

crate::simd_fn! {
    /// Rows of `buffer.len()` elements. The rows of `out` are this thread's alone.
    fn probabilities<S>(s: S, x: &InRows<'_>, out: &OutRows<'_>, rows: Range<usize>, buffer: &mut [f32]) {
        let d = buffer.len();
        let buffer = buffer.as_mut_ptr();
        for row in rows {
            // SAFETY: `spec` checked that both operands have these rows of `d` elements; ranges of rows are disjoint.
            unsafe {
                let (x, out) = (x.row(row), out.row(row));
                let lowest = s.splat(f32::NEG_INFINITY);
                let mut most = [lowest; PARTS];
                for (i, at) in (0..d).step_by(S::LANES).enumerate() {
                    let n = S::LANES.min(d - at);
                    let v = x.load(s, at, n);
                    let v = if n == S::LANES { v } else { s.select(s.first(n), v, lowest) };
                    most[i % PARTS] = s.max(most[i % PARTS], v);
                    s.store_n(buffer.add(at), v, n);
                }
                let most = s.max_lane(s.max(s.max(most[0], most[1]), s.max(most[2], most[3])));
                let (about, mut sums) = (s.splat(most), [s.zero(); PARTS]);
                for (i, at) in (0..d).step_by(S::LANES).enumerate() {
                    let n = S::LANES.min(d - at);
                    let power = math::exp(s, s.sub(s.load_n(buffer.add(at), n), about));
                    let power = if n == S::LANES { power } else { s.select(s.first(n), power, s.zero()) };
                    sums[i % PARTS] = s.add(sums[i % PARTS], power);
                    s.store_n(buffer.add(at), power, n);
                }
                let total = s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
                let share = s.splat(1.0 / total);
                for at in (0..d).step_by(S::LANES) {
                    let n = S::LANES.min(d - at);
                    out.store(s, at, s.mul(s.load_n(buffer.add(at), n), share), n);
                }
            }
        }
    }
}
