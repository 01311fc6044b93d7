//! Antialiased resizing of 8-bit RGB, equal to torchvision's `resize(antialias=True)` on uint8 tensors to the bit.
//!
//! Separable: rows first, then columns, each pass rounded to 8 bits; a pass whose size does not change is left out.
//! Weights are f64, divided by their sum, and rounded to 16 bits with as many fractional bits as the largest weight of
//! the pass leaves room for; sums are exact in 32 bits. (Pillow has the same shape with 22-bit weights, and since
//! version 13 picks the order of the passes by size: it differs by a level here and there.)
//!
//! Both passes run the same inner loop, a weighted sum of rows of bytes. For the horizontal pass a band of
//! [`BAND`] rows is transposed, so that one output column is a weighted sum of transposed input columns.

use std::ops::Range;

use super::Rgb8Image;
use super::error::{ImageError, try_zeroed};

/// Resampling filter. All of them widen with the scale when shrinking (antialiasing).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle, support 1.
    Bilinear,
    /// Keys' cubic with a = -0.5, support 2.
    Bicubic,
    /// Windowed sinc, support 3.
    Lanczos,
}

impl Filter {
    /// The filter of a `resample` number in a `preprocessor_config.json` (Pillow's numbering:
    /// 1 Lanczos, 2 bilinear, 3 bicubic). `None` for the others, which the reference does not offer on tensors.
    pub fn from_pil(resample: u64) -> Option<Self> {
        match resample {
            1 => Some(Self::Lanczos),
            2 => Some(Self::Bilinear),
            3 => Some(Self::Bicubic),
            _ => None,
        }
    }

    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        match self {
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => {
                let (a, x) = (-0.5, x.abs());
                if x < 1.0 {
                    ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * a
                } else {
                    0.0
                }
            }
            Self::Lanczos => {
                if (-3.0..3.0).contains(&x) {
                    sinc(x) * sinc(x / 3.0)
                } else {
                    0.0
                }
            }
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// Weights of one pass: output `i` is the sum of `weights[taps[i]]` times the inputs from `first[i]` on.
struct Pass {
    first: Vec<usize>,
    taps: Vec<Range<usize>>,
    weights: Vec<i16>,
    /// Fractional bits of the weights.
    bits: u32,
}

impl Pass {
    fn new(filter: Filter, from: usize, to: usize) -> Result<Self, ImageError> {
        let scale = from as f64 / to as f64;
        let support = filter.support() * scale.max(1.0);
        let inverse = 1.0 / scale.max(1.0);
        let most = (support as f32).ceil() as usize * 2 + 1;
        let (mut first, mut taps) = (try_empty(to)?, try_empty(to)?);
        let mut exact: Vec<f64> = try_empty(to.saturating_mul(most.min(from)))?;
        let mut largest = 0.0_f64;
        for i in 0..to {
            let center = scale * (i as f64 + 0.5);
            // Conversions to integers truncate towards zero, and negative values saturate to zero.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let count = end.saturating_sub(start).min(most);
            let begin = exact.len();
            exact.extend((0..count).map(|j| filter.at(((j + start) as f64 - center + 0.5) * inverse)));
            let own = &mut exact[begin..];
            let total: f64 = own.iter().sum();
            if total != 0.0 {
                for w in own {
                    *w /= total;
                    largest = largest.max(*w);
                }
            }
            first.push(start);
            taps.push(begin..exact.len());
        }
        let mut bits = 0;
        while bits < 22 && ((0.5 + largest * f64::from(1_u32 << (bits + 1))) as i64) < 1 << 15 {
            bits += 1;
        }
        let one = f64::from(1_u32 << bits);
        let mut weights = try_empty(exact.len())?;
        weights.extend(exact.iter().map(|&w| (0.5_f64.copysign(w) + w * one) as i16));
        Ok(Self { first, taps, weights, bits })
    }
}

/// A vector with room for `len` values, or an error where there is no memory.
fn try_empty<T>(len: usize) -> Result<Vec<T>, ImageError> {
    let mut out = Vec::new();
    let bytes = len.saturating_mul(size_of::<T>());
    out.try_reserve_exact(len).map_err(|_| ImageError::OutOfMemory { name: "resize".to_owned(), bytes })?;
    Ok(out)
}

/// Rows that the horizontal pass handles at once, and bytes of the three channels of one transposed column.
const BAND: usize = 16;
const LANES: usize = BAND * 3;

/// `out[j] = round(sum over k of weights[k] * src[k * stride + j])` for `j < N`, clamped to `0..=255`.
#[inline(always)]
fn weighted<const N: usize>(src: &[u8], stride: usize, weights: &[i16], bits: u32, out: &mut [u8; N]) {
    // bits == 0 cannot round by half; it needs a weight above 2^14, which a normalized filter never has.
    let mut sums = [1_i32 << bits >> 1; N];
    for (k, &weight) in weights.iter().enumerate() {
        let Some(row) = src[k * stride..].first_chunk::<N>() else { return };
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += i32::from(weight) * i32::from(value);
        }
    }
    for (dst, sum) in out.iter_mut().zip(sums) {
        *dst = (sum >> bits).clamp(0, 255) as u8;
    }
}

/// One band of at most [`BAND`] rows: `src: [rows, width, 3]` to `dst: [rows, pass outputs, 3]`.
#[inline(always)]
fn horizontal_band(src: &[u8], width: usize, pass: &Pass, columns: &mut [u8], dst: &mut [u8]) {
    for (r, row) in src.chunks_exact(width * 3).enumerate() {
        for (column, px) in columns.chunks_exact_mut(LANES).zip(row.chunks_exact(3)) {
            column[r] = px[0];
            column[BAND + r] = px[1];
            column[2 * BAND + r] = px[2];
        }
    }
    let out_row = pass.first.len() * 3;
    for (x, (&first, taps)) in pass.first.iter().zip(&pass.taps).enumerate() {
        let mut out = [0; LANES];
        weighted(&columns[first * LANES..], LANES, &pass.weights[taps.clone()], pass.bits, &mut out);
        for (r, row) in dst.chunks_exact_mut(out_row).enumerate() {
            row[x * 3] = out[r];
            row[x * 3 + 1] = out[BAND + r];
            row[x * 3 + 2] = out[2 * BAND + r];
        }
    }
}

/// Output row `y`: `src: [pass inputs, row bytes]` to `dst: [row bytes]`.
#[inline(always)]
fn vertical_row(src: &[u8], pass: &Pass, y: usize, dst: &mut [u8]) {
    const BLOCK: usize = 64;
    let row = dst.len();
    let weights = &pass.weights[pass.taps[y].clone()];
    let src = &src[pass.first[y] * row..];
    let (blocks, rest) = dst.as_chunks_mut::<BLOCK>();
    let done = blocks.len() * BLOCK;
    for (i, block) in blocks.iter_mut().enumerate() {
        weighted(&src[i * BLOCK..], row, weights, pass.bits, block);
    }
    for (i, value) in rest.iter_mut().enumerate() {
        let mut out = [0; 1];
        weighted(&src[done + i..], row, weights, pass.bits, &mut out);
        *value = out[0];
    }
}

/// What one thread does, in an instruction set. The arithmetic is exact, so that all give the same bytes.
enum Work<'a> {
    /// `src: [rows, width, 3]` to `dst: [rows, pass outputs, 3]`.
    Horizontal { src: &'a [u8], width: usize },
    /// `src: [pass inputs, row bytes]` to `dst: [rows, row bytes]`, output rows from `first` on.
    Vertical { src: &'a [u8], row: usize, first: usize },
}

impl Work<'_> {
    #[inline(always)]
    fn body(&self, pass: &Pass, columns: &mut [u8], dst: &mut [u8]) {
        match *self {
            Self::Horizontal { src, width } => {
                let bands = dst.chunks_mut(BAND * pass.first.len() * 3);
                for (src, dst) in src.chunks(BAND * width * 3).zip(bands) {
                    horizontal_band(src, width, pass, columns, dst);
                }
            }
            Self::Vertical { src, row, first } => {
                for (y, dst) in dst.chunks_exact_mut(row).enumerate() {
                    vertical_row(src, pass, first + y, dst);
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn avx2(&self, pass: &Pass, columns: &mut [u8], dst: &mut [u8]) {
        self.body(pass, columns, dst);
    }

    fn run(&self, pass: &Pass, columns: &mut [u8], dst: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if super::may_use_avx2() {
            // SAFETY: the machine has AVX2, as just checked.
            return unsafe { self.avx2(pass, columns, dst) };
        }
        self.body(pass, columns, dst);
    }
}

/// Splits `rows` into at most `threads` parts of whole [`BAND`]s: the rows per part.
fn part(rows: usize, threads: usize) -> usize {
    rows.div_ceil(BAND).div_ceil(threads.max(1)) * BAND
}

/// Threads that are worth starting for `work` multiply-adds.
fn useful_threads(work: usize, threads: usize) -> usize {
    (work >> 22).clamp(1, threads.max(1))
}

/// `src: [rows, from, 3]` to `[rows, to, 3]`.
fn horizontal(
    src: &[u8],
    rows: usize,
    from: usize,
    to: usize,
    filter: Filter,
    threads: usize,
) -> Result<Vec<u8>, ImageError> {
    let pass = Pass::new(filter, from, to)?;
    let mut out = try_zeroed("resize", rows.saturating_mul(to).saturating_mul(3))?;
    let threads = useful_threads(pass.weights.len() * rows * 3, threads);
    let part = part(rows, threads);
    let mut columns = try_zeroed("resize", rows.div_ceil(part) * from * LANES)?;
    std::thread::scope(|scope| {
        let parts = src.chunks(part * from * 3).zip(out.chunks_mut(part * to * 3));
        for ((src, dst), columns) in parts.zip(columns.chunks_mut(from * LANES)) {
            let pass = &pass;
            let mut job = move || Work::Horizontal { src, width: from }.run(pass, columns, dst);
            if threads == 1 { job() } else { drop(scope.spawn(job)) }
        }
    });
    Ok(out)
}

/// `src: [from, width, 3]` to `[to, width, 3]`.
fn vertical(
    src: &[u8],
    width: usize,
    from: usize,
    to: usize,
    filter: Filter,
    threads: usize,
) -> Result<Vec<u8>, ImageError> {
    let pass = Pass::new(filter, from, to)?;
    let row = width * 3;
    let mut out = try_zeroed("resize", to.saturating_mul(row))?;
    let threads = useful_threads(pass.weights.len() * row, threads);
    let part = part(to, threads);
    std::thread::scope(|scope| {
        for (i, dst) in out.chunks_mut(part * row).enumerate() {
            let pass = &pass;
            let mut job = move || Work::Vertical { src, row, first: i * part }.run(pass, &mut [], dst);
            if threads == 1 { job() } else { drop(scope.spawn(job)) }
        }
    });
    Ok(out)
}

/// Resizes to `width x height` pixels with at most `threads` threads (small pictures take one).
/// The result does not depend on `threads`.
///
/// # Errors
///
/// [`ImageError::EmptyResize`] if a side is zero, [`ImageError::OutOfMemory`].
pub fn resize(
    image: &Rgb8Image,
    width: usize,
    height: usize,
    filter: Filter,
    threads: usize,
) -> Result<Rgb8Image, ImageError> {
    let empty = || ImageError::EmptyResize { width, height };
    if width == 0 || height == 0 {
        return Err(empty());
    }
    let mut data = None;
    if width != image.width() {
        data = Some(horizontal(image.data(), image.height(), image.width(), width, filter, threads)?);
    }
    if height != image.height() {
        let src = data.as_deref().unwrap_or(image.data());
        data = Some(vertical(src, width, image.height(), height, filter, threads)?);
    }
    let data = match data {
        Some(data) => data,
        None => {
            let mut copy = try_empty(image.data().len())?;
            copy.extend_from_slice(image.data());
            copy
        }
    };
    Rgb8Image::from_raw(width, height, data).ok_or_else(empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(width: usize, height: usize) -> Rgb8Image {
        let mut state = 1_u32;
        let data = (0..width * height * 3)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        Rgb8Image::from_raw(width, height, data).unwrap()
    }

    #[test]
    fn a_plain_picture_stays_plain() {
        let image = Rgb8Image::from_raw(7, 5, vec![201; 105]).unwrap();
        for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            for (w, h) in [(1, 1), (7, 5), (3, 9), (100, 2), (64, 64)] {
                let out = resize(&image, w, h, filter, 1).unwrap();
                assert_eq!((out.width(), out.height()), (w, h));
                assert!(out.data().iter().all(|&v| v == 201), "{filter:?} {w}x{h}");
            }
        }
    }

    #[test]
    fn threads_and_instruction_sets_agree() {
        let image = noise(611, 433);
        for filter in [Filter::Bilinear, Filter::Lanczos] {
            let one = resize(&image, 1024, 777, filter, 1).unwrap();
            assert_eq!(one, resize(&image, 1024, 777, filter, 3).unwrap());
            let pass = Pass::new(filter, 433, 777).unwrap();
            let mut portable = vec![0; 777 * 1024 * 3];
            let rows = horizontal(image.data(), 433, 611, 1024, filter, 1).unwrap();
            Work::Vertical { src: &rows, row: 1024 * 3, first: 0 }.body(&pass, &mut [], &mut portable);
            assert_eq!(portable, one.data());
        }
    }

    #[test]
    fn nothing_is_an_error() {
        let error = resize(&noise(2, 2), 0, 3, Filter::Bilinear, 1).unwrap_err();
        assert_eq!(error.to_string(), "resize: a picture cannot be resized to 0 x 3 pixels");
    }
}
