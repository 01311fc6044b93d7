//! Rounding that corrects itself: the columns of a matrix are rounded one after the other, and what each is off by is made up for by
//! those that follow, as far as the inputs of the matrix let it (GPTQ, Frantar et al. 2023, arXiv 2210.17323).
//!
//! With `H = X^T X` of the inputs and `H^-1 = U^T U`, `U` upper triangular, column `j` is off by `e = w_j - q_j`, and column `l > j`
//! changes by `-e U[j, l] / U[j, j]`. Columns are taken in order, those of a group of weights with one scale after its scale is fixed. Columns
//! that no input ever reaches are rounded to nearest and change none.
//!
//! Within a block of columns they are taken one by one; what a block changes in those after it is one product, by the kernels that run models.

use ocelli_kernels::quant::grouped::{Encoder, Group, Rounder};
use ocelli_kernels::{KernelError, ShapeError, View};
use rayon::prelude::*;

use super::QuantizeError;
use super::factor::{self, BLOCK, Step, inverse_factor};
use super::products::Products;

/// Added to the diagonal of `H`, of its mean.
pub(super) const DAMP: f64 = 0.01;

/// The same where that does not do.
const MORE: [f64; 3] = [DAMP, 0.1, 1.0];

/// Rows that one thread rounds at a time: whole words of zero points.
const TOGETHER: usize = 16;

/// Parts of the range of a group that are tried where it may be clipped.
const SHRINKS: [f32; 11] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5];

/// The same of scales that are powers of two.
const EXPONENTS: [f32; 3] = [1.0, 2.0, 0.5];

/// How the columns of a matrix make up for each other.
pub(super) struct Corrections {
    k: usize,
    /// `U^T`, row-major; what is above its diagonal has no meaning.
    turned: View,
    /// Rows of `U` as far as their block reaches, [`BLOCK`] numbers each, those before the diagonal without a meaning.
    near: Vec<f32>,
    /// What an error of a column costs, once those after it have made up for it.
    weights: Vec<f32>,
}

/// Rows that are rounded by one thread.
struct Part {
    encoder: Encoder,
    /// What groups share, row by row, once it is known.
    groups: Vec<Option<Group>>,
    /// The first that has no scale.
    refused: Option<(usize, usize)>,
}

impl Corrections {
    /// Bytes that they take, and take to be found.
    pub const fn bytes(k: usize) -> u64 {
        factor::bytes(k) + 4 * (k as u64) * (BLOCK as u64)
    }

    /// For inputs with `gram = X^T X`, each divided by its number in `cols`. `None` where these are not finite.
    pub fn new(
        products: &mut Products,
        gram: &[f32],
        k: usize,
        cols: Option<&[f32]>,
        step: &mut Step<'_>,
    ) -> Result<Option<Self>, QuantizeError> {
        let scale = |i: usize| cols.map_or(1.0, |cols| f64::from(cols[i]));
        let value = |i: usize, j: usize| f64::from(gram[i * k + j]) / (scale(i) * scale(j));
        let finite = |i: usize| (0..k).all(|j| (value(i, j) as f32).is_finite());
        if !(0..k).into_par_iter().all(finite) {
            return Ok(None);
        }
        let diagonal: Vec<f64> = (0..k).map(|i| value(i, i)).collect();
        let mean = diagonal.iter().sum::<f64>() / k.max(1) as f64;
        for damp in MORE {
            let fill = |i: usize, row: &mut [f32]| {
                let dead = |i: usize| diagonal[i] <= 0.0;
                for (j, to) in row.iter_mut().enumerate() {
                    *to = if dead(i) || dead(j) { 0.0 } else { value(i, j) as f32 };
                }
                row[i] = if dead(i) { mean.max(1.0) } else { diagonal[i] + damp * mean } as f32;
            };
            let Some(turned) = inverse_factor(products, k, &fill, step)? else { continue };
            let mut near = Vec::with_capacity(k * BLOCK);
            for first in (0..k).step_by(BLOCK) {
                let width = BLOCK.min(k - first);
                let view = turned.narrow(0, first, width).and_then(|rows| rows.narrow(1, first, width));
                let block = products.read(&view.map_err(KernelError::from)?)?;
                for i in 0..width {
                    let rest = std::iter::repeat_n(0.0, BLOCK - width);
                    near.extend((0..width).map(|j| block[j * width + i]).chain(rest));
                }
            }
            let weights = (0..k).map(|i| near[i * BLOCK + i % BLOCK].powi(-2)).collect();
            return Ok(Some(Self { k, turned, near, weights }));
        }
        Ok(None)
    }

