//! Rounding to grouped codes, and back.

use half::{bf16, f16};

use super::value;
use crate::quant::e4m3;
use crate::spec::{Code, DType, Format, Grouped, ShapeError};

/// The parts of a grouped format.
#[derive(Clone, Copy)]
struct Params {
    code: Code,
    group: usize,
    groups: usize,
    zero: bool,
    scale: DType,
}

impl Params {
    fn new(format: Format, k: usize) -> Result<Self, ShapeError> {
        match format {
            Format::Grouped(Grouped { code, zero, scale, .. })
                if scale.is_float() && (code.is_int() || !zero) =>
            {
                let group = format.group_len(k).max(1);
                Ok(Self { code, group, groups: format.groups(k), zero, scale })
            }
            _ => Err(ShapeError::mismatch("format", "int4, int8 or fp8 groups with float scales", format)),
        }
    }

    /// Smallest and largest value of a code.
    fn range(self) -> (f32, f32) {
        match self.code {
            Code::Int4 => (-8.0, 7.0),
            Code::Int8 => (-128.0, 127.0),
            Code::Fp8 => (-e4m3::MAX, e4m3::MAX),
        }
    }

    /// The code nearest to a value, ties to even.
    fn nearest(self, x: f32) -> u32 {
        let (low, high) = self.range();
        if self.code.is_int() {
            (x.round_ties_even().clamp(low, high) - low) as u32
        } else {
            e4m3::nearest(x).into()
        }
    }
}

/// `x` rounded to a float type.
fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(x).to_f32(),
        DType::F16 => f16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// Rounds a row-major matrix `[n, k]` to nearest; gives the planes of `format` as little-endian bytes, in the order of
/// [`Format::planes`].
///
/// Scales and zero points are those of compressed-tensors (`calculate_qparams`): symmetric, `s = max|w| / (2^b - 1) * 2`, or
/// `max|w| / 448` of floats; with zero points, `s = (max - min) / (2^b - 1)` with 0 inside the range and
/// `z = round(-2^(b-1) - min / s)`. The scale is rounded to its type before weights are divided by it.
///
/// Errors: another format, another number of values, a value that is not finite or too large for the scale's type.
pub fn encode(format: Format, n: usize, k: usize, values: &[f32]) -> Result<Vec<Vec<u8>>, ShapeError> {
    let params = Params::new(format, k)?;
    if n.checked_mul(k) != Some(values.len()) {
        return Err(ShapeError::mismatch("weight", format!("{n} x {k} values"), values.len()));
    }
    let bits = params.code.bits();
    let (words, zero_rows) = ((k * bits).div_ceil(32), (n * bits).div_ceil(32));
    let mut packed = vec![0u32; n * words];
    let mut scales = Vec::with_capacity(n * params.groups * params.scale.size());
    let mut zeros = vec![0u32; if params.zero { zero_rows * params.groups } else { 0 }];
    let put = |words: &mut [u32], at: usize, index: usize, q: f32| {
        words[at] |= params.nearest(q) << (index % (32 / bits) * bits);
    };
    for row in 0..n {
        for group in 0..params.groups {
            let cols = group * params.group..k.min((group + 1) * params.group);
            let all = &values[row * k + cols.start..row * k + cols.end];
            let (scale, zero) = qparams(params, all).ok_or_else(|| {
                ShapeError::new(format!(
                    "weight [{row}, {}..{}]: expected finite values whose scale fits in {}",
                    cols.start, cols.end, params.scale
                ))
            })?;
            crate::oracle::encode(params.scale, f64::from(scale), &mut scales);
            if params.zero {
                put(&mut zeros, row / (32 / bits) * params.groups + group, row, zero);
            }
            for (col, value) in cols.zip(all) {
                put(&mut packed, row * words + col * bits / 32, col, value / scale + zero);
            }
        }
    }
    let bytes = |words: Vec<u32>| words.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
    let mut planes = vec![bytes(packed), scales];
    if params.zero {
        planes.push(bytes(zeros));
    }
    Ok(planes)
}

