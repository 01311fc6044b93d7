//! Rounding to grouped codes, and back.

use std::ops::Range;

use half::{bf16, f16};

use super::field;
use crate::quant::{e4m3, e8m0, to_e8m0};
use crate::spec::{Code, DType, Format, Grouped, ShapeError, Zero};

/// The parts of a grouped format.
#[derive(Clone, Copy)]
struct Params {
    code: Code,
    group: usize,
    groups: usize,
    zero: Zero,
    scale: DType,
    /// What every scale is multiplied with.
    factor: f32,
}

impl Params {
    fn new(format: Format, k: usize, factor: f32) -> Result<Self, ShapeError> {
        match format {
            Format::Grouped(grouped) if grouped.is_valid() => {
                let Grouped { code, zero, scale, .. } = grouped;
                let group = format.group_len(k).max(1);
                Ok(Self { code, group, groups: format.groups(k), zero, scale, factor })
            }
            _ => Err(ShapeError::mismatch("format", "codes in groups with scales", format)),
        }
    }

    /// The field that stands for zero where there are no zero points.
    fn centre(self) -> f32 {
        self.code.centre().unwrap_or_default().into()
    }
}

/// `x` rounded to the type of scales.
fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(x).to_f32(),
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::E4M3 => e4m3::value(e4m3::nearest(x)),
        DType::E8M0 => e8m0(to_e8m0(x)),
        _ => x,
    }
}

/// What [`encode`] wants scales of `values` multiplied with: scales of 8 bits with a mantissa are spread over what they can be, others
/// are 1.
#[must_use]
pub fn factor(format: Format, values: &[f32]) -> f32 {
    match format {
        Format::Grouped(Grouped { code, scale: DType::E4M3, .. }) => {
            let most = values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            if most > 0.0 && most.is_finite() { most / (code.range().1 * e4m3::MAX) } else { 1.0 }
        }
        _ => 1.0,
    }
}

/// Rounds a row-major matrix `[n, k]` to nearest; gives the planes of `format` as little-endian bytes, in the order of
/// [`Format::planes`], for scales that are multiplied with `factor`, see [`factor`].
///
/// - Symmetric integers: `s = max|w| / (2^b - 1) * 2`; zero points that are codes: `s = (max - min) / (2^b - 1)` with 0 inside the range and
///   `z = round(-2^(b-1) - min / s)`, as compressed-tensors' `calculate_qparams` has both. Zero points that are floats are not rounded to codes.
/// - Offsets: as MLX's `quantize`: the end of the range with the larger magnitude is met exactly, and so is zero if its code is not.
/// - Other codes: `s = max|w| / max`; exponents alone are those of the Open Compute microscaling formats, `floor(log2(max|w|))` less that of the
///   largest code, which may saturate.
///
/// The scale is rounded to its type before weights are divided by it.
///
/// Errors: another format, another number of values, a value that is not finite or too large for the scale's type.
pub fn encode(
    format: Format,
    n: usize,
    k: usize,
    values: &[f32],
    factor: f32,
) -> Result<Vec<Vec<u8>>, ShapeError> {
    let rounder = Rounder::new(format, k, factor)?;
    if n.checked_mul(k) != Some(values.len()) {
        return Err(ShapeError::mismatch("weight", format!("{n} x {k} values"), values.len()));
    }
    let mut encoder = Encoder::new(rounder, n);
    for row in 0..n {
        for group in 0..rounder.groups() {
            let cols = rounder.cols(group);
            let all = &values[row * k + cols.start..row * k + cols.end];
            let of = rounder.group(all, 1.0).ok_or_else(|| rounder.refused(row, group))?;
            encoder.set_group(row, group, of);
            for (col, value) in cols.zip(all) {
                encoder.set_code(row, col, rounder.nearest(of, *value));
            }
        }
    }
    Ok(encoder.finish())
}

/// What the weights of one group share: the scale, rounded to its type, and what is added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    scale: f32,
    /// The zero point less the centre; of offsets the offset.
    at: f32,
}

