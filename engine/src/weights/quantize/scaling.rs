//! Activation-aware scaling (AWQ, Lin et al. 2024, arXiv 2306.00978): channels with large inputs get larger weights, which are rounded
//! to steps that are smaller beside them, and whatever produces these channels gives them as much smaller.
//!
//! With `s = mean|x|^a`, divided by `sqrt(max s * min s)`, the columns of the matrices that take `x` are multiplied with `s`, and what
//! gives `x` is divided by it: weights of a norm, or rows of a matrix. The power is that of a grid whose outputs are off by least.
//!
//! Weights of norms are kept in their type: the factor of columns is what the rounded weight really makes of it, so that both cancel. Rows
//! of matrices are scaled before they are rounded.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::inputs::Inputs;
use super::plan::Module;
use super::products::Products;
use super::round::{Factors, Rows, Rule};
use super::{Layout, QuantizeError};
use crate::weights::{Checkpoint, TensorInfo};

/// Powers that are tried.
const POWERS: [f32; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// Share of the largest magnitude that a channel's counts as at least.
const LEAST: f32 = 1e-4;

/// What gives the input of matrices.
#[derive(Clone, Debug, PartialEq)]
pub enum Producer {
    /// A norm, whose result nothing else takes: a channel for each weight of the tensor.
    Norm {
        /// The tensor of its weights.
        weight: String,
        /// What is added to them.
        offset: f32,
    },
    /// Rows of a matrix, whose results nothing else takes: a channel for each.
    Rows {
        /// The module.
        module: String,
        /// The first row.
        first: usize,
        /// How many there are.
        count: usize,
    },
}

/// Matrices that take the same input, and what gives it: a factor of a channel of one cancels its inverse in the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Fold {
    /// What gives the input.
    pub from: Producer,
    /// The modules that take it.
    pub into: Vec<String>,
    /// Columns that are of one channel: blocks of so many, each repeated so many times; `(1, 1)` where each has its own.
    pub columns: (usize, usize),
}

impl Fold {
    /// The channel of a column.
    fn channel(&self, col: usize) -> usize {
        let (block, times) = self.columns;
        let block = block.max(1);
        col / block / times.max(1) * block + col % block
    }

    /// Name of what gives the input, for notes.
    fn source(&self) -> &str {
        match &self.from {
            Producer::Norm { weight, .. } => weight,
            Producer::Rows { module, .. } => module,
        }
    }
}

/// The scales that one fold was given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Scales {
    /// Number of the fold.
    pub fold: usize,
    /// The power.
    pub power: f32,
    /// A factor for each channel, as the bits of an f32.
    bits: Vec<u32>,
}

impl Scales {
    fn values(&self) -> Vec<f32> {
        self.bits.iter().map(|&bits| f32::from_bits(bits)).collect()
    }
}

/// A search under way.
pub(super) struct Search<'a> {
    checkpoint: &'a Checkpoint,
    folds: &'a [Fold],
    /// The matrices, by name.
    modules: &'a HashMap<&'a str, &'a Module<'a>>,
    layout: Layout,
    products: Products,
    found: Vec<Found>,
}

#[derive(Default)]
struct Found {
    seen: usize,
    mean: Vec<f32>,
    costs: [f64; POWERS.len()],
}

impl<'a> Search<'a> {
    pub fn new(
        checkpoint: &'a Checkpoint,
        folds: &'a [Fold],
        modules: &'a HashMap<&'a str, &'a Module<'a>>,
        layout: Layout,
    ) -> Result<Self, QuantizeError> {
        let found = folds.iter().map(|_| Found::default()).collect();
        Ok(Self { checkpoint, folds, modules, layout, products: Products::new()?, found })
    }

    /// Why a fold cannot be, if so.
    fn refused(&self, fold: &Fold) -> Option<String> {
        let missing = |module: &&String| !self.modules.contains_key(module.as_str());
        if let Some(module) = fold.into.iter().find(missing) {
            return Some(format!("`{module}` is not quantized"));
        }
        let bias = match &fold.from {
            Producer::Norm { weight, .. } => format!("{}.bias", weight.trim_end_matches(".weight")),
            Producer::Rows { module, .. } if !self.modules.contains_key(module.as_str()) => {
                return Some(format!("`{module}` is not quantized"));
            }
            Producer::Rows { module, .. } => format!("{module}.bias"),
        };
        let channels = match &fold.from {
            Producer::Norm { weight, .. } => {
                let floats =
                    |info: &TensorInfo<'_>| matches!(info.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16);
                self.checkpoint.info(weight).filter(floats).map(|info| info.len())
            }
            Producer::Rows { module, first, count } => {
                self.modules.get(module.as_str()).filter(|of| first + count <= of.n).map(|_| *count)
            }
        };
        let (block, times) = fold.columns;
        let fits = |module: &String| {
            self.modules
                .get(module.as_str())
                .is_some_and(|module| Some(module.k) == channels.map(|c| c * times))
        };
        if self.checkpoint.contains(&bias) {
            Some(format!("it has `{bias}`"))
        } else if times == 0 || block == 0 || !fold.into.iter().all(fits) {
            Some("its channels are not the columns of those that take them".into())
        } else {
            None
        }
    }

