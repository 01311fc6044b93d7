//! Rounding the rows of a matrix, and what that costs.

use std::ops::Range;

use ocelli_kernels::quant::grouped::{self, Encoder, Rounder};
use ocelli_kernels::{Format, ShapeError};

use super::gptq::{Corrections, best_group};
use super::plan::Module;
use super::products::Products;
use super::{CHUNK, QuantizeError};
use crate::weights::Checkpoint;
use crate::weights::file::widen;

/// Values that are corrected at a time: a product's worth of rows.
const CORRECTED: usize = 1 << 24;

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
    /// Rounds rows to nearest, the first of which is number `first` of the matrix.
    fn round(&self, k: usize, first: usize, values: Vec<f32>) -> Result<Rounded, ShapeError> {
        let rounder = Rounder::new(self.format, k, self.factor)?;
        let n = values.len().checked_div(k).unwrap_or(0);
        let mut encoder = Encoder::new(rounder, n);
        let mut w = self.scaled(k, first, &values);
        self.nearest(rounder, first, &mut w, &mut encoder)?;
        Ok(self.rounded(k, first, values, w, encoder.finish()))
    }

    /// Rounds rows whose columns make up for each other.
    fn correct(
        &self,
        corrections: &Corrections,
        products: &mut Products,
        [k, first]: [usize; 2],
        values: Vec<f32>,
    ) -> Result<Result<Rounded, ShapeError>, QuantizeError> {
        let rounder = match Rounder::new(self.format, k, self.factor) {
            Ok(rounder) => rounder,
            Err(error) => return Ok(Err(error)),
        };
        let mut w = self.scaled(k, first, &values);
        let refused = |(row, group): (usize, usize)| rounder.refused(first + row, group);
        let planes = corrections.round(products, rounder, self.clip.is_some(), &mut w, &refused)?;
        Ok(planes.map(|planes| self.rounded(k, first, values, w, planes)))
    }

    /// Rows with their factors.
    fn scaled(&self, k: usize, first: usize, values: &[f32]) -> Vec<f32> {
        let mut w = values.to_vec();
        if !self.factors.are_none() {
            for (at, w) in w.iter_mut().enumerate() {
                *w *= self.factors.at(first + at / k, at % k);
            }
        }
        w
    }

    /// What is told of rows that have become `w`: what their codes stand for.
    fn rounded(
        &self,
        k: usize,
        first: usize,
        values: Vec<f32>,
        mut w: Vec<f32>,
        planes: Vec<Vec<u8>>,
    ) -> Rounded {
        let mut squares = [0.0; 2];
        for (at, (w, value)) in w.iter_mut().zip(&values).enumerate() {
            let factor = if self.factors.are_none() { 1.0 } else { self.factors.at(first + at / k, at % k) };
            *w = value - *w / factor;
            squares[0] += f64::from(*value).powi(2);
            squares[1] += f64::from(*w).powi(2);
        }
        let (off, weights) = if self.keep { (w, values) } else { Default::default() };
        Rounded { planes, squares, off, weights }
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
        let bytes = checkpoint.raw(module.source.tensor)?;
        let first = module.source.first * module.dtype.bitsize() / 8;
        Ok(Self { checkpoint, module, bytes: bytes.get(first..).unwrap_or_default() })
    }

    fn values(&self, rows: Range<usize>) -> Vec<f32> {
        let (k, row) = (self.module.k, self.module.row_bytes());
        let Some(pitch) = self.module.source.turned else {
            return widen(&self.bytes[rows.start * row..rows.end * row], self.module.dtype)
                .unwrap_or_default();
        };
        let size = self.module.dtype.bitsize() / 8;
        let mut turned = vec![0u8; rows.len() * row];
        for col in 0..k {
            let from = &self.bytes[(col * pitch + rows.start) * size..(col * pitch + rows.end) * size];
            for (value, row) in from.chunks_exact(size).zip(turned.chunks_exact_mut(row)) {
                row[col * size..(col + 1) * size].copy_from_slice(value);
            }
        }
        widen(&turned, self.module.dtype).unwrap_or_default()
    }

    /// Rounds all rows, several blocks at a time, and gives them to `take` in order with their numbers. Blocks hold whole words of zero
    /// points.
    pub fn round(
        &self,
        rule: &Rule<'_>,
        products: &mut Products,
        mut take: impl FnMut(&mut Products, Range<usize>, Rounded) -> Result<(), QuantizeError>,
    ) -> Result<(), QuantizeError> {
        let (n, k) = (self.module.n, self.module.k);
        let named = |source: ShapeError| QuantizeError::Module {
            path: self.checkpoint.path().to_owned(),
            module: self.module.name.clone(),
            source,
        };
        if let Some(corrections) = rule.corrections {
            let rows = (CORRECTED / k.max(1)).next_multiple_of(8).max(8);
            for start in (0..n).step_by(rows) {
                let here = start..n.min(start + rows);
                let values = self.values(here.clone());
                let rounded = rule.correct(corrections, products, [k, start], values)?.map_err(named)?;
                take(products, here, rounded)?;
            }
            return Ok(());
        }
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
                take(products, start..n.min(start + rows), rounded.map_err(named)?)?;
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
