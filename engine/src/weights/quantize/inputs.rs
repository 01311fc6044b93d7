//! What is known of the inputs of matrices.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ocelli_kernels::KernelError;

use super::products::{Floats, Gram, Products};
use crate::error::Result;

/// The inputs that the calibration data gives a matrix with rows of `k` weights.
#[derive(Debug)]
pub struct Inputs {
    /// Rows that were seen.
    pub rows: u64,
    /// Mean magnitude of each channel, `[k]`.
    pub mean: Vec<f32>,
    /// `X^T X`, `[k, k]`.
    pub(super) gram: Arc<Floats>,
}

impl Inputs {
    /// Of rows `[rows, k]`.
    ///
    /// # Errors
    /// If the CPU has no memory for them.
    pub fn of(x: &[f32], k: usize) -> Result<Self> {
        let mut products = Products::new()?;
        let mut gatherer = Gatherer::new(&mut products, k)?;
        gatherer.add(&mut products, x)?;
        Ok(gatherer.finish(&mut products)?)
    }

    /// Mean square of each channel, divided by the square of its number in `cols`.
    pub(super) fn squares(&self, cols: Option<&[f32]>) -> Vec<f32> {
        let k = self.mean.len();
        let square = |i: usize| self.gram.0[i * k + i] / cols.map_or(1.0, |cols| cols[i] * cols[i]);
        (0..k).map(square).collect()
    }
}

/// Inputs in work.
pub(crate) struct Gatherer {
    rows: u64,
    sums: Vec<f64>,
    gram: Gram,
}

impl Gatherer {
    /// Bytes that it takes for rows of `k` values, as does what comes of it.
    pub const fn bytes(k: usize) -> u64 {
        4 * (k * k) as u64
    }

    pub fn new(products: &mut Products, k: usize) -> Result<Self, KernelError> {
        Ok(Self { rows: 0, sums: vec![0.0; k], gram: products.gram(k)? })
    }

    /// Adds rows.
    pub fn add(&mut self, products: &mut Products, x: &[f32]) -> Result<(), KernelError> {
        for row in x.chunks_exact(self.sums.len().max(1)) {
            self.rows += 1;
            self.sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x.abs()));
        }
        products.add(&self.gram, x)
    }

    pub fn finish(self, products: &mut Products) -> Result<Inputs, KernelError> {
        let count = self.rows.max(1) as f64;
        let mean = self.sums.iter().map(|sum| (sum / count) as f32).collect();
        Ok(Inputs { rows: self.rows, mean, gram: Arc::new(products.take(&self.gram)?) })
    }
}

/// What was seen of the inputs of some matrices.
#[derive(Default)]
pub struct Seen {
    /// Inputs by the name of the matrix's module; matrices of one product share them.
    pub inputs: HashMap<String, Arc<Inputs>>,
    /// Modules whose inputs there was no memory for.
    pub left: HashSet<String>,
}

/// Calibration data: it tells what the inputs of matrices are.
pub trait Calibration {
    /// A text that differs where the data does.
    fn identity(&self) -> String;

    /// Inputs of these modules, of as many as `memory` bytes hold, one at least. Modules that no product was seen of are in neither
    /// part of the result.
    ///
    /// # Errors
    /// If the model cannot run on the data.
    fn inputs(&mut self, modules: &HashSet<&str>, memory: u64) -> Result<Seen>;
}
