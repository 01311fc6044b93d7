//! Single rows of a weight matrix of any format, decoded.

use smallvec::SmallVec;

use super::CpuCx;
use super::isa::Isa;
use super::rows::{InRows, OutRow, copy_row};
use crate::buffer::{WeightPart, Weights};
use crate::quant::grouped::cpu::{Decoded, GroupedRows};
use crate::quant::{Decoder, with_decoder};
use crate::spec::KernelError;

/// The rows of a stacked weight matrix.
pub(crate) struct Table<'a> {
    parts: SmallVec<[(usize, Part<'a>); 3]>,
    k: usize,
}

enum Part<'a> {
    Dense(InRows<'a>),
    Codes(GroupedRows),
}

impl<'a> Table<'a> {
    /// The rows of `weights`.
    pub(crate) fn new(cx: &CpuCx, weights: &'a Weights) -> Result<Self, KernelError> {
        let k = weights.k();
        let part = |part: &'a WeightPart| {
            let rows = match GroupedRows::new(cx, weights.format(), k, part)? {
                Some(rows) => Part::Codes(rows),
                None => Part::Dense(InRows::new(cx, &part.planes[0])?),
            };
            Ok((part.rows, rows))
        };
        let parts = weights.parts().iter().map(part).collect::<Result<_, KernelError>>()?;
        Ok(Self { parts, k })
    }

    /// Writes `scale` times row `row` to `out`, as many elements as both have.
    ///
    /// # Safety
    /// The matrix has more than `row` rows.
    pub(crate) unsafe fn decode(&self, isa: Isa, mut row: usize, scale: f32, out: OutRow<'_>) {
        for (rows, part) in &self.parts {
            if row < *rows {
                match part {
                    // SAFETY: the part has the row, and nobody writes weights.
                    Part::Dense(dense) => copy_row(isa, unsafe { dense.row(row) }, out, scale),
                    Part::Codes(rows) => with_decoder!(rows.code, decoder => {
                        decode_codes(isa, Decoded(*rows, decoder), row, out.part(0, self.k), scale);
                    }),
                }
                return;
            }
            row -= rows;
        }
    }
}

crate::simd_fn! {
    /// Decodes the first elements of a row that the matrix has, as many as `out` takes.
    fn decode_codes<S, D: Decoder>(s: S, rows: Decoded<D>, row: usize, out: OutRow<'_>, scale: f32) {
        let scale = s.splat(scale);
        for at in (0..out.len()).step_by(S::LANES) {
            let n = S::LANES.min(out.len() - at);
            // SAFETY: callers vouch for the row, and `Weights::new` checked the planes against it; nobody writes weights.
            unsafe { out.store(s, at, s.mul(rows.load_some(s, row, at, n), scale), n) }
        }
    }
}
