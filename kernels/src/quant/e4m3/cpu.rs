//! The decoder of Rust SIMD kernels.

use crate::cpu::simd::Simd;

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
