//! Rounding that corrects itself: the columns of a matrix are rounded one after the other, and what each is off by is made up for by
//! those that follow, as far as the inputs of the matrix let it (GPTQ, Frantar et al. 2023, arXiv 2210.17323).
//!
//! With `H = X^T X` of the inputs and `H^-1 = U^T U`, `U` upper triangular, column `j` is off by `e = w_j - q_j`, and column `l > j`
//! changes by `-e U[j, l] / U[j, j]`. Columns are taken in order, those of a group of weights with one scale after its scale is fixed. Columns
//! that no input ever reaches are rounded to nearest and change none.

use ocelli_kernels::quant::grouped::{Encoder, Group, Rounder};
use rayon::prelude::*;

/// Added to the diagonal of `H`, of its mean.
pub(super) const DAMP: f64 = 0.01;

/// Columns whose corrections reach those after them at once.
const BLOCK: usize = 128;

/// Rows that are rounded side by side.
const TOGETHER: usize = 16;

/// Parts of the range of a group that are tried where it may be clipped.
const SHRINKS: [f32; 11] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5];

/// The same of scales that are powers of two.
const EXPONENTS: [f32; 3] = [1.0, 2.0, 0.5];

/// How the columns of a matrix make up for each other.
pub(super) struct Corrections {
    k: usize,
    /// `U`, row-major.
    u: Vec<f32>,
    /// What an error of a column costs, once those after it have made up for it.
    weights: Vec<f32>,
}

impl Corrections {
    /// For inputs with `gram = X^T X`, each divided by its number in `cols`. `None` where these are not finite.
    pub fn new(gram: &[f32], k: usize, cols: Option<&[f32]>) -> Option<Self> {
        let scale = |i: usize| cols.map_or(1.0, |cols| f64::from(cols[i]));
        let mut h: Vec<f64> =
            (0..k * k).map(|at| f64::from(gram[at]) / (scale(at / k) * scale(at % k))).collect();
        if !h.iter().all(|value| value.is_finite()) {
            return None;
        }
        let mean = (0..k).map(|i| h[i * k + i]).sum::<f64>() / k.max(1) as f64;
        for i in 0..k {
            let dead = h[i * k + i] <= 0.0;
            if dead {
                (0..k).for_each(|j| (h[i * k + j], h[j * k + i]) = (0.0, 0.0));
            }
            h[i * k + i] += if dead { mean.max(1.0) } else { DAMP * mean };
        }
        let u = inverse_factor(&h, k)?;
        let weights = (0..k).map(|i| u[i * k + i].powi(-2) as f32).collect();
        let u: Vec<f32> = u.into_iter().map(|value| value as f32).collect();
        u.iter().all(|value| value.is_finite()).then_some(Self { k, u, weights })
    }

    /// Rounds `w: [rows, k]`, which become what their codes stand for; those go to `encoder`. The error tells row and group that have no
    /// scale.
    pub fn round(
        &self,
        rounder: Rounder,
        clip: bool,
        w: &mut [f32],
        encoder: &mut Encoder,
    ) -> Result<(), (usize, usize)> {
        let k = self.k;
        for (number, rows) in w.chunks_mut(TOGETHER * k.max(1)).enumerate() {
            self.round_together(rounder, clip, rows, encoder, number * TOGETHER)?;
        }
        Ok(())
    }

