//! Heads of keys and values as pages keep them: floats, or 8-bit codes with a scale of their own.
//!
//! In pages of i8 the last axis has `head_dim + SCALE_BYTES` elements: a code for each element of the head, then the bytes of an f32,
//! the scale. Element `d` stands for `code[d] * scale`. The scale is the largest magnitude of the head over 127, codes are the
//! nearest, ties to even; a head without a magnitude above 2^-120 is all zeros, and one with a value that is no number, or an infinite one,
//! has a scale that is NaN. Heads begin at multiples of
//! four bytes, so that scales do too.

use crate::buffer::View;
use crate::cpu::simd::{Elem, MAX_LANES, Simd, StoreElem};
use crate::spec::{DType, Layout, ShapeError};

use super::check;

/// Bytes behind the codes of a head.
pub const SCALE_BYTES: usize = 4;

/// The largest code.
const MOST: f32 = 127.0;

/// Heads without a larger magnitude are zeros, whose inverses no device has to know.
pub(super) const LEAST: f32 = f32::from_bits((127 - 120) << 23);

/// Elements that a head takes in pages of a type.
#[must_use]
pub const fn kept_elements(head_dim: usize, dtype: DType) -> usize {
    match dtype {
        DType::I8 => head_dim + SCALE_BYTES,
        _ => head_dim,
    }
}

/// Errors unless the last axis of `pages` holds heads of `head_dim` elements, as floats or as codes with their scale.
pub(super) fn heads(name: &str, pages: &View, head_dim: usize) -> Result<(), ShapeError> {
    let axis = pages.layout().rank() - 1;
    if pages.dtype() != DType::I8 {
        check::float(name, pages)?;
    } else {
        check::contiguous(name, pages)?;
        if !head_dim.is_multiple_of(4) {
            return Err(ShapeError::mismatch(name, "head_dim of a multiple of 4 with i8", head_dim));
        }
        let starts = (0..axis).all(|axis| pages.stride(axis).is_multiple_of(SCALE_BYTES));
        if !starts || !pages.offset().is_multiple_of(SCALE_BYTES) {
            return Err(ShapeError::mismatch(
                name,
                "heads at multiples of 4 bytes with i8",
                format!("{pages:?}"),
            ));
        }
    }
    let (expected, found) = (kept_elements(head_dim, pages.dtype()), pages.size(axis));
    match found == expected {
        true => Ok(()),
        false => Err(ShapeError::mismatch(&format!("{name} axis head_dim"), expected, found)),
    }
}

/// Codes `[.., head_dim]` and scales, f32 `[..]`, of pages of i8 that [`heads`] takes.
pub(super) fn parts(pages: &View) -> Result<(View, View), ShapeError> {
    let axis = pages.layout().rank() - 1;
    let head_dim = pages.size(axis).saturating_sub(SCALE_BYTES);
    let shape = &pages.shape()[..axis];
    let strides: Vec<usize> = (0..axis).map(|axis| pages.stride(axis) / SCALE_BYTES).collect();
    let scales = View::new(
        pages.storage().clone(),
        pages.offset() + if pages.is_empty() { 0 } else { head_dim },
        Layout::strided(shape, &strides)?,
        DType::F32,
    )?;
    Ok((pages.narrow(axis, 0, head_dim)?, scales))
}

/// A type that pages keep heads in.
pub(super) trait Kept: Copy + Send + Sync + 'static {
    /// Writes a head.
    ///
    /// # Safety
    /// `from` is readable for `n` elements, `to` writable for those that a head of `n` takes.
    unsafe fn keep<S: Simd, X: Elem>(s: S, from: *const X, to: *mut Self, n: usize);
}

impl<T: StoreElem> Kept for T {
    #[inline(always)]
    unsafe fn keep<S: Simd, X: Elem>(s: S, from: *const X, to: *mut T, n: usize) {
        for d in (0..n).step_by(S::LANES) {
            let len = (n - d).min(S::LANES);
            // SAFETY: `d + len <= n`.
            unsafe {
                if len == S::LANES {
                    T::store(s, to.add(d), X::load(s, from.add(d)));
                } else {
                    T::store_n(s, to.add(d), X::load_n(s, from.add(d), len), len);
                }
            }
        }
    }
}

impl Kept for i8 {
    #[inline(always)]
    unsafe fn keep<S: Simd, X: Elem>(s: S, from: *const X, to: *mut i8, n: usize) {
        let load = |d: usize| {
            let len = (n - d).min(S::LANES);
            // SAFETY: `d + len <= n`.
            unsafe { if len == S::LANES { X::load(s, from.add(d)) } else { X::load_n(s, from.add(d), len) } }
        };
        let (mut most, mut none) = (s.zero(), s.zero());
        for d in (0..n).step_by(S::LANES) {
            let x = load(d);
            most = s.max(s.abs(x), most);
            // Zero, but where a value is no number or infinite.
            none = s.fma(x, s.zero(), none);
        }
        let most = s.max_lane(most);
        let most = if most > LEAST { most } else { 0.0 };
        let scale = most / MOST + s.sum(none);
        let factor = s.splat(if most > 0.0 { MOST / most } else { 0.0 });
        let limit = s.splat(MOST);
        for d in (0..n).step_by(S::LANES) {
            let code = s.max(s.min(s.round(s.mul(load(d), factor)), limit), s.neg(limit));
            let mut codes = [0; MAX_LANES];
            // SAFETY: there are as many codes as lanes, and `to` has room for the first ones.
            unsafe {
                s.store_i8(codes.as_mut_ptr(), s.to_int(code));
                std::ptr::copy_nonoverlapping(codes.as_ptr(), to.add(d), (n - d).min(S::LANES));
            }
        }
        // SAFETY: the scale is behind the codes.
        unsafe { to.add(n).cast::<f32>().write_unaligned(scale) };
    }
}

