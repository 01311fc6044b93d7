//! CPU kernels.

use super::SumSquares;
use crate::cpu::rows::{InRows, OutRows};
use crate::cpu::{CpuCx, CpuOp, CpuRows};
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for SumSquares {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "blocks-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

fn launch(op: &SumSquares, cx: &CpuCx) -> Result<(), KernelError> {
    let (x, out) = (InRows::new(cx, &op.x)?, OutRows::new(cx, &op.out)?);
    cx.pool.run_ranges(op.out.len(), 1, |range, _| {
        for block in range {
            sum(cx.isa, &x, &out, block);
        }
    });
    Ok(())
}

/// Sums in flight: hides the latency of additions.
const PARTS: usize = 4;

crate::simd_fn! {
    fn sum<S>(s: S, x: &InRows<'_>, out: &OutRows<'_>, block: usize) {
        // SAFETY: `spec` checked that there are as many sums as blocks; each is one thread's.
        unsafe {
            let x = x.row(0).skip(block * SumSquares::BLOCK);
            let len = x.len().min(SumSquares::BLOCK);
            let mut sums = [s.zero(); PARTS];
            for (i, at) in (0..len).step_by(S::LANES).enumerate() {
                let v = x.load(s, at, S::LANES.min(len - at));
                sums[i % PARTS] = s.fma(v, v, sums[i % PARTS]);
            }
            let total = s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
            out.row(0).part(block, 1).store(s, 0, s.splat(total), 1);
        }
    }
}
