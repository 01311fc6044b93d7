//! Integers of `BITS` bits, stored with `2^(BITS - 1)` added: what their folders share.

use super::Decoder;
use crate::cpu::simd::Simd;

/// The stored field that stands for zero.
#[must_use]
pub const fn centre(bits: usize) -> u8 {
    1 << (bits - 1)
}

/// Smallest and largest value.
#[must_use]
pub const fn range(bits: usize) -> (f32, f32) {
    let half = (1u32 << (bits - 1)) as f32;
    (-half, half - 1.0)
}

/// The value of a stored field.
#[must_use]
pub fn value(bits: usize, field: u8) -> f32 {
    f32::from(i16::from(field) - i16::from(centre(bits)))
}

/// The field nearest to a value, ties to even.
#[must_use]
pub fn nearest(bits: usize, x: f32) -> u8 {
    let (low, high) = range(bits);
    (x.round_ties_even().clamp(low, high) - low) as u8
}

/// The decoder of such integers.
#[derive(Clone, Copy, Debug)]
pub struct Int<const BITS: usize>;

impl<const BITS: usize> Decoder for Int<BITS> {
    const BITS: usize = BITS;
    const CENTRE: u32 = centre(BITS) as u32;
    const UNIT: f32 = (1u64 << (32 - BITS)) as f32;

    #[inline(always)]
    fn split<S: Simd>(self, s: S, words: S::I) -> (S::I, S::I) {
        s.fields::<BITS>(words)
    }

    #[inline(always)]
    fn field<S: Simd, const J: usize>(self, s: S, words: (S::I, S::I)) -> S::V {
        s.field::<BITS, J>(words)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(self, s: S, p: *const u8) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { if BITS == 4 { s.load_u4(p) } else { s.load_u8(p) } }
    }

    #[inline(always)]
    fn one(self, field: u8) -> f32 {
        field.into()
    }
}
