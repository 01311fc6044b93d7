//! Puts rows in their places: image tokens into a sequence of embeddings.
//!
//! `out[rows[i]] = src[i]`; other rows of `out` stay.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod grad;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

pub use self::grad::{ScatterRowsGrad, ScatterRowsGradSpec};
use super::check;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// `src: [count, d]  rows: [count]  ->  out: [tokens, d]` in place.
#[derive(Clone, Debug)]
pub struct ScatterRows {
    /// Rows to place `[count, d]`.
    pub src: View,
    /// i32 `[count]`, all different; negative ones are not written, ones beyond `out` are an error.
    pub rows: View,
    /// Rows written in part `[tokens, d]`.
    pub out: View,
}

/// The key of a [`ScatterRows`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct ScatterRowsSpec {
    /// Rows placed, bucketed.
    pub count: u32,
    /// Elements of a row.
    pub d: u32,
    /// Type of the source.
    pub x: DType,
    /// Type of the result.
    pub out: DType,
}

impl Op for ScatterRows {
    const NAME: &'static str = "scatter_rows";
    type Spec = ScatterRowsSpec;

    fn spec(&self) -> Result<ScatterRowsSpec, ShapeError> {
        let Self { src, rows, out } = self;
        check::rank("src", src, 2)?;
        check::float("src", src)?;
        check::dtype("rows", rows, DType::I32)?;
        check::shape("rows", rows, &[src.size(0)])?;
        check::rank("out", out, 2)?;
        check::float("out", out)?;
        if out.size(1) != src.size(1) {
            return Err(ShapeError::mismatch("out axis 1", src.size(1), out.size(1)));
        }
        check::output("out", out, [("src", src), ("rows", rows)])?;
        Ok(ScatterRowsSpec {
            count: bucket(src.size(0)),
            d: src.size(1) as u32,
            x: src.dtype(),
            out: out.dtype(),
        })
    }

    fn cost(&self) -> Cost {
        let written = (self.src.len() * self.out.dtype().size()) as u64;
        Cost { flops: 0, read: self.src.bytes() + self.rows.bytes(), written }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.src);
        visit(Access::In, &mut self.rows);
        visit(Access::InOut, &mut self.out);
    }

    fn of_spec(spec: &ScatterRowsSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (count, d) = (spec.count as usize, spec.d as usize);
        Ok(ScatterRows {
            src: operands.activations(&[count, d], spec.x)?,
            rows: operands.ints(&[count], &|i| 2 * i as i32)?,
            out: operands.output(&[2 * count, d], spec.out)?,
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
