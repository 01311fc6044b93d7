//! The inverse cosine transform of libjpeg's "slow" integer method (Loeffler, Ligtenberg and Moschytz 1989, with 13-bit
//! constants), including its roundings: two fractional bits between the passes. Where damaged coefficients leave the
//! range of 16 bits, they do as in its vector code: products and sums wrap, results of a pass are clamped.

use std::array::from_fn;
use std::num::Wrapping;

type Int = Wrapping<i32>;
type Rows = [[Int; 8]; 8];

/// Fractional bits of the constants, and of the values between the passes.
const CONST_BITS: usize = 13;
const PASS_BITS: usize = 2;

/// `x * 2^13`, rounded.
const fn fix(x: f64) -> Int {
    Wrapping((x * (1 << CONST_BITS) as f64 + 0.5) as i32)
}

/// `x` modulo 2^16.
#[inline(always)]
fn wrapped(x: Int) -> Int {
    Wrapping(i32::from(x.0 as i16))
}

/// One-dimensional transform of the eight columns of `r`; drops `shift` fractional bits, rounding.
#[inline(always)]
fn columns(r: &Rows, shift: usize) -> Rows {
    let mut out = [[Wrapping(0); 8]; 8];
    let half = Wrapping(1 << (shift - 1));
    for lane in 0..8 {
        let x: [Int; 8] = from_fn(|i| r[i][lane]);
        let z1 = (x[2] + x[6]) * fix(0.541_196_100);
        let t2 = z1 - x[6] * fix(1.847_759_065);
        let t3 = z1 + x[2] * fix(0.765_366_865);
        let t0 = wrapped(x[0] + x[4]) << CONST_BITS;
        let t1 = wrapped(x[0] - x[4]) << CONST_BITS;
        let even = [t0 + t3, t1 + t2, t1 - t2, t0 - t3];

        let (z3, z4) = (wrapped(x[7] + x[3]), wrapped(x[5] + x[1]));
        let z5 = (z3 + z4) * fix(1.175_875_602);
        let z1 = (x[7] + x[1]) * fix(0.899_976_223);
        let z2 = (x[5] + x[3]) * fix(2.562_915_447);
        let z3 = z5 - z3 * fix(1.961_570_560);
        let z4 = z5 - z4 * fix(0.390_180_644);
        let odd = [
            x[1] * fix(1.501_321_110) - z1 + z4,
            x[3] * fix(3.072_711_026) - z2 + z3,
            x[5] * fix(2.053_119_869) - z2 + z4,
            x[7] * fix(0.298_631_336) - z1 + z3,
        ];
        for i in 0..4 {
            out[i][lane] = (even[i] + odd[i] + half) >> shift;
            out[7 - i][lane] = (even[i] - odd[i] + half) >> shift;
        }
    }
    out
}

#[inline(always)]
fn transposed(r: &Rows) -> Rows {
    from_fn(|i| from_fn(|j| r[j][i]))
}

/// One block to 8 x 8 samples at `x` of `samples: [8, stride]`.
#[inline(always)]
fn block(coefs: &[i16; 64], quant: &[u16; 64], x: usize, stride: usize, samples: &mut [u8]) {
    let level = |v: Int| v.0.saturating_add(128).clamp(0, 255) as u8;
    let value = |i: usize| wrapped(Wrapping(i32::from(coefs[i]) * i32::from(quant[i])));
    if coefs[1..].iter().all(|&c| c == 0) {
        let flat =
            level((wrapped(value(0) << PASS_BITS) + Wrapping(1 << (PASS_BITS + 2))) >> (PASS_BITS + 3));
        samples.chunks_exact_mut(stride).for_each(|row| row[x..x + 8].fill(flat));
        return;
    }
    let half_way = if coefs[8..].iter().all(|&c| c == 0) {
        from_fn(|j| [wrapped(value(j) << PASS_BITS); 8])
    } else {
        let rows = from_fn(|i| from_fn(|j| value(i * 8 + j)));
        let clamped = |v: Int| Wrapping(v.0.clamp(i16::MIN.into(), i16::MAX.into()));
        transposed(&columns(&rows, CONST_BITS - PASS_BITS)).map(|row| row.map(clamped))
    };
    let out = transposed(&columns(&half_way, CONST_BITS + PASS_BITS + 3));
    for (row, values) in samples.chunks_exact_mut(stride).zip(&out) {
        row[x..x + 8].copy_from_slice(&values.map(level));
    }
}

/// [`block_row`] on any machine.
pub(super) fn portable(coefs: &[i16], quant: &[u16; 64], samples: &mut [u8]) {
    let stride = samples.len() / 8;
    for (i, coefs) in coefs.as_chunks::<64>().0.iter().enumerate() {
        block(coefs, quant, i * 8, stride, samples);
    }
}

/// A row of blocks, `coefs: [blocks, 64]` in natural order, to `samples: [8, blocks * 8]`.
pub(super) fn block_row(coefs: &[i16], quant: &[u16; 64], samples: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if crate::image::may_use_avx2() {
        // SAFETY: the machine has AVX2, as just checked.
        return unsafe { super::avx2::idct::block_row(coefs, quant, samples) };
    }
    portable(coefs, quant, samples);
}