    /// Modules whose inputs are wanted.
    pub fn wanted(&self) -> HashSet<&'a str> {
        let folds = self.folds.iter().filter(|fold| self.refused(fold).is_none());
        folds.flat_map(|fold| fold.into.iter().map(String::as_str)).collect()
    }

    /// Takes the inputs of a module.
    pub fn take(&mut self, name: &str, inputs: &Arc<Inputs>) -> Result<(), QuantizeError> {
        let Some(&module) = self.modules.get(name) else { return Ok(()) };
        for (number, fold) in self.folds.iter().enumerate() {
            if !fold.into.iter().any(|into| into == name) || self.refused(fold).is_some() {
                continue;
            }
            if self.found[number].seen == 0 {
                self.found[number].mean = channels(fold, &inputs.mean);
            }
            self.found[number].seen += 1;
            for (power, slot) in POWERS.into_iter().zip(0..) {
                let scales = scales_of(&self.found[number].mean, power);
                let cost = self.cost(module, fold, &scales, inputs)?;
                self.found[number].costs[slot] += cost;
            }
        }
        Ok(())
    }

    /// What the outputs of a matrix are off by in all, with its columns scaled.
    fn cost(
        &mut self,
        module: &Module<'_>,
        fold: &Fold,
        scales: &[f32],
        inputs: &Inputs,
    ) -> Result<f64, QuantizeError> {
        let cols = (0..module.k).map(|col| scales[fold.channel(col)]).collect();
        let factors = Factors { rows: None, cols: Some(cols) };
        let rows = Rows::of(self.checkpoint, module)?;
        let factor = if module.has_factor(self.layout) { rows.factor(&factors) } else { 1.0 };
        let rule = Rule {
            format: module.format,
            factor,
            factors: &factors,
            corrections: None,
            clip: None,
            keep: true,
        };
        let mut sum = 0.0;
        rows.round(&rule, &mut self.products, |products, _, rounded| {
            sum += products.squares(rounded.off, &inputs.gram)?;
            Ok(())
        })?;
        Ok(sum)
    }

    /// The scales of each fold that gains by them, and what is to be said of those that have none.
    pub fn finish(self) -> (Vec<Scales>, Vec<String>) {
        let (mut all, mut notes) = (Vec::new(), Vec::new());
        for (number, (fold, found)) in self.folds.iter().zip(&self.found).enumerate() {
            let source = fold.source();
            if !fold.into.iter().any(|into| self.modules.contains_key(into.as_str())) {
                continue;
            }
            if let Some(why) = self.refused(fold) {
                notes.push(format!("{source}: not scaled: {why}"));
                continue;
            }
            if found.seen < fold.into.len() {
                notes.push(format!("{source}: not scaled: no inputs were seen of all that take its result"));
                continue;
            }
            let best =
                (0..POWERS.len()).min_by(|a, b| found.costs[*a].total_cmp(&found.costs[*b])).unwrap_or(0);
            if best > 0 && found.costs[best].is_finite() {
                let bits = scales_of(&found.mean, POWERS[best]).into_iter().map(f32::to_bits).collect();
                all.push(Scales { fold: number, power: POWERS[best], bits });
            }
        }
        (all, notes)
    }
}

/// Mean magnitudes of channels, from those of columns.
fn channels(fold: &Fold, mean: &[f32]) -> Vec<f32> {
    let count = (0..mean.len()).map(|col| fold.channel(col) + 1).max().unwrap_or(0);
    let mut sums = vec![(0.0f32, 0.0f32); count];
    for (col, mean) in mean.iter().enumerate() {
        let sum = &mut sums[fold.channel(col)];
        *sum = (sum.0 + mean, sum.1 + 1.0);
    }
    sums.into_iter().map(|(sum, count)| sum / count.max(1.0)).collect()
}

/// The scales of channels with these magnitudes.
fn scales_of(mean: &[f32], power: f32) -> Vec<f32> {
    let most = mean.iter().fold(0.0f32, |most, mean| most.max(*mean));
    if most <= 0.0 || power == 0.0 {
        return vec![1.0; mean.len()];
    }
    let scales: Vec<f32> = mean.iter().map(|mean| (mean / most).max(LEAST).powf(power)).collect();
    let least = scales.iter().fold(1.0f32, |least, scale| least.min(*scale));
    scales.into_iter().map(|scale| scale / least.sqrt()).collect()
}

/// What scales make of matrices and of norms.
#[derive(Default)]
pub(super) struct Scaled {
    /// Factors of matrices, by module.
    pub factors: HashMap<String, Factors>,
    /// Bytes of tensors that are kept.
    pub kept: HashMap<String, Vec<u8>>,
    /// Modules whose columns are scaled, with the power.
    pub powers: HashMap<String, f32>,
}