/// A head as pages of i8 keep it, in f64: codes, and the scale as an f32.
#[cfg(feature = "conformance")]
pub(crate) fn rounded(head: &[f64]) -> (Vec<i8>, f32) {
    let most = head.iter().fold(0f32, |most, x| most.max(x.abs() as f32));
    let unreal = head.iter().any(|x| !x.is_finite());
    let scale = match unreal {
        true => f32::NAN,
        false => (if most > LEAST { most } else { 0.0 }) / MOST,
    };
    let code = |x: &f64| match scale > 0.0 {
        true => (x / f64::from(scale)).round_ties_even().clamp(-127.0, 127.0) as i8,
        false => 0,
    };
    (head.iter().map(code).collect(), scale)
}

/// The elements of heads of `head_dim` values in pages of i8.
#[cfg(feature = "conformance")]
pub(crate) fn elements(values: &[f64], head_dim: usize) -> Vec<f64> {
    let of_head = |head: &[f64]| {
        let (codes, scale) = rounded(head);
        let bytes = scale.to_le_bytes().map(|byte| byte as i8);
        codes.into_iter().chain(bytes).map(f64::from).collect::<Vec<_>>()
    };
    values.chunks(head_dim.max(1)).flat_map(of_head).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::{Storage, StreamId};
    use crate::cpu::isa::Isa;
    use crate::cpu::simd::Kernel;

    struct Keep<'a>(&'a [f32], &'a mut [i8]);

    impl Kernel for Keep<'_> {
        type Output = ();

        fn run<S: Simd>(self, s: S) {
            assert_eq!(self.1.len(), self.0.len() + SCALE_BYTES);
            // SAFETY: as asserted.
            unsafe { i8::keep(s, self.0.as_ptr(), self.1.as_mut_ptr(), self.0.len()) };
        }
    }

    fn kept(isa: Isa, head: &[f32]) -> (Vec<i8>, f32) {
        let mut row = vec![99i8; head.len() + SCALE_BYTES];
        isa.run(Keep(head, &mut row));
        let bytes: Vec<u8> = row[head.len()..].iter().map(|&byte| byte as u8).collect();
        let scale = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        row.truncate(head.len());
        (row, scale)
    }

    #[test]
    fn codes_are_the_nearest_and_scales_the_largest() {
        for isa in Isa::available() {
            let (codes, scale) = kept(isa, &[127.0, -127.0, 0.4, 0.6, -63.5, 2.5, 0.0, -1.0]);
            assert_eq!((&codes[..], scale), (&[127i8, -127, 0, 1, -64, 2, 0, -1][..], 1.0));
            for head in [4, 20, 64, 72] {
                let values: Vec<f32> = (0..head).map(|i| ((i * 37 % 101) as f32 - 50.0) * 1e-3).collect();
                let (codes, scale) = kept(isa, &values);
                for (value, code) in values.iter().zip(codes) {
                    assert!((value - f32::from(code) * scale).abs() <= 0.5001 * scale, "{head}: {value}");
                }
            }
            assert_eq!(kept(isa, &[0.0; 12]), (vec![0; 12], 0.0));
            // The smallest and the largest numbers.
            for zero in [f32::from_bits(1), f32::MIN_POSITIVE, LEAST] {
                assert_eq!(kept(isa, &[zero, 0.0, -zero, 0.0]), (vec![0; 4], 0.0), "{zero:e}");
            }
            for most in [1.1 * LEAST, f32::MAX] {
                let (codes, scale) = kept(isa, &[most, 0.0, -most, 0.0]);
                assert_eq!((&codes[..], scale), (&[127i8, 0, -127, 0][..], most / 127.0), "{most:e}");
            }
            for unreal in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(kept(isa, &[1.0, unreal, 2.0, 3.0]).1.is_nan(), "{unreal}");
                assert!(kept(isa, &[&[unreal][..], &[1.0; 39]].concat()).1.is_nan(), "{unreal}");
            }
        }
    }

    #[test]
    fn pages_of_another_shape_are_refused() -> Result<(), Box<dyn std::error::Error>> {
        let storage = Storage::host(4096, StreamId::fresh())?;
        let pages = |shape: &[usize], dtype| View::dense(storage.clone(), shape, dtype);
        heads("k", &pages(&[2, 4, 3, 12], DType::I8)?, 8)?;
        heads("k", &pages(&[2, 4, 3, 8], DType::F16)?, 8)?;
        let error = |pages: &View, head_dim| heads("k", pages, head_dim).err().map(|error| error.to_string());
        let wrong = error(&pages(&[2, 4, 3, 8], DType::I8)?, 8).ok_or("refused")?;
        assert!(wrong.contains("expected 12, found 8"), "{wrong}");
        assert!(error(&pages(&[2, 4, 3, 10], DType::I8)?, 6).is_some());
        assert!(error(&pages(&[2, 4, 3, 12], DType::U8)?, 8).is_some());
        let odd = View::new(storage.clone(), 2, Layout::dense(&[2, 4, 3, 12])?, DType::I8)?;
        assert!(error(&odd, 8).is_some());
        let (codes, scales) = parts(&pages(&[2, 4, 3, 12], DType::I8)?)?;
        assert_eq!((codes.shape(), scales.shape()), (&[2, 4, 3, 8][..], &[2, 4, 3][..]));
        assert_eq!((scales.offset(), scales.stride(2), scales.stride(0)), (8, 3, 36));
        Ok(())
    }
}