    /// Rounds `w: [rows, k]`, which become what their codes stand for, and gives the planes of their codes. `refused` tells of a row and
    /// a group that have no scale.
    pub fn round(
        &self,
        products: &mut Products,
        rounder: Rounder,
        clip: bool,
        w: &mut Vec<f32>,
        refused: &dyn Fn((usize, usize)) -> ShapeError,
    ) -> Result<Result<Vec<Vec<u8>>, ShapeError>, QuantizeError> {
        let (k, len) = (self.k, rounder.group_len());
        let rows = w.len() / k.max(1);
        // Groups begin where everything before them has reached them, unless they cross blocks.
        let whole = !BLOCK.is_multiple_of(len);
        let mut parts: Vec<Part> = (0..rows)
            .step_by(TOGETHER)
            .map(|first| TOGETHER.min(rows - first))
            .map(|rows| Part {
                encoder: Encoder::new(rounder, rows),
                groups: vec![None; rows * rounder.groups()],
                refused: None,
            })
            .collect();
        if whole {
            parts.par_iter_mut().zip(w.par_chunks(TOGETHER * k)).for_each(|(part, w)| {
                for (row, w) in w.chunks_exact(k).enumerate() {
                    for group in 0..rounder.groups() {
                        let cols = rounder.cols(group);
                        let costs = clip.then(|| &self.weights[cols.clone()]);
                        part.set(rounder, [row, group], &w[cols], costs);
                    }
                }
            });
        }
        let all = products.alloc(&[rows, k])?;
        products.write(&all, w)?;
        for start in (0..k).step_by(BLOCK) {
            let width = BLOCK.min(k - start);
            let here = all.narrow(1, start, width).map_err(KernelError::from)?;
            let mut now = products.read(&here)?;
            let mut errors = vec![0.0f32; now.len()];
            let (of_w, of_errors) =
                (now.par_chunks_mut(TOGETHER * width), errors.par_chunks_mut(TOGETHER * width));
            parts.par_iter_mut().zip(of_w.zip(of_errors)).for_each(|(part, (w, errors))| {
                self.round_block(rounder, clip, part, w, errors, [start, width]);
            });
            if let Some(first) = parts.iter().position(|part| part.refused.is_some()) {
                let (row, group) = parts[first].refused.unwrap_or_default();
                return Ok(Err(refused((first * TOGETHER + row, group))));
            }
            products.write(&here, &now)?;
            let end = start + width;
            if end < k {
                let rest = all.narrow(1, end, k - end).map_err(KernelError::from)?;
                let later = self.turned.narrow(0, end, k - end).and_then(|u| u.narrow(1, start, width));
                let taken = products.alloc(&[rows, width])?;
                products.write(&taken, &errors)?;
                products.multiply(&taken, &later.map_err(KernelError::from)?, &rest, true)?;
            }
        }
        *w = products.read(&all)?;
        let mut planes: Vec<Vec<u8>> = Vec::new();
        for part in parts {
            for (at, plane) in part.encoder.finish().into_iter().enumerate() {
                match planes.get_mut(at) {
                    Some(before) => before.extend(plane),
                    None => planes.push(plane),
                }
            }
        }
        Ok(Ok(planes))
    }

    /// Rounds the columns `start..` of some rows, `[rows, width]`; errors become what the columns after these take, times `U`.
    fn round_block(
        &self,
        rounder: Rounder,
        clip: bool,
        part: &mut Part,
        w: &mut [f32],
        errors: &mut [f32],
        [start, width]: [usize; 2],
    ) {
        let len = rounder.group_len();
        let own = BLOCK.is_multiple_of(len);
        for (row, (w, errors)) in w.chunks_exact_mut(width).zip(errors.chunks_exact_mut(width)).enumerate() {
            for at in 0..width {
                let i = start + at;
                if own && i.is_multiple_of(len) {
                    let cols = i..self.k.min(i + len);
                    let costs = clip.then(|| &self.weights[cols.clone()]);
                    part.set(rounder, [row, i / len], &w[at..at + cols.len()], costs);
                }
                let Some(of) = part.groups[row * rounder.groups() + i / len] else { continue };
                let code = rounder.nearest(of, w[at]);
                part.encoder.set_code(row, i, code);
                let value = rounder.value(of, code);
                let u = &self.near[i * BLOCK + at..i * BLOCK + width];
                let error = (w[at] - value) / u[0];
                w[at] = value;
                errors[at] = -error;
                w[at + 1..].iter_mut().zip(&u[1..]).for_each(|(w, u)| *w -= error * u);
            }
        }
    }
}

impl Part {
    /// Sets what a group shares, by its weights and what their errors cost.
    fn set(&mut self, rounder: Rounder, [row, group]: [usize; 2], values: &[f32], costs: Option<&[f32]>) {
        match best_group(rounder, values, costs) {
            Some(found) => {
                self.encoder.set_group(row, group, found);
                self.groups[row * rounder.groups() + group] = Some(found);
            }
            None => self.refused = self.refused.or(Some((row, group))),
        }
    }
}

