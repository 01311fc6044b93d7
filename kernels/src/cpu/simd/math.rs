//! Elementary functions on vectors.
//!
//! Polynomials are minimax fits of this project. Errors are stated against the exact value of the rounded input.

use super::Simd;

/// `e^x`, within 2 ulp. Results below the smallest normal f32 are zero; above the largest, infinite.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    let magic = s.splat(12_582_912.0);
    let t = s.fma(x, s.splat(std::f32::consts::LOG2_E), magic);
    let n = s.sub(t, magic);
    // ln 2 in two parts; the first has 9 bits, so that n * it is exact even without FMA.
    let r = s.fnma(n, s.splat(355.0 / 512.0), x);
    let r = s.fnma(n, s.splat(-2.121_944_4e-4), r);
    let mut p = s.splat(1.395_060_2e-3);
    p = s.fma(p, r, s.splat(8.368_953e-3));
    p = s.fma(p, r, s.splat(4.166_620_6e-2));
    p = s.fma(p, r, s.splat(1.666_651_8e-1));
    p = s.fma(p, r, s.splat(0.5));
    let y = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    // Scales by 2^n through the exponent field.
    let y = s.of_bits(s.add_i(s.to_bits(y), s.shl_i::<23>(s.to_bits(t))));
    let y = s.select(s.lt(x, s.splat(-87.336_54)), s.zero(), y);
    s.select(s.lt(s.splat(88.722_83), x), s.splat(f32::INFINITY), y)
}

/// `ln (1 + x)` of `0 <= x <= 1`, within 4 ulp.
#[inline(always)]
pub fn ln_1p<S: Simd>(s: S, x: S::V) -> S::V {
    // Twice the area tangent of x / (2 + x), which is at most 1/3, by its series: what is left out is below 2e-9 of the value.
    let t = s.div(x, s.add(x, s.splat(2.0)));
    let z = s.mul(t, t);
    let mut p = s.splat(2.0 / 15.0);
    for term in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        p = s.fma(p, z, s.splat(2.0 / term));
    }
    s.fma(s.mul(p, z), t, s.add(t, t))
}

/// `tanh x`, within 4 ulp.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let a = s.abs(x);
    let z = s.mul(x, x);
    let mut p = s.splat(-5.717_045e-3);
    p = s.fma(p, z, s.splat(2.065_058_8e-2));
    p = s.fma(p, z, s.splat(-5.374_349_7e-2));
    p = s.fma(p, z, s.splat(0.133_314_91));
    p = s.fma(p, z, s.splat(-0.333_332_84));
    let small = s.fma(s.mul(p, z), x, x);
    let e = exp(s, s.add(a, a));
    let big = s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))));
    s.select(s.lt(a, s.splat(0.625)), small, s.copysign(big, x))
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    s.div(s.splat(1.0), s.add(s.splat(1.0), exp(s, s.neg(x))))
}

/// SiLU: `x sigmoid(x)`.
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    s.div(x, s.add(s.splat(1.0), exp(s, s.neg(x))))
}

/// GELU, tanh form: `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
#[inline(always)]
pub fn gelu_tanh<S: Simd>(s: S, x: S::V) -> S::V {
    // (1 + tanh u) / 2 = sigmoid(2u)
    let c = s.fma(s.mul(x, x), s.splat(-0.071_354_82), s.splat(-1.595_769));
    s.div(x, s.add(s.splat(1.0), exp(s, s.mul(c, x))))
}

/// CLIP's quick GELU: `x sigmoid(1.702 x)`.
#[inline(always)]
pub fn quick_gelu<S: Simd>(s: S, x: S::V) -> S::V {
    s.div(x, s.add(s.splat(1.0), exp(s, s.mul(x, s.splat(-1.702)))))
}

/// The error function, within 2e-7 absolute.
#[inline(always)]
pub fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    let a = s.abs(x);
    let z = s.mul(x, x);
    let mut p = s.splat(7.889_123e-5);
    p = s.fma(p, z, s.splat(-8.020_842e-4));
    p = s.fma(p, z, s.splat(5.189_536e-3));
    p = s.fma(p, z, s.splat(-2.685_444_4e-2));
    p = s.fma(p, z, s.splat(0.112_836));
    p = s.fma(p, z, s.splat(-0.376_126_26));
    p = s.fma(p, z, s.splat(std::f32::consts::FRAC_2_SQRT_PI));
    let small = s.mul(p, x);
    // erfc(a) e^(a^2) as a polynomial of 1 / (1 + a/2), for a >= 1.
    let t = s.div(s.splat(1.0), s.fma(a, s.splat(0.5), s.splat(1.0)));
    let mut q = s.splat(-0.230_801_6);
    q = s.fma(q, t, s.splat(0.636_679_8));
    q = s.fma(q, t, s.splat(-6.446_04e-2));
    q = s.fma(q, t, s.splat(0.396_801_95));
    q = s.fma(q, t, s.splat(0.259_700_66));
    q = s.fma(q, t, s.splat(1.822_477_2e-3));
    let big = s.fnma(q, exp(s, s.neg(z)), s.splat(1.0));
    s.select(s.lt(a, s.splat(1.0)), small, s.copysign(big, x))
}

/// GELU, exact form: `x/2 (1 + erf(x / sqrt 2))`.
#[inline(always)]
pub fn gelu_erf<S: Simd>(s: S, x: S::V) -> S::V {
    let h = s.mul(x, s.splat(0.5));
    s.fma(h, erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))), h)
}