    fn round_together(
        &self,
        rounder: Rounder,
        clip: bool,
        w: &mut [f32],
        encoder: &mut Encoder,
        first: usize,
    ) -> Result<(), (usize, usize)> {
        let (k, len) = (self.k, rounder.group_len());
        // Groups begin where everything before them has reached them.
        let block = if len >= k || BLOCK.is_multiple_of(len) { BLOCK } else { len };
        let mut groups = vec![None; w.len() / k];
        let mut errors = vec![0.0f32; groups.len() * block];
        for start in (0..k).step_by(block) {
            let end = k.min(start + block);
            for (row, w) in w.chunks_exact_mut(k).enumerate() {
                for i in start..end {
                    if i.is_multiple_of(len) {
                        let cols = i..k.min(i + len);
                        let found = best_group(rounder, &w[cols.clone()], clip.then(|| &self.weights[cols]))
                            .ok_or((first + row, i / len))?;
                        encoder.set_group(first + row, i / len, found);
                        groups[row] = Some(found);
                    }
                    let Some(of) = groups[row] else { continue };
                    let code = rounder.nearest(of, w[i]);
                    encoder.set_code(first + row, i, code);
                    let value = rounder.value(of, code);
                    let u = &self.u[i * k..(i + 1) * k];
                    let error = (w[i] - value) / u[i];
                    w[i] = value;
                    errors[row * block + i - start] = error;
                    for (w, u) in w[i + 1..end].iter_mut().zip(&u[i + 1..end]) {
                        *w -= error * u;
                    }
                }
            }
            for i in start..end {
                let u = &self.u[i * k + end..(i + 1) * k];
                for (row, w) in w.chunks_exact_mut(k).enumerate() {
                    let error = errors[row * block + i - start];
                    w[end..].iter_mut().zip(u).for_each(|(w, u)| *w -= error * u);
                }
            }
        }
        Ok(())
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

/// `U` of `h^-1 = U^T U`, `h` symmetric and positive, row-major `[k, k]`. `None` of what is not.
///
/// The factor of `h` with rows and columns in reverse, `L L^T`, in reverse is `R` of `h = R R^T`, upper triangular, and `U = R^-1`.
fn inverse_factor(h: &[f64], k: usize) -> Option<Vec<f64>> {
    let mut l: Vec<f64> = (0..k * k).map(|at| h[k * k - 1 - at]).collect();
    factor(&mut l, k)?;
    // Stripes of columns of L^-1, each by itself.
    let stripes: Vec<(usize, Vec<f64>)> = (0..k)
        .step_by(STRIPE)
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|first| (first, inverse_columns(&l, k, first)))
        .collect();
    let mut u = vec![0.0; k * k];
    for (first, stripe) in stripes {
        let width = STRIPE.min(k - first);
        for (row, values) in stripe.chunks_exact(width).enumerate() {
            let (row, i) = (first + row, k - 1 - (first + row));
            for (col, value) in values.iter().enumerate().filter(|(col, _)| first + col <= row) {
                u[i * k + k - 1 - (first + col)] = *value;
            }
        }
    }
    Some(u)
}

/// Columns of an inverse that are found together.
const STRIPE: usize = 64;

/// Columns `first..` of `L^-1` from row `first` on, at most [`STRIPE`]: those above are zero.
fn inverse_columns(l: &[f64], k: usize, first: usize) -> Vec<f64> {
    let width = STRIPE.min(k - first);
    let mut m = vec![0.0; (k - first) * width];
    for i in first..k {
        let (done, rest) = m.split_at_mut((i - first) * width);
        let row = &mut rest[..width];
        if i - first < width {
            row[i - first] = 1.0;
        }
        for (factor, known) in l[i * k + first..i * k + i].iter().zip(done.chunks_exact(width)) {
            row.iter_mut().zip(known).for_each(|(x, known)| *x -= factor * known);
        }
        row.iter_mut().for_each(|x| *x /= l[i * k + i]);
    }
    m
}

/// The Cholesky factor of `a`, in its lower triangle, panel by panel of columns.
fn factor(a: &mut [f64], k: usize) -> Option<()> {
    for start in (0..k).step_by(STRIPE) {
        let end = k.min(start + STRIPE);
        let (above, below) = a.split_at_mut(start * k);
        let _ = above;
        // What the columns before take from the panel.
        let (panel, rest) = below.split_at_mut((end - start) * k);
        let heads: Vec<f64> = panel.chunks_exact(k).flat_map(|row| row[..start].to_vec()).collect();
        let take = |row: &mut [f64], upto: usize| {
            for j in 0..upto {
                row[start + j] -= dot(&row[..start], &heads[j * start..(j + 1) * start]);
            }
        };
        for (i, row) in panel.chunks_exact_mut(k).enumerate() {
            take(row, i + 1);
        }
        for j in 0..end - start {
            let (known, row) = panel.split_at_mut(j * k);
            for i in 0..=j {
                let of = if i == j {
                    row[start..start + j].to_vec()
                } else {
                    known[i * k + start..i * k + start + i].to_vec()
                };
                let value = row[start + i] - dot(&row[start..start + i], &of);
                row[start + i] = if i < j {
                    value / known[i * k + start + i]
                } else if value > 0.0 {
                    value.sqrt()
                } else {
                    return None;
                };
            }
        }
        let panel = &*panel;
        rest.par_chunks_exact_mut(k).for_each(|row| {
            take(row, end - start);
            for j in 0..end - start {
                let of = &panel[j * k + start..=j * k + start + j];
                let value = row[start + j] - dot(&row[start..start + j], &of[..j]);
                row[start + j] = value / of[j];
            }
        });
    }
    Some(())
}

/// The sum of products, in parts that vectors take.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a8, b8) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a8.0.iter().zip(b8.0) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f64 = a8.1.iter().zip(b8.1).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
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