/// What a group shares; with `weights` of its columns the range that costs least, perhaps a part of all.
pub(super) fn best_group(rounder: Rounder, values: &[f32], weights: Option<&[f32]>) -> Option<Group> {
    let whole = rounder.group(values, 1.0)?;
    let Some(weights) = weights else { return Some(whole) };
    let cost = |of: Group| -> f64 {
        let off = |value: f32| f64::from(value - rounder.value(of, rounder.nearest(of, value)));
        values.iter().zip(weights).map(|(value, weight)| f64::from(*weight) * off(*value).powi(2)).sum()
    };
    let shrinks = if rounder.has_exponents_alone() { &EXPONENTS[..] } else { &SHRINKS[..] };
    let (mut best, mut least) = (whole, cost(whole));
    for shrink in &shrinks[1..] {
        let Some(group) = rounder.group(values, *shrink) else { continue };
        let cost = cost(group);
        if cost < least {
            (best, least) = (group, cost);
        }
    }
    Some(best)
}

#[cfg(test)]
mod tests {
    use ocelli_kernels::Format;
    use ocelli_kernels::quant::grouped;

    use super::*;

    /// Inputs whose columns are alike: a few causes, mixed.
    fn inputs(rows: usize, k: usize, causes: usize, seed: u64) -> Vec<f32> {
        let noise = noise(seed);
        let mut next = noise;
        let mix: Vec<f32> = (0..causes * k).map(|_| next()).collect();
        let mut x = Vec::with_capacity(rows * k);
        for _ in 0..rows {
            let cause: Vec<f32> = (0..causes).map(|_| next()).collect();
            for col in 0..k {
                let sum: f32 = (0..causes).map(|c| cause[c] * mix[c * k + col]).sum();
                x.push(sum + 0.1 * next());
            }
        }
        x
    }

