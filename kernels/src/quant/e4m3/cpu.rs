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
    const UNIT: f32 = 1.0 / UNIT;

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

/// What the code in the top byte of each lane stands for, times `1 / UNIT`, NaN as ±480; the other bits may be anything.
///
/// Exponent and mantissa go where an f32 has them, under an exponent that makes every code a normal float: many CPUs take a hundred times as
/// long for a subnormal one. Normal codes are right then. Of a subnormal code the float has a 1 before its mantissa; twice the float less
/// the least normal one is the value, and smaller than the float only there.
#[inline(always)]
fn top<S: Simd>(s: S, words: S::I) -> S::V {
    /// The least normal value, 2^-6.
    const LEAST: f32 = 1.0 / 64.0 / UNIT;
    let magnitude = s.and_i(s.shr_i::<4>(words), s.splat_i(0x07f0_0000));
    let float = s.of_bits(s.or_i(magnitude, s.splat_i(EXPONENT << 23)));
    let value = s.min(float, s.fma(float, s.splat(2.0), s.splat(-LEAST)));
    s.of_bits(s.or_i(s.to_bits(value), s.and_i(words, s.splat_i(i32::MIN))))
}

/// Bits of an exponent that no code has.
const EXPONENT: i32 = 112;
/// What that exponent makes of a value: biases are 7 and 127.
const UNIT: f32 = f32::from_bits(((127 + 127 - 7 - EXPONENT) as u32) << 23);

/// What `LANES` codes stand for.
///
/// # Safety
/// `p` is readable for `LANES` bytes.
#[inline(always)]
pub unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::V {
    // SAFETY: as the caller vouches.
    let codes = unsafe { s.load_u8(p) };
    s.mul(top(s, s.shl_i::<24>(s.to_int(codes))), s.splat(UNIT))
}