/// Rounds weights of a grouped format one by one: the steps of [`encode`], for those that choose codes otherwise than to nearest.
#[derive(Clone, Copy)]
pub struct Rounder {
    params: Params,
    k: usize,
}

impl Rounder {
    /// For rows of `k` weights, with scales that are multiplied with `factor`.
    ///
    /// Errors: a format without groups.
    pub fn new(format: Format, k: usize, factor: f32) -> Result<Self, ShapeError> {
        Ok(Self { params: Params::new(format, k, factor)?, k })
    }

    /// Weights of a row.
    #[must_use]
    pub const fn k(&self) -> usize {
        self.k
    }

    /// Groups of a row.
    #[must_use]
    pub const fn groups(&self) -> usize {
        self.params.groups
    }

    /// Weights of a group; of the last one perhaps fewer.
    #[must_use]
    pub const fn group_len(&self) -> usize {
        self.params.group
    }

    /// Columns of a group.
    #[must_use]
    pub fn cols(&self, group: usize) -> Range<usize> {
        group * self.params.group..self.k.min((group + 1) * self.params.group)
    }

    /// Whether scales are powers of two.
    #[must_use]
    pub fn has_exponents_alone(&self) -> bool {
        self.params.scale == DType::E8M0
    }

    /// Scale and zero point of a group of these weights, each taken `shrink` times as large: below 1 the outermost are clipped, and the
    /// others lie closer. `None` of what is not finite or too large for the scale's type.
    #[must_use]
    pub fn group(&self, values: &[f32], shrink: f32) -> Option<Group> {
        qparams(self.params, values, shrink).map(|(scale, at)| Group { scale, at })
    }

    /// The error of a group that [`group`](Self::group) gives nothing for.
    #[must_use]
    pub fn refused(&self, row: usize, group: usize) -> ShapeError {
        let cols = self.cols(group);
        ShapeError::new(format!(
            "weight [{row}, {}..{}]: expected finite values whose scale fits in {}",
            cols.start, cols.end, self.params.scale
        ))
    }

    /// The code of a group whose value is nearest to a weight.
    #[must_use]
    pub fn nearest(&self, of: Group, value: f32) -> u8 {
        let Params { code, zero, factor, .. } = self.params;
        code.nearest(match zero {
            Zero::Offset => (value - of.at) / of.scale - self.params.centre(),
            _ => value / (of.scale * factor) + of.at,
        })
    }

    /// What a code of a group stands for, as [`decode`] has it.
    #[must_use]
    pub fn value(&self, of: Group, code: u8) -> f32 {
        let (q, scale) = (self.params.code.value(code), of.scale * self.params.factor);
        match self.params.zero {
            Zero::None => q * scale,
            Zero::Codes | Zero::Float => (q - of.at) * scale,
            Zero::Offset => (q + self.params.centre()) * scale + of.at,
        }
    }
}

/// The planes of a grouped format in work.
pub struct Encoder {
    rounder: Rounder,
    words: usize,
    packed: Vec<u32>,
    groups: Vec<Group>,
}

impl Encoder {
    /// For `n` rows, all zero bits.
    #[must_use]
    pub fn new(rounder: Rounder, n: usize) -> Self {
        let words = (rounder.k * rounder.params.code.bits()).div_ceil(32);
        let groups = vec![Group { scale: 1.0, at: 0.0 }; n * rounder.params.groups];
        Self { rounder, words, packed: vec![0; n * words], groups }
    }

    /// Sets what a group shares.
    ///
    /// # Panics
    /// If there is no such group.
    pub fn set_group(&mut self, row: usize, group: usize, of: Group) {
        self.groups[row * self.rounder.params.groups + group] = of;
    }

    /// Sets the code of a weight, which had none.
    ///
    /// # Panics
    /// If there is no such weight.
    pub fn set_code(&mut self, row: usize, col: usize, code: u8) {
        let bits = self.rounder.params.code.bits();
        put(&mut self.packed, row * self.words + col * bits / 32, col, bits, code);
    }