    fn noise(seed: u64) -> impl FnMut() -> f32 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        }
    }

    fn gram(x: &[f32], k: usize) -> Vec<f32> {
        let mut h = vec![0.0f64; k * k];
        for row in x.chunks(k) {
            for i in 0..k {
                for j in 0..k {
                    h[i * k + j] += f64::from(row[i]) * f64::from(row[j]);
                }
            }
        }
        h.into_iter().map(|value| value as f32).collect()
    }

    /// The squares of what the outputs are off by.
    fn output_error(w: &[f32], q: &[f32], x: &[f32], k: usize) -> f64 {
        let mut sum = 0.0;
        for (w, q) in w.chunks(k).zip(q.chunks(k)) {
            for x in x.chunks(k) {
                let off: f64 = (0..k).map(|i| f64::from(w[i] - q[i]) * f64::from(x[i])).sum();
                sum += off * off;
            }
        }
        sum
    }

    fn corrections(products: &mut Products, h: &[f32], k: usize) -> Option<Corrections> {
        Corrections::new(products, h, k, None, &mut |_, _| Ok(())).unwrap()
    }

    fn round(format: &str, w: &[f32], k: usize, h: &[f32], clip: bool) -> Vec<f32> {
        let format: Format = format.parse().unwrap();
        let rounder = Rounder::new(format, k, 1.0).unwrap();
        let n = w.len() / k;
        let mut all = w.to_vec();
        let mut products = Products::new().unwrap();
        let corrections = corrections(&mut products, h, k).unwrap();
        let refused = |(row, group)| rounder.refused(row, group);
        let planes = corrections.round(&mut products, rounder, clip, &mut all, &refused).unwrap().unwrap();
        let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
        let back = grouped::decode(format, n, k, &planes, 1.0).unwrap();
        for (a, b) in all.iter().zip(&back) {
            assert!((a - b).abs() <= 1e-5 * b.abs().max(1e-2), "what is told is what codes stand for");
        }
        back
    }

    fn nearest(format: &str, w: &[f32], k: usize) -> Vec<f32> {
        let format: Format = format.parse().unwrap();
        let n = w.len() / k;
        let planes = grouped::encode(format, n, k, w, 1.0).unwrap();
        let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
        grouped::decode(format, n, k, &planes, 1.0).unwrap()
    }

    /// The inverse of a matrix, by elimination.
    fn inverse(h: &[f64], k: usize) -> Vec<f64> {
        let mut a = h.to_vec();
        let mut inverse: Vec<f64> = (0..k * k).map(|at| if at / k == at % k { 1.0 } else { 0.0 }).collect();
        for i in 0..k {
            let pivot = a[i * k + i];
            for j in 0..k {
                a[i * k + j] /= pivot;
                inverse[i * k + j] /= pivot;
            }
            for row in (0..k).filter(|row| *row != i) {
                let factor = a[row * k + i];
                for j in 0..k {
                    a[row * k + j] -= factor * a[i * k + j];
                    inverse[row * k + j] -= factor * inverse[i * k + j];
                }
            }
        }
        inverse
    }

    /// Optimal brain quantization in order, as its paper has it: after each column the inverse of what is left is found anew.
    fn slow(format: &str, w: &[f32], k: usize, h: &[f32]) -> Vec<f32> {
        let rounder = Rounder::new(format.parse().unwrap(), k, 1.0).unwrap();
        let mean = (0..k).map(|i| f64::from(h[i * k + i])).sum::<f64>() / k as f64;
        let damped = |i: usize, j: usize| f64::from(h[i * k + j]) + if i == j { DAMP * mean } else { 0.0 };
        let mut w: Vec<f64> = w.iter().map(|&v| v.into()).collect();
        let mut groups = vec![None; w.len() / k];
        for i in 0..k {
            let left = k - i;
            let part: Vec<f64> = (0..left * left).map(|at| damped(i + at / left, i + at % left)).collect();
            let inverse = inverse(&part, left);
            for (row, of) in w.chunks_exact_mut(k).zip(&mut groups) {
                if i % rounder.group_len() == 0 {
                    let values: Vec<f32> =
                        row[i..k.min(i + rounder.group_len())].iter().map(|&v| v as f32).collect();
                    *of = rounder.group(&values, 1.0);
                }
                let group = of.unwrap();
                let value = f64::from(rounder.value(group, rounder.nearest(group, row[i] as f32)));
                let error = (row[i] - value) / inverse[0];
                for j in 1..left {
                    row[i + j] -= error * inverse[j];
                }
                row[i] = value;
            }
        }
        w.into_iter().map(|value| value as f32).collect()
    }

    #[test]
    fn it_does_what_finding_the_inverse_anew_does() {
        for (format, k) in [
            ("int4g16.f32", 48),
            ("int4row.f32", 32),
            ("int8g32.f32", 64),
            ("fp4g16.f32", 32),
            // More than a block, of whose groups one is all of a row.
            ("int4g32.f32", 160),
            ("int4row.f32", 136),
        ] {
            let x = inputs(200, k, 6, 3);
            let h = gram(&x, k);
            let mut next = noise(5);
            let w: Vec<f32> = (0..20 * k).map(|_| next()).collect();
            let (fast, slow) = (round(format, &w, k, &h, false), slow(format, &w, k, &h));
            let same = fast.iter().zip(&slow).filter(|(a, b)| (*a - *b).abs() < 1e-4).count();
            // A weight in the middle between two codes may fall to either side, and changes what follows in its row.
            assert!(same as f64 > 0.97 * w.len() as f64, "{format}: {same} of {}", w.len());
        }
    }

    #[test]
    fn outputs_are_closer_than_of_rounding_to_nearest() {
        for (format, factor) in
            [("int4g32", 0.5), ("int4g128z", 0.5), ("fp4g32.e8m0", 0.6), ("nf4g64.f32", 0.5)]
        {
            let k = 256;
            let x = inputs(600, k, 24, 11);
            let mut next = noise(13);
            let w: Vec<f32> = (0..24 * k).map(|_| next() * next().abs()).collect();
            let h = gram(&x, k);
            let plain = output_error(&w, &nearest(format, &w, k), &x, k);
            for clip in [false, true] {
                let found = output_error(&w, &round(format, &w, k, &h, clip), &x, k);
                assert!(found < factor * plain, "{format} {clip}: {found} beside {plain}");
            }
        }
    }

    #[test]
    fn columns_without_inputs_are_rounded_to_nearest() {
        let (format, k) = ("int4g32.f32", 64);
        let mut x = inputs(100, k, 8, 17);
        x.chunks_mut(k).for_each(|row| (row[5], row[40]) = (0.0, 0.0));
        let mut next = noise(19);
        let w: Vec<f32> = (0..4 * k).map(|_| next()).collect();
        let found = round(format, &w, k, &gram(&x, k), false);
        for (w, q) in w.chunks(k).zip(found.chunks(k)) {
            let step = w[..32].iter().fold(0.0f32, |most, v| most.max(v.abs())) * 2.0 / 15.0;
            assert!((w[5] - q[5]).abs() <= 0.75 * step);
        }
        // Nothing at all is known of inputs: nearest.
        assert_eq!(round(format, &w, k, &vec![0.0; k * k], false), nearest(format, &w, k));
        assert!(corrections(&mut Products::new().unwrap(), &vec![f32::NAN; k * k], k).is_none());
    }
}
