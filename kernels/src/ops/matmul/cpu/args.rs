//! Operands of a product as pointers.

use half::{bf16, f16};
use smallvec::SmallVec;

use crate::buffer::{View, WeightPart, Weights};
use crate::cpu::CpuCx;
use crate::cpu::gemm::{Dense, GemmArgs, Operand, OperandMut, PanelSource, Part, ResidualRow};
use crate::ops::Matmul;
use crate::quant::grouped::cpu::GroupedRows;
use crate::quant::kmajor::cpu::KMajorRows;
use crate::spec::{DType, Format, KernelError};

/// Rows of one stored tensor, in whatever format.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) enum Rows {
    /// Floats, and where they lie.
    Dense(Dense, Operand),
    /// Codes in groups.
    Grouped(GroupedRows),
    /// The same along `n`.
    KMajor(KMajorRows),
}

impl Rows {
    fn new(format: Format, k: usize, part: &WeightPart, cx: &CpuCx) -> Result<Self, KernelError> {
        if let Some(rows) = GroupedRows::new(cx, format, k, part)? {
            return Ok(Self::Grouped(rows));
        }
        if let Some(rows) = KMajorRows::new(cx, format, k, part)? {
            return Ok(Self::KMajor(rows));
        }
        let matrix = input(&part.planes[0], cx)?;
        // SAFETY: `Weights` has checked that the plane holds `[n, k]` values, and it lives as long as the op.
        Ok(Self::Dense(unsafe { Dense::new(matrix) }, matrix))
    }

    fn source(&self) -> &dyn PanelSource {
        match self {
            Self::Dense(dense, _) => dense,
            Self::Grouped(rows) => rows,
            Self::KMajor(rows) => rows,
        }
    }
}

/// A matrix of floats that is read; of a vector, the elements are rows.
pub(in crate::ops) fn input(view: &View, cx: &CpuCx) -> Result<Operand, KernelError> {
    Ok(Operand { ptr: view.read_bytes_ptr(cx.id)?, dtype: view.dtype(), stride: view.stride(0) })
}

pub(in crate::ops) fn output(view: &View, cx: &CpuCx) -> Result<OperandMut, KernelError> {
    let ptr = match view.dtype() {
        DType::BF16 => cx.output::<bf16>(view)?.cast(),
        DType::F16 => cx.output::<f16>(view)?.cast(),
        _ => cx.output::<f32>(view)?.cast(),
    };
    Ok(OperandMut { ptr, dtype: view.dtype(), stride: view.stride(0) })
}

/// Calls `run` with the parts of a matrix, and the rows behind each of them.
pub(in crate::ops) fn with_parts(
    w: &Weights,
    cx: &CpuCx,
    run: impl FnOnce(&[Part], &[Rows]) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    let mut rows: SmallVec<[Rows; 3]> = SmallVec::new();
    for part in w.parts() {
        rows.push(Rows::new(w.format(), w.k(), part, cx)?);
    }
    let mut parts: SmallVec<[Part; 3]> = SmallVec::new();
    for (part, rows) in w.parts().iter().zip(&rows) {
        let bias = part.bias.as_ref().map(|bias| input(bias, cx)).transpose()?;
        parts.push(Part { rows: part.rows, source: rows.source(), bias });
    }
    run(&parts, &rows)
}

/// Calls `run` with the operands of `op`, whose spec has passed, and the rows behind each part of the weights.
///
/// All pointers are valid for the sizes stated in the arguments, and `out` overlaps at most an identical residual: that is
/// what the spec checks.
pub(super) fn with_args(
    op: &Matmul,
    cx: &CpuCx,
    run: impl FnOnce(&GemmArgs, &[Rows]) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    with_parts(&op.w, cx, |parts, rows| {
        let args = GemmArgs {
            m: op.x.size(0),
            k: op.w.k(),
            x: input(&op.x, cx)?,
            rows: None,
            parts,
            act: op.act,
            gated: op.gated,
            residual: op.residual.as_ref().map(|view| input(view, cx)).transpose()?,
            residual_row: ResidualRow::Same,
            out: output(&op.out, cx)?,
        };
        run(&args, rows)
    })
}
