//! Columns in another order: activations for weights whose columns were sorted.
//!
//! `out[i, j] = x[i, columns[j]]`

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::check;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// `x: [rows, k]  columns: [n]  ->  out: [rows, n]`.
#[derive(Clone, Debug)]
pub struct GatherColumns {
    /// Rows to read `[rows, k]`.
    pub x: View,
    /// i32 `[n]`, each of `0..k`; others are an error on the CPU and read some column elsewhere.
    pub columns: View,
    /// Rows written `[rows, n]`, of the type of `x`.
    pub out: View,
}

/// The key of a [`GatherColumns`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct GatherColumnsSpec {
    /// Rows, bucketed.
    pub rows: u32,
    /// Columns of the source.
    pub k: u32,
    /// Columns of the result.
    pub n: u32,
    /// Type of both.
    pub x: DType,
}

impl Op for GatherColumns {
    const NAME: &'static str = "gather_columns";
    type Spec = GatherColumnsSpec;

    fn spec(&self) -> Result<GatherColumnsSpec, ShapeError> {
        let Self { x, columns, out } = self;
        check::rank("x", x, 2)?;
        check::float("x", x)?;
        check::rank("columns", columns, 1)?;
        check::dtype("columns", columns, DType::I32)?;
        check::dtype("out", out, x.dtype())?;
        check::shape("out", out, &[x.size(0), columns.size(0)])?;
        check::output("out", out, [("x", x), ("columns", columns)])?;
        Ok(GatherColumnsSpec {
            rows: bucket(x.size(0)),
            k: x.size(1) as u32,
            n: columns.size(0) as u32,
            x: x.dtype(),
        })
    }

    fn cost(&self) -> Cost {
        Cost { flops: 0, read: self.out.bytes() + self.columns.bytes(), written: self.out.bytes() }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        visit(Access::In, &mut self.columns);
        visit(Access::Out, &mut self.out);
    }

    fn of_spec(spec: &GatherColumnsSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (rows, k, n) = (spec.rows as usize, spec.k as usize, spec.n as usize);
        Ok(GatherColumns {
            x: operands.activations(&[rows, k], spec.x)?,
            columns: operands.ints(&[n], &|j| (j * 37 % k.max(1)) as i32)?,
            out: operands.output(&[rows, n], spec.x)?,
        })
    }

    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError> {
        reference::reference(self, io)
    }

    #[cfg(feature = "conformance")]
    fn cases(cx: &mut crate::conformance::CaseCx) -> Vec<crate::conformance::Case<Self>> {
        cases::cases(cx)
    }
}
