//! The exponential of the softmax.

use crate::cpu::simd::Simd;

/// `2^x` for `x <= 0`, within 3 ulp; zero below the smallest normal f32. A minimax polynomial on `|r| <= 1/2` whose
/// constant term is exactly 1, so that the largest score has weight 1.
#[inline(always)]
pub(in crate::ops::attention) fn exp2<S: Simd>(s: S, x: S::V) -> S::V {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    let magic = s.splat(12_582_912.0);
    let t = s.add(x, magic);
    let r = s.sub(x, s.sub(t, magic));
    let mut p = s.splat(1.326_467_3e-3);
    p = s.fma(p, r, s.splat(9.671_555e-3));
    p = s.fma(p, r, s.splat(5.550_734_3e-2));
    p = s.fma(p, r, s.splat(0.240_222_41));
    p = s.fma(p, r, s.splat(std::f32::consts::LN_2 - 1.788e-7));
    p = s.fma(p, r, s.splat(1.0));
    let y = s.of_bits(s.add_i(s.to_bits(p), s.shl_i::<23>(s.to_bits(t))));
    s.select(s.lt(x, s.splat(-126.0)), s.zero(), y)
}
