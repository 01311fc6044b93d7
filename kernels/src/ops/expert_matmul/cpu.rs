//! CPU kernels: the product of many rows, expert by expert, for the rows that follow each other.

use super::ExpertMatmul;
use crate::cpu::gemm::{GemmArgs, Operand, OperandMut, ResidualRow, gemm};
use crate::cpu::{CpuCx, CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::index::Indices;
use crate::ops::matmul::cpu::args::{input, output, with_parts};
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for ExpertMatmul {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "gemm-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

fn launch(op: &ExpertMatmul, cx: &CpuCx) -> Result<(), KernelError> {
    let (ids, limit, n) = (Indices::new(cx, &op.ids)?, op.experts, op.n());
    for index in ids.iter() {
        if index < 0 || index as usize >= limit {
            let what = "id";
            return Err(KernelError::Index { op: ExpertMatmul::NAME, what, index: index.into(), limit });
        }
    }
    let (x, out) = (input(&op.x, cx)?, output(&op.out, cx)?);
    for choice in 0..op.ids.size(0) {
        let row = choice / op.share.max(1) * x.stride * x.dtype.size();
        let to = choice * out.stride * out.dtype.size();
        let x = Operand { ptr: x.ptr.wrapping_add(row), ..x };
        let out = OperandMut { ptr: out.ptr.wrapping_add(to), ..out };
        let w = op.w.rows(ids.get(choice) as usize * n, n)?;
        with_parts(&w, cx, |parts, _| {
            let args = GemmArgs {
                m: 1,
                k: w.k(),
                x,
                rows: None,
                parts,
                act: op.act,
                gated: op.gated,
                residual: None,
                residual_row: ResidualRow::Same,
                out,
            };
            // SAFETY: the spec has passed: x has the row, out the choice, and no other launch writes it meanwhile.
            unsafe { gemm(cx.isa, &cx.pool, &args) }
            Ok(())
        })?;
    }
    Ok(())
}
