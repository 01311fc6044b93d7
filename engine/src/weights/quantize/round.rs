//! Rounding the rows of a matrix, and what that costs.

use std::ops::Range;

use ocelli_kernels::quant::grouped::{self, Encoder, Rounder};
use ocelli_kernels::{Format, ShapeError};

use super::gptq::{Corrections, best_group};
use super::plan::Module;
use super::{CHUNK, QuantizeError};
use crate::weights::Checkpoint;
use crate::weights::file::widen;

/// Factors of rows and columns of a matrix: what is stored is `rows[i] * cols[j] * w[i, j]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Factors {
    pub rows: Option<Vec<f32>>,
    pub cols: Option<Vec<f32>>,
}

impl Factors {
    fn at(&self, row: usize, col: usize) -> f32 {
        let of = |all: &Option<Vec<f32>>, at: usize| all.as_ref().map_or(1.0, |all| all[at]);
        of(&self.rows, row) * of(&self.cols, col)
    }

    fn are_none(&self) -> bool {
        self.rows.is_none() && self.cols.is_none()
    }
}

/// How rows become codes.
pub(super) struct Rule<'a> {
    pub format: Format,
    pub factor: f32,
    pub factors: &'a Factors,
    /// How columns make up for each other; none: each is rounded to nearest.
    pub corrections: Option<&'a Corrections>,
    /// What errors of columns cost, where ranges may be clipped.
    pub clip: Option<&'a [f32]>,
    /// Whether [`Rounded::off`] and [`Rounded::weights`] are wanted.
    pub keep: bool,
}

/// Rows that were rounded.
pub(super) struct Rounded {
    pub planes: Vec<Vec<u8>>,
    /// Sums of the squares of weights, and of what they are off by, factors taken out.
    pub squares: [f64; 2],
    /// What weights are off by, and they themselves, if wanted.
    pub off: Vec<f32>,
    pub weights: Vec<f32>,
}

impl Rule<'_> {
    /// Rounds rows, the first of which is number `first` of the matrix.
    pub fn round(&self, k: usize, first: usize, values: Vec<f32>) -> Result<Rounded, ShapeError> {
        let rounder = Rounder::new(self.format, k, self.factor)?;
        let n = values.len().checked_div(k).unwrap_or(0);
        let mut encoder = Encoder::new(rounder, n);
        let mut w = values.clone();
        if !self.factors.are_none() {
            for (at, w) in w.iter_mut().enumerate() {
                *w *= self.factors.at(first + at / k, at % k);
            }
        }
        // What they become: what their codes stand for.
        match self.corrections {
            Some(corrections) => {
                let refused = |(row, group)| rounder.refused(first + row, group);
                corrections.round(rounder, self.clip.is_some(), &mut w, &mut encoder).map_err(refused)?;
            }
            None => self.nearest(rounder, first, &mut w, &mut encoder)?,
        }
        let mut squares = [0.0; 2];
        for (at, (w, value)) in w.iter_mut().zip(&values).enumerate() {
            let factor = if self.factors.are_none() { 1.0 } else { self.factors.at(first + at / k, at % k) };
            *w = value - *w / factor;
            squares[0] += f64::from(*value).powi(2);
            squares[1] += f64::from(*w).powi(2);
        }
        let (off, weights) = if self.keep { (w, values) } else { Default::default() };
        Ok(Rounded { planes: encoder.finish(), squares, off, weights })
    }

    fn nearest(
        &self,
        rounder: Rounder,
        first: usize,
        w: &mut [f32],
        encoder: &mut Encoder,
    ) -> Result<(), ShapeError> {
        for (row, w) in w.chunks_exact_mut(rounder.k().max(1)).enumerate() {
            for group in 0..rounder.groups() {
                let cols = rounder.cols(group);
                let of = best_group(rounder, &w[cols.clone()], self.clip.map(|costs| &costs[cols.clone()]))
                    .ok_or_else(|| rounder.refused(first + row, group))?;
                encoder.set_group(row, group, of);
                for col in cols {
                    let code = rounder.nearest(of, w[col]);
                    encoder.set_code(row, col, code);
                    w[col] = rounder.value(of, code);
                }
            }
        }
        Ok(())
    }
}

/// The rows of a stored matrix.
pub(super) struct Rows<'a> {
    checkpoint: &'a Checkpoint,
    module: &'a Module<'a>,
    bytes: &'a [u8],
}

impl<'a> Rows<'a> {
    pub fn of(checkpoint: &'a Checkpoint, module: &'a Module<'a>) -> Result<Self, QuantizeError> {
        let bytes = checkpoint.raw(&format!("{}.weight", module.name))?;
        Ok(Self { checkpoint, module, bytes })
    }

    fn values(&self, rows: Range<usize>) -> Vec<f32> {
        let size = self.module.row_bytes();
        widen(&self.bytes[rows.start * size..rows.end * size], self.module.dtype).unwrap_or_default()
    }

    /// Rounds all rows, several blocks at a time, and gives them to `take` in order with the number of the first. Blocks hold whole
    /// words of zero points.
    pub fn round(
        &self,
        rule: &Rule<'_>,
        mut take: impl FnMut(Range<usize>, Rounded) -> Result<(), QuantizeError>,
    ) -> Result<(), QuantizeError> {
        let (n, k) = (self.module.n, self.module.k);
        let most = (CHUNK / k.max(1)).next_multiple_of(8).max(8);
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(8));
        // Small matrices are shared out too.
        let rows = most.min(n.div_ceil(threads).next_multiple_of(8)).max(8);
        let mut starts = (0..n).step_by(rows);
        loop {
            let batch: Vec<usize> = starts.by_ref().take(threads).collect();
            if batch.is_empty() {
                return Ok(());
            }
            let round = |start: usize| rule.round(k, start, self.values(start..n.min(start + rows)));
            let round = &round;
            let all: Vec<Result<Rounded, ShapeError>> = std::thread::scope(|scope| {
                let all: Vec<_> = batch.iter().map(|&start| scope.spawn(move || round(start))).collect();
                all.into_iter()
                    .map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                    .collect()
            });
            for (start, rounded) in batch.into_iter().zip(all) {
                let rounded = rounded.map_err(|source| QuantizeError::Module {
                    path: self.checkpoint.path().to_owned(),
                    module: self.module.name.to_owned(),
                    source,
                })?;
                take(start..n.min(start + rows), rounded)?;
            }
        }
    }

    /// What scales of the matrix with these factors want to be multiplied with.
    pub fn factor(&self, factors: &Factors) -> f32 {
        let (n, k) = (self.module.n, self.module.k);
        let rows = (CHUNK / k.max(1)).max(1);
        let mut most = 0.0f32;
        for start in (0..n).step_by(rows) {
            for (at, value) in self.values(start..n.min(start + rows)).into_iter().enumerate() {
                most = most.max((value * factors.at(start + at / k, at % k)).abs());
            }
        }
        grouped::factor(self.module.format, &[most])
    }
}