/// Scale, rounded to its type, and zero point of one group.
fn qparams(params: Params, all: &[f32]) -> Option<(f32, f32)> {
    let (min, max) = all.iter().fold((0.0f32, 0.0f32), |(min, max), &v| (min.min(v), max.max(v)));
    // `min` and `max` pass over NaN.
    if !all.iter().all(|v| v.is_finite()) {
        return None;
    }
    let (low, high) = params.range();
    let steps = high - low;
    let exact = if params.zero { (max - min) / steps } else { max.max(-min) / (steps / 2.0) };
    let mut scale = rounded(params.scale, exact);
    if scale == 0.0 {
        // Nothing but zeros, or values below the smallest scale.
        scale = 1.0;
    }
    let zero = if params.zero { (low - min / scale).round_ties_even().clamp(low, high) } else { 0.0 };
    scale.is_finite().then_some((scale, zero))
}

/// The row-major matrix `[n, k]` that planes of `format` stand for.
///
/// Errors: another format, or planes whose bytes do not fit.
pub fn decode(format: Format, n: usize, k: usize, planes: &[&[u8]]) -> Result<Vec<f32>, ShapeError> {
    let params = Params::new(format, k)?;
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
    let scale = |at: usize| match params.scale {
        DType::BF16 => bf16::from_le_bytes([planes[1][2 * at], planes[1][2 * at + 1]]).to_f32(),
        DType::F16 => f16::from_le_bytes([planes[1][2 * at], planes[1][2 * at + 1]]).to_f32(),
        _ => f32::from_bits(word(planes[1], at) as u32),
    };
    let bits = params.code.bits();
    let words = shapes[0].cols;
    let mut all = Vec::with_capacity(n * k);
    for row in 0..n {
        for col in 0..k {
            let group = col / params.group;
            let q = value(params.code, word(planes[0], row * words + col * bits / 32), col);
            let zero = if params.zero {
                value(params.code, word(planes[2], row * bits / 32 * params.groups + group), row)
            } else {
                0.0
            };
            all.push((q - zero) * scale(row * params.groups + group));
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
                for zero in [false, true] {
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
                let planes = encode(format, n, k, &values).expect("finite values");
                for (plane, shape) in planes.iter().zip(format.planes(n, k)) {
                    assert_eq!(plane.len(), shape.rows * shape.cols * shape.dtype.size(), "{format}");
                }
                let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
                let back = decode(format, n, k, &planes).expect("planes as encoded");
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
                        let step = if zero { span / steps } else { 2.0 * max / steps };
                        // Half a step, and the rounding of the scale times the largest code. Codes are clamped at the
                        // upper end, and zero points rounded: half a step more.
                        let half = step * (0.51 + steps / 512.0);
                        let bound = step * (1.01 + steps / 256.0);
                        for (a, b) in a.iter().zip(b) {
                            let limit = if zero || a.abs() > 0.9 * max { bound } else { half };
                            assert!((a - b).abs() <= limit, "{format} {n}x{k}: {a} became {b}, step {step}");
                        }
                    }
                }
            }
        }
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
            if zero && format.group_len(k) >= 1 << bits {
                let planes = encode(format, n, k, &values).expect("finite values");
                let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
                assert_eq!(decode(format, n, k, &planes).expect("planes"), values, "{format} {scale}");
            }
        }
    }

    #[test]
    fn bad_input_is_refused() {
        let format = Format::Grouped(Grouped { code: Code::Int4, group: 32, zero: false, scale: DType::F16 });
        assert!(encode(format, 2, 2, &[1.0; 3]).is_err());
        assert!(encode(format, 1, 2, &[1.0, f32::NAN]).is_err());
        assert!(encode(format, 1, 2, &[1.0, f32::INFINITY]).is_err());
        assert!(encode(format, 1, 2, &[1.0, 1e30]).is_err());
        assert!(encode(Format::Dense(DType::F32), 1, 1, &[1.0]).is_err());
        assert!(decode(format, 1, 2, &[&[0; 4]]).is_err());
        assert!(decode(format, 1, 2, &[&[0; 4], &[0; 4]]).is_err());
        let zero = encode(format, 1, 2, &[0.0, -0.0]).expect("zeros");
        assert_eq!(decode(format, 1, 2, &[&zero[0], &zero[1]]).expect("planes"), [0.0, 0.0]);
    }
}
