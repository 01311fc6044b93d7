//! Roofs of the target's base instruction set: SSE2 on x86-64, what the compiler makes of plain Rust elsewhere.

use super::{Loop, Loops};

#[cfg(target_arch = "x86_64")]
pub(super) fn loops() -> Loops {
    Loops {
        fma_f32: vec![Loop { ops: (2 * 4 * 12) as f64, run: sse2::multiply_add }],
        int8: vec![Loop { ops: (2 * 8 * 12) as f64, run: sse2::int16_pairs }],
        bf16: vec![],
    }
}

#[cfg(target_arch = "x86_64")]
mod sse2 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// `acc = acc * a + b`: a separate multiplication and addition, as the base set has no fused one.
    pub(super) fn multiply_add(iterations: u64) -> f32 {
        // SAFETY: SSE2 is part of the x86-64 target.
        unsafe { multiply_add_sse2(iterations) }
    }

    #[target_feature(enable = "sse2")]
    fn multiply_add_sse2(iterations: u64) -> f32 {
        let a = _mm_set1_ps(black_box(0.999));
        let b = _mm_set1_ps(black_box(0.01));
        let mut acc = [_mm_set1_ps(0.0); 12];
        for (i, v) in acc.iter_mut().enumerate() {
            *v = _mm_set1_ps(i as f32);
        }
        for _ in 0..iterations {
            for v in &mut acc {
                *v = _mm_add_ps(_mm_mul_ps(*v, a), b);
            }
        }
        let sum = acc.into_iter().fold(_mm_setzero_ps(), |s, v| _mm_add_ps(s, v));
        let mut lanes = [0.0; 4];
        // SAFETY: `lanes` holds the 4 floats that are stored.
        unsafe { _mm_storeu_ps(lanes.as_mut_ptr(), sum) };
        lanes.iter().sum()
    }

    /// Products of int8 values widened to 16 bits, summed in pairs: the base set multiplies no bytes. Widening is
    /// left out: a kernel does it once per panel.
    pub(super) fn int16_pairs(iterations: u64) -> f32 {
        // SAFETY: SSE2 is part of the x86-64 target.
        unsafe { int16_pairs_sse2(iterations) }
    }

    #[target_feature(enable = "sse2")]
    fn int16_pairs_sse2(iterations: u64) -> f32 {
        let x = _mm_set1_epi16(black_box(3));
        let mut acc = [_mm_set1_epi32(0); 12];
        for (i, v) in acc.iter_mut().enumerate() {
            *v = _mm_set1_epi32(i as i32);
        }
        for _ in 0..iterations {
            for v in &mut acc {
                *v = _mm_add_epi32(*v, _mm_madd_epi16(x, *v));
            }
        }
        let sum = acc.into_iter().fold(_mm_setzero_si128(), |s, v| _mm_add_epi32(s, v));
        let mut lanes = [0_i32; 4];
        // SAFETY: `lanes` holds the 16 bytes that are stored.
        unsafe { _mm_storeu_si128(lanes.as_mut_ptr().cast(), sum) };
        lanes.iter().map(|&l| (l & 0xffff) as f32).sum()
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn loops() -> Loops {
    Loops {
        fma_f32: vec![Loop { ops: (2 * 4 * 16) as f64, run: multiply_add }],
        int8: vec![Loop { ops: (2 * 64) as f64, run: int8_dot }],
        bf16: vec![],
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_add(iterations: u64) -> f32 {
    use std::hint::black_box;
    let a = black_box([0.999_f32; 64]);
    let b = black_box([0.01_f32; 64]);
    let mut acc = [1.0_f32; 64];
    for _ in 0..iterations {
        for ((x, a), b) in acc.iter_mut().zip(&a).zip(&b) {
            *x = *x * a + b;
        }
    }
    acc.iter().sum()
}

#[cfg(not(target_arch = "x86_64"))]
fn int8_dot(iterations: u64) -> f32 {
    use std::hint::black_box;
    let x = black_box([3_i8; 64]);
    let y = black_box([-2_i8; 64]);
    let mut sum = 0_i32;
    for _ in 0..iterations {
        for (&x, &y) in black_box(&x).iter().zip(black_box(&y)) {
            sum = sum.wrapping_add(i32::from(x) * i32::from(y));
        }
    }
    (sum & 0xff_ffff) as f32
}
