//! Weighted sums of rows: interpolated position tables, results of experts brought together.
//!
//! `out[i] = sum_t weights[i, t] * src[ids[i, t]]`, added to what `out` holds if asked; without ids row `i` takes the rows of `src` in
//! order, `i * taps + t`.

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
use crate::spec::{Cost, DType, KernelError, MANY, ShapeError, bucket};

/// `src: [count, d]  ids, weights: [rows, taps]  ->  out: [rows, d]`.
#[derive(Clone, Debug)]
pub struct MixRows {
    /// Rows that are summed `[count, d]`.
    pub src: View,
    /// i32 `[rows, taps]`; negative ones add nothing, ones beyond `src` are an error. `None`: `0, 1, 2, ...`
    pub ids: Option<View>,
    /// f32 `[rows, taps]`: factor of each row.
    pub weights: View,
    /// Whether the sums are added to what `out` holds.
    pub add: bool,
    /// Result `[rows, d]`.
    pub out: View,
}

/// The key of a [`MixRows`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct MixRowsSpec {
    /// Rows made, bucketed.
    pub rows: u32,
    /// Rows that are summed for each.
    pub taps: u32,
    /// Elements of a row.
    pub d: u32,
    /// Type of the source.
    pub x: DType,
    /// Type of the result.
    pub out: DType,
    /// Whether sums are added to the result.
    pub add: bool,
    /// Whether rows are taken in order.
    pub in_order: bool,
}

impl Op for MixRows {
    const NAME: &'static str = "mix_rows";
    type Spec = MixRowsSpec;

    fn spec(&self) -> Result<MixRowsSpec, ShapeError> {
        let Self { src, ids, weights, out, .. } = self;
        check::rank("src", src, 2)?;
        check::float("src", src)?;
        check::dtype("weights", weights, DType::F32)?;
        check::rank("weights", weights, 2)?;
        if weights.size(1) == 0 {
            return Err(ShapeError::mismatch("weights axis 1", "at least one row", 0));
        }
        check::dense("weights", weights)?;
        check::float("out", out)?;
        check::shape("out", out, &[weights.size(0), src.size(1)])?;
        check::output("out", out, [("src", src), ("weights", weights)])?;
        match ids {
            Some(ids) => {
                check::dtype("ids", ids, DType::I32)?;
                check::shape("ids", ids, weights.shape())?;
                check::dense("ids", ids)?;
                check::output("out", out, [("ids", ids)])?;
            }
            None if src.size(0) != weights.len() => {
                return Err(ShapeError::mismatch("src axis 0", weights.len(), src.size(0)));
            }
            None => {}
        }
        Ok(MixRowsSpec {
            rows: bucket(weights.size(0)),
            taps: weights.size(1) as u32,
            d: src.size(1) as u32,
            x: src.dtype(),
            out: out.dtype(),
            add: self.add,
            in_order: ids.is_none(),
        })
    }

    fn extremes(spec: &Self::Spec) -> [Self::Spec; 2] {
        [1, MANY].map(|rows| Self::Spec { rows, ..*spec })
    }

    fn cost(&self) -> Cost {
        let (taps, d) = (self.weights.len() as u64, self.src.size(1) as u64);
        let before = if self.add { self.out.bytes() } else { 0 };
        Cost {
            flops: 2 * taps * d,
            read: taps * d * self.src.dtype().size() as u64
                + self.ids.as_ref().map_or(0, View::bytes)
                + self.weights.bytes()
                + before,
            written: self.out.bytes(),
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.src);
        if let Some(ids) = &mut self.ids {
            visit(Access::In, ids);
        }
        visit(Access::In, &mut self.weights);
        visit(if self.add { Access::InOut } else { Access::Out }, &mut self.out);
    }

    fn of_spec(spec: &MixRowsSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (rows, taps, d) = (spec.rows as usize, spec.taps as usize, spec.d as usize);
        let count = rows * taps;
        Ok(MixRows {
            src: operands.activations(&[count, d], spec.x)?,
            ids: match spec.in_order {
                true => None,
                false => Some(operands.ints(&[rows, taps], &|i| ((i + 1) * 7919 % count.max(1)) as i32)?),
            },
            weights: operands.activations(&[rows, taps], DType::F32)?,
            add: spec.add,
            out: operands.output(&[rows, d], spec.out)?,
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