impl Scaled {
    pub fn new(
        checkpoint: &Checkpoint,
        folds: &[Fold],
        modules: &HashMap<&str, &Module<'_>>,
        all: &[Scales],
    ) -> Result<Self, QuantizeError> {
        let mut scaled = Self::default();
        for scales in all {
            let Some(fold) = folds.get(scales.fold) else { continue };
            let mut values = scales.values();
            let columns = fold.into.iter().filter_map(|into| modules.get(into.as_str())).map(|of| of.k);
            let channels = columns.max().map_or(0, |k| k / fold.columns.1.max(1));
            if values.len() != channels {
                let (source, found) = (fold.source(), values.len());
                return Err(QuantizeError::Options(format!(
                    "scales of {source} in what an earlier run left: expected {channels}, found {found}"
                )));
            }
            match &fold.from {
                Producer::Norm { weight, offset } => {
                    let Some(info) = checkpoint.info(weight) else { continue };
                    let stored = checkpoint.floats(weight)?;
                    let bytes = norm(&stored, *offset, info.dtype, &mut values);
                    scaled.kept.insert(weight.clone(), bytes);
                }
                Producer::Rows { module, first, count } => {
                    let Some(of) = modules.get(module.as_str()) else { continue };
                    let factors = scaled.factors.entry(module.clone()).or_default();
                    let rows = factors.rows.get_or_insert_with(|| vec![1.0; of.n]);
                    for (row, value) in rows[*first..first + count].iter_mut().zip(&values) {
                        *row /= value;
                    }
                }
            }
            for into in &fold.into {
                let Some(of) = modules.get(into.as_str()) else { continue };
                let factors = scaled.factors.entry(into.clone()).or_default();
                let cols = factors.cols.get_or_insert_with(|| vec![1.0; of.k]);
                for (col, factor) in cols.iter_mut().enumerate() {
                    *factor *= values[fold.channel(col)];
                }
                scaled.powers.insert(into.clone(), scales.power);
            }
        }
        Ok(scaled)
    }
}

/// Divides the weights of a norm by scales, in their type; the scales become what that really does.
fn norm(stored: &[f32], offset: f32, dtype: Dtype, scales: &mut [f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(stored.len() * 4);
    for (weight, scale) in stored.iter().zip(scales) {
        let exact = (weight + offset) / *scale - offset;
        let rounded = match dtype {
            Dtype::BF16 => bf16::from_f32(exact).to_f32(),
            Dtype::F16 => f16::from_f32(exact).to_f32(),
            _ => exact,
        };
        let real = (weight + offset) / (rounded + offset);
        let value = if real.is_finite() && real > 0.0 {
            *scale = real;
            rounded
        } else {
            *scale = 1.0;
            *weight
        };
        match dtype {
            Dtype::BF16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
            Dtype::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
            _ => bytes.extend(value.to_le_bytes()),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_and_columns_cancel() {
        let stored: Vec<f32> =
            [0.5, -0.25, 0.0, 1.0, -1.0, 3.25].map(|v| bf16::from_f32(v).to_f32()).to_vec();
        for offset in [0.0, 1.0] {
            let mut scales = vec![3.3, 0.7, 1.9, 0.01, 2.0, 17.0];
            let bytes = norm(&stored, offset, Dtype::BF16, &mut scales);
            let back: Vec<f32> =
                bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect();
            for ((before, after), scale) in stored.iter().zip(&back).zip(&scales) {
                let (before, product) = (before + offset, (after + offset) * scale);
                assert!((before - product).abs() <= 1e-6 * before.abs(), "{before} {product}");
            }
            assert!(scales[0] > 3.0 && scales[5] > 16.0, "{scales:?}");
        }
    }

    #[test]
    fn columns_of_grouped_heads_share_channels() {
        let from = Producer::Rows { module: "v".into(), first: 0, count: 4 };
        let fold = Fold { from, into: vec!["o".into()], columns: (2, 3) };
        let found: Vec<usize> = (0..12).map(|col| fold.channel(col)).collect();
        assert_eq!(found, [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]);
        let mean: Vec<f32> = (0..12).map(|col| col as f32).collect();
        assert_eq!(channels(&fold, &mean), [2.0, 3.0, 8.0, 9.0]);
        let plain = Fold { columns: (1, 1), ..fold };
        assert!((0..9).all(|col| plain.channel(col) == col));
    }

    #[test]
    fn scales_spread_around_one() {
        let scales = scales_of(&[1.0, 100.0, 0.0], 0.5);
        assert!((scales[1] * scales[2] - 1.0).abs() < 1e-3, "{scales:?}");
        assert!((scales[1] / scales[0] - 10.0).abs() < 1e-3, "{scales:?}");
        assert_eq!(scales_of(&[0.0, 0.0], 0.5), [1.0, 1.0]);
    }
}