    /// The planes as little-endian bytes, in the order of [`Format::planes`].
    #[must_use]
    pub fn finish(self) -> Vec<Vec<u8>> {
        let Params { code, groups, zero, scale, .. } = self.rounder.params;
        let bits = code.bits();
        let n = self.groups.len().checked_div(groups).unwrap_or(0);
        let zero_rows = (n * bits).div_ceil(32);
        let mut scales = Vec::with_capacity(self.groups.len() * scale.size());
        let mut codes = vec![0u32; if zero == Zero::Codes { zero_rows * groups } else { 0 }];
        let mut floats = Vec::new();
        for (number, of) in self.groups.iter().enumerate() {
            let (row, group) = (number / groups, number % groups);
            crate::oracle::encode(scale, f64::from(of.scale), &mut scales);
            match zero {
                Zero::None => {}
                Zero::Codes => {
                    put(&mut codes, row / (32 / bits) * groups + group, row, bits, code.nearest(of.at));
                }
                Zero::Float => {
                    let at = of.at + self.rounder.params.centre();
                    crate::oracle::encode(scale, f64::from(at), &mut floats);
                }
                Zero::Offset => crate::oracle::encode(scale, f64::from(of.at), &mut floats),
            }
        }
        let bytes = |words: Vec<u32>| words.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
        let mut planes = vec![bytes(self.packed), scales];
        match zero {
            Zero::None => {}
            Zero::Codes => planes.push(bytes(codes)),
            Zero::Float | Zero::Offset => planes.push(floats),
        }
        planes
    }
}

/// Puts the code of number `index` into its word.
fn put(words: &mut [u32], at: usize, index: usize, bits: usize, code: u8) {
    words[at] |= u32::from(code) << (index % (32 / bits) * bits);
}

/// Scale, rounded to its type, and zero point of one group, less the centre; of offsets the offset.
fn qparams(params: Params, all: &[f32], shrink: f32) -> Option<(f32, f32)> {
    let (min, max) = all.iter().fold((0.0f32, 0.0f32), |(min, max), &v| (min.min(v), max.max(v)));
    let (min, max) = (min * shrink, max * shrink);
    // `min` and `max` pass over NaN.
    if !all.iter().all(|v| v.is_finite()) {
        return None;
    }
    let (low, high) = params.code.range();
    let steps = high - low;
    let round = |x: f32| rounded(params.scale, x);
    if params.zero == Zero::Offset {
        // Here the range need not hold zero.
        let (min, max) = all.iter().fold((f32::MAX, f32::MIN), |(min, max), &v| (min.min(v), max.max(v)));
        let (min, max) = (min * shrink, max * shrink);
        let below = min.abs() > max.abs();
        let scale = ((max - min) / steps).max(1e-7) * if below { 1.0 } else { -1.0 };
        let edge = if below { min } else { max };
        let at = (edge / scale).round_ties_even();
        let (scale, offset) = if at == 0.0 { (scale, 0.0) } else { (edge / at, edge) };
        let (scale, offset) = (round(scale), round(offset));
        return (scale.is_finite() && offset.is_finite() && scale != 0.0).then_some((scale, offset));
    }
    let most = max.max(-min) / params.factor;
    let exact = match (params.zero, params.code.is_int()) {
        (Zero::None, true) => most / (steps / 2.0),
        (Zero::None, false) if params.scale == DType::E8M0 => {
            if most == 0.0 {
                0.0
            } else {
                (most.log2().floor() - high.log2().floor()).exp2()
            }
        }
        (Zero::None, false) => most / high,
        _ => (max - min) / steps,
    };
    let mut scale = round(exact);
    if scale == 0.0 {
        // Nothing but zeros, or values below the smallest scale.
        scale = 1.0;
    }
    let zero = match params.zero {
        Zero::Codes => (low - min / scale).round_ties_even().clamp(low, high),
        Zero::Float => round(low - min / scale + params.centre()) - params.centre(),
        Zero::None | Zero::Offset => 0.0,
    };
    (scale.is_finite() && zero.is_finite()).then_some((scale, zero))
}

