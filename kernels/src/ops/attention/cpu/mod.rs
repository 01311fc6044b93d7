//! CPU kernels.

mod operands;
mod plain;

use half::{bf16, f16};

use super::{Attention, AttentionKv, AttentionSpec};
use crate::cpu::CpuCx;
use crate::cpu::simd::StoreElem;
use crate::op::{CpuLaunch, CpuOp, Op};
use crate::select::Variant;
use crate::spec::{DType, Element, KernelError};

impl CpuOp for Attention {
    fn cpu_variants() -> &'static [Variant<<Self as Op>::Spec, CpuLaunch<Self>>] {
        const ROWS: &[Variant<AttentionSpec, CpuLaunch<Attention>>] =
            &[Variant { name: "plain", reject: |_, _| None, est_us: |_, _| 1e9, launch: plain }];
        ROWS
    }
}

/// Pointers for the threads of one op.
struct Shared<T>(T);

// SAFETY: tasks write disjoint heads of the result and only read the rest.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Closures capture the wrapper, not the pointers in it.
    fn get(&self) -> &T {
        &self.0
    }
}

fn plain(op: &Attention, cx: &CpuCx) -> Result<(), KernelError> {
    match op.q.dtype() {
        DType::BF16 => plain_on::<bf16>(op, cx),
        DType::F16 => plain_on::<f16>(op, cx),
        _ => plain_on::<f32>(op, cx),
    }
}

fn plain_on<X: StoreElem + Element>(op: &Attention, cx: &CpuCx) -> Result<(), KernelError> {
    let (AttentionKv::Packed { k, v, .. } | AttentionKv::Paged { k, v, .. }) = &op.kv;
    match k.dtype() {
        DType::BF16 => plain::run::<X, bf16>(op, cx, cx.input(k)?, cx.input(v)?),
        DType::F16 => plain::run::<X, f16>(op, cx, cx.input(k)?, cx.input(v)?),
        _ => plain::run::<X, f32>(op, cx, cx.input(k)?, cx.input(v)?),
    }
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conformance::run_cpu;
    use crate::cpu::isa::Isa;
    use crate::cpu::pool::Pool;

    #[test]
    fn conforms() {
        let report = run_cpu::<Attention>(&Isa::available(), &Arc::new(Pool::new(3)), 7);
        assert!(report.failed.is_empty(), "{} failed:\n{}", report.failed.len(), report.failed.join("\n"));
        assert!(report.passed > 0);
    }
}
