//! Picks rows of a table, quantized or not: token embeddings, the wanted rows of a batch.
//!
//! `out[i] = scale * table[ids[i]]`.

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

pub use self::grad::{GatherRowsGrad, GatherRowsGradSpec};
use super::check;
use crate::buffer::{View, Weights};
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, Format, KernelError, ShapeError, bucket};

/// `table: [rows, d] any format  ids: [tokens]  ->  out: [tokens, d]`.
#[derive(Clone, Debug)]
pub struct GatherRows {
    /// Table `[rows, d]`; biases are not used.
    pub table: Weights,
    /// i32 `[tokens]`; ids beyond the table are an error.
    pub ids: View,
    /// Factor of each element.
    pub scale: f32,
    /// Result `[tokens, d]`.
    pub out: View,
}

/// The key of a [`GatherRows`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct GatherRowsSpec {
    /// Rows picked, bucketed.
    pub tokens: u32,
    /// Rows of the table.
    pub rows: u32,
    /// Elements of a row.
    pub d: u32,
    /// Format of the table.
    pub w: Format,
    /// Type of the result.
    pub out: DType,
}

impl Op for GatherRows {
    const NAME: &'static str = "gather_rows";
    type Spec = GatherRowsSpec;

    fn spec(&self) -> Result<GatherRowsSpec, ShapeError> {
        let Self { table, ids, out, .. } = self;
        check::rank("ids", ids, 1)?;
        check::dtype("ids", ids, DType::I32)?;
        check::float("out", out)?;
        check::shape("out", out, &[ids.size(0), table.k()])?;
        check::output("out", out, [("ids", ids)])?;
        for plane in table.parts().iter().flat_map(|part| &part.planes) {
            check::output("out", out, [("table", plane)])?;
        }
        Ok(GatherRowsSpec {
            tokens: bucket(ids.size(0)),
            rows: table.n() as u32,
            d: table.k() as u32,
            w: table.format(),
            out: out.dtype(),
        })
    }

    fn cost(&self) -> Cost {
        let rows = self.ids.size(0);
        Cost {
            flops: self.out.len() as u64,
            read: self.ids.bytes() + self.table.format().bytes(rows, self.table.k()),
            written: self.out.bytes(),
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        self.table.for_each_view(&mut |view| visit(Access::In, view));
        visit(Access::In, &mut self.ids);
        visit(Access::Out, &mut self.out);
    }

    fn weights(&mut self) -> Option<&mut Weights> {
        Some(&mut self.table)
    }

    fn of_spec(spec: &GatherRowsSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (tokens, rows, d) = (spec.tokens as usize, spec.rows as usize, spec.d as usize);
        Ok(GatherRows {
            table: operands.weights(spec.w, rows, d, 1, false)?,
            ids: operands.ints(&[tokens], &|i| ((i + 1) * 7919 % rows.max(1)) as i32)?,
            scale: 1.0,
            out: operands.output(&[tokens, d], spec.out)?,
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