/// The row-major matrix `[n, k]` that planes of `format` stand for, with scales multiplied by `factor`.
///
/// Errors: another format, or planes whose bytes do not fit.
pub fn decode(
    format: Format,
    n: usize,
    k: usize,
    planes: &[&[u8]],
    factor: f32,
) -> Result<Vec<f32>, ShapeError> {
    let params = Params::new(format, k, factor)?;
    let shapes = format.planes(n, k);
    let expected: Vec<usize> = shapes.iter().map(|p| p.rows * p.cols * p.dtype.size()).collect();
    let found: Vec<usize> = planes.iter().map(|p| p.len()).collect();
    if expected != found {
        return Err(ShapeError::mismatch(
            "planes",
            format!("{expected:?} bytes"),
            format!("{found:?} bytes"),
        ));
    }
    let word = |plane: &[u8], at: usize| {
        let bytes = &plane[at * 4..][..4];
        i64::from(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let size = params.scale.size();
    let float =
        |plane: &[u8], at: usize| crate::oracle::decode(params.scale, &plane[at * size..][..size]) as f32;
    let bits = params.code.bits();
    let words = shapes[0].cols;
    let mut all = Vec::with_capacity(n * k);
    for row in 0..n {
        for col in 0..k {
            let group = col / params.group;
            let at = row * params.groups + group;
            let q = params.code.value(field(word(planes[0], row * words + col * bits / 32), col, bits));
            let scale = float(planes[1], at) * params.factor;
            all.push(match params.zero {
                Zero::None => q * scale,
                Zero::Codes => {
                    let zero = word(planes[2], row * bits / 32 * params.groups + group);
                    (q - params.code.value(field(zero, row, bits))) * scale
                }
                Zero::Float => (q + params.centre() - float(planes[2], at)) * scale,
                Zero::Offset => (q + params.centre()) * scale + float(planes[2], at),
            });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, len: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next() * next().abs()).collect()
    }

    fn formats() -> Vec<Format> {
        let mut all = Vec::new();
        for code in [Code::Int4, Code::Int8] {
            for group in [0, 12, 32, 64, 128] {
                for zero in Zero::ALL {
                    for scale in [DType::F32, DType::BF16, DType::F16] {
                        all.push(Format::Grouped(Grouped { code, group, zero, scale }));
                    }
                }
            }
        }
        all
    }

    #[test]
    fn values_return_within_half_a_step_and_codes_exactly() {
        for (seed, format) in formats().into_iter().enumerate() {
            for (n, k) in [(1, 1), (3, 130), (9, 64), (17, 31), (2, 0), (0, 8)] {
                let values = noise(seed as u64, n * k);
                let planes = encode(format, n, k, &values, 1.0).expect("finite values");
                for (plane, shape) in planes.iter().zip(format.planes(n, k)) {
                    assert_eq!(plane.len(), shape.rows * shape.cols * shape.dtype.size(), "{format}");
                }
                let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
                let back = decode(format, n, k, &planes, 1.0).expect("planes as encoded");
                one_by_one(format, k, &values, &back);
                let Format::Grouped(Grouped { code, zero, .. }) = format else { unreachable!() };
                let bits = code.bits();
                for row in 0..n {
                    for start in (0..k).step_by(format.group_len(k).max(1)) {
                        let end = k.min(start + format.group_len(k));
                        let (a, b) =
                            (&values[row * k + start..row * k + end], &back[row * k + start..row * k + end]);
                        let max = a.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                        let span =
                            a.iter().fold(0.0f32, |m, v| m.max(*v)) - a.iter().fold(0.0f32, |m, v| m.min(*v));
                        let steps = (1u32 << bits) as f32 - 1.0;
                        let step = if zero != Zero::None { span / steps } else { 2.0 * max / steps };
                        // Half a step, and the rounding of the scale times the largest code. Codes are clamped at the
                        // upper end, and zero points rounded: half a step more.
                        let half = step * (0.51 + steps / 512.0);
                        let bound = step * (1.01 + steps / 256.0);
                        for (a, b) in a.iter().zip(b) {
                            let limit = if zero != Zero::None || a.abs() > 0.9 * max { bound } else { half };
                            assert!((a - b).abs() <= limit, "{format} {n}x{k}: {a} became {b}, step {step}");
                        }
                    }
                }
            }
        }
    }

    /// What a rounder says of each weight is what planes decode to.
    fn one_by_one(format: Format, k: usize, values: &[f32], back: &[f32]) {
        let rounder = Rounder::new(format, k, 1.0).expect("groups");
        for (row, back) in values.chunks_exact(k.max(1)).zip(back.chunks_exact(k.max(1))) {
            for group in 0..rounder.groups() {
                let cols = rounder.cols(group);
                let of = rounder.group(&row[cols.clone()], 1.0).expect("finite values");
                for col in cols {
                    let value = rounder.value(of, rounder.nearest(of, row[col]));
                    assert!(
                        (value - back[col]).abs() <= 1e-6 * back[col].abs().max(1e-3),
                        "{format} {value}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_smaller_range_clips_the_ends_and_is_finer_between() {
        let format = "int4g32.f32".parse().expect("a format");
        let mut values = noise(7, 32);
        values[3] = 8.0;
        let rounder = Rounder::new(format, 32, 1.0).expect("groups");
        let error = |shrink: f32| {
            let of = rounder.group(&values, shrink).expect("finite values");
            let off = |v: &f32| (v - rounder.value(of, rounder.nearest(of, *v))).abs();
            (
                off(&values[3]),
                values.iter().enumerate().filter(|(i, _)| *i != 3).map(|(_, v)| off(v)).sum::<f32>(),
            )
        };
        let (wide, narrow) = (error(1.0), error(0.25));
        assert!(narrow.0 > 5.0 && wide.0 < 1.0, "{wide:?} {narrow:?}");
        assert!(narrow.1 < 0.6 * wide.1, "{wide:?} {narrow:?}");
    }

    #[test]
    fn what_was_rounded_stays() {
        for format in formats() {
            let Format::Grouped(Grouped { code, zero, scale, .. }) = format else { unreachable!() };
            let bits = code.bits();
            // Every code occurs in each group of 2^bits, with a scale that all types hold.
            let (n, k) = (8, 256);
            let values: Vec<f32> =
                (0..n * k).map(|i| ((i % (1 << bits)) as f32 - (1 << (bits - 1)) as f32) * 0.25).collect();
            if zero != Zero::None && format.group_len(k) >= 1 << bits {
                let planes = encode(format, n, k, &values, 1.0).expect("finite values");
                let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
                assert_eq!(decode(format, n, k, &planes, 1.0).expect("planes"), values, "{format} {scale}");
            }
        }
    }

    #[test]
    fn bad_input_is_refused() {
        let format =
            Format::Grouped(Grouped { code: Code::Int4, group: 32, zero: Zero::None, scale: DType::F16 });
        assert!(encode(format, 2, 2, &[1.0; 3], 1.0).is_err());
        assert!(encode(format, 1, 2, &[1.0, f32::NAN], 1.0).is_err());
        assert!(encode(format, 1, 2, &[1.0, f32::INFINITY], 1.0).is_err());
        assert!(encode(format, 1, 2, &[1.0, 1e30], 1.0).is_err());
        assert!(encode(Format::Dense(DType::F32), 1, 1, &[1.0], 1.0).is_err());
        assert!(decode(format, 1, 2, &[&[0; 4]], 1.0).is_err());
        assert!(decode(format, 1, 2, &[&[0; 4], &[0; 4]], 1.0).is_err());
        let zero = encode(format, 1, 2, &[0.0, -0.0], 1.0).expect("zeros");
        assert_eq!(decode(format, 1, 2, &[&zero[0], &zero[1]], 1.0).expect("planes"), [0.0, 0.0]);
    }
}
