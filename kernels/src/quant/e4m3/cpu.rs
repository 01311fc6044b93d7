//! The decoder of Rust SIMD kernels.

use super::value;
use crate::cpu::simd::Simd;
use crate::quant::Decoder;

/// The decoder of such codes.
#[derive(Clone, Copy, Debug)]
pub struct E4m3;

impl Decoder for E4m3 {
    const BITS: usize = 8;
    const CENTRE: u32 = 0;
    const UNIT: f32 = 1.0;

    #[inline(always)]
    fn split<S: Simd>(self, _: S, words: S::I) -> (S::I, S::I) {
        (words, words)
    }

    #[inline(always)]
    fn field<S: Simd, const J: usize>(self, s: S, (words, _): (S::I, S::I)) -> S::V {
        let top = match J {
            0 => s.shl_i::<24>(words),
            1 => s.shl_i::<16>(words),
            2 => s.shl_i::<8>(words),
            _ => words,
        };
        self::top(s, top)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(self, s: S, p: *const u8) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { load(s, p) }
    }

    #[inline(always)]
    fn one(self, field: u8) -> f32 {
        value(field)
    }
}

/// What the code in the top byte of each lane stands for, NaN as ±480; the other bits may be anything.
///
/// Exponent and mantissa go where an f32 has them. That is the value times 2^-120, as the biases are 7 and 127; subnormal codes
/// become subnormal floats, exactly, and the product is exact again.
#[inline(always)]
pub fn top<S: Simd>(s: S, words: S::I) -> S::V {
    const UNIT: f32 = f32::from_bits((127 + 120) << 23);
    // Sign, exponent and mantissa; copies of the sign lie between.
    let small = s.and_i(s.sra_i::<4>(words), s.splat_i(0x87f0_0000_u32 as i32));
    s.mul(s.of_bits(small), s.splat(UNIT))
}

/// What `LANES` codes stand for.
///
/// # Safety
/// `p` is readable for `LANES` bytes.
#[inline(always)]
pub unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::V {
    // SAFETY: as the caller vouches.
    let codes = unsafe { s.load_u8(p) };
    top(s, s.shl_i::<24>(s.to_int(codes)))
}