    fn round(format: &str, w: &[f32], k: usize, h: &[f32], clip: bool) -> Vec<f32> {
        let format: Format = format.parse().unwrap();
        let rounder = Rounder::new(format, k, 1.0).unwrap();
        let n = w.len() / k;
        let (mut all, mut encoder) = (w.to_vec(), Encoder::new(rounder, n));
        Corrections::new(h, k, None).unwrap().round(rounder, clip, &mut all, &mut encoder).unwrap();
        let planes = encoder.finish();
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
        let mut out = Vec::new();
        for row in w.chunks(k) {
            let mut w: Vec<f64> = row.iter().map(|&v| v.into()).collect();
            let mut of = None;
            for i in 0..k {
                if i % rounder.group_len() == 0 {
                    let values: Vec<f32> =
                        w[i..k.min(i + rounder.group_len())].iter().map(|&v| v as f32).collect();
                    of = rounder.group(&values, 1.0);
                }
                let left = k - i;
                let part: Vec<f64> =
                    (0..left * left).map(|at| damped(i + at / left, i + at % left)).collect();
                let inverse = inverse(&part, left);
                let group = of.unwrap();
                let value = rounder.value(group, rounder.nearest(group, w[i] as f32));
                let error = (w[i] - f64::from(value)) / inverse[0];
                for j in 0..left {
                    w[i + j] -= error * inverse[j];
                }
                out.push(value);
            }
        }
        out
    }

    #[test]
    fn it_does_what_finding_the_inverse_anew_does() {
        for (format, k) in [("int4g16.f32", 48), ("int4row.f32", 32), ("int8g32.f32", 64), ("fp4g16.f32", 32)]
        {
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
        assert!(Corrections::new(&vec![f32::NAN; k * k], k, None).is_none());
    }

    #[test]
    fn large_factors_are_right() {
        let k = 150;
        let x = inputs(400, k, 30, 23);
        let mut h: Vec<f64> = gram(&x, k).into_iter().map(f64::from).collect();
        (0..k).for_each(|i| h[i * k + i] += 1.0);
        let u = inverse_factor(&h, k).unwrap();
        // U h U^T = 1.
        for i in (0..k).step_by(7) {
            let uh: Vec<f64> = (0..k).map(|c| (0..k).map(|j| u[i * k + j] * h[j * k + c]).sum()).collect();
            for l in 0..k {
                let value: f64 = (0..k).map(|c| uh[c] * u[l * k + c]).sum();
                assert!((value - f64::from(u8::from(i == l))).abs() < 1e-6, "{i} {l}: {value}");
            }
        }
        h[3 * k + 3] = -1.0;
        assert!(inverse_factor(&h, k).is_none());
    }
}
