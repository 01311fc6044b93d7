//! Roofs of AVX2 and AVX-512.

use std::arch::x86_64::*;
use std::hint::black_box;

use ocelli_kernels::cpu::isa::Isa;

use super::{Loop, Loops};

// Every accumulator starts with a value of its own: equal ones would be equal for ever, and a compiler may keep one.

pub(super) fn avx2(isa: Isa) -> Loops {
    // SAFETY: an `Isa` exists only for levels of this machine, and this one has AVX2 and FMA.
    let fma_f32 = vec![Loop { ops: (2 * 8 * 12) as f64, run: |n| unsafe { fma_avx2(n) } }];
    let mut int8 = vec![
        // SAFETY: as above.
        Loop { ops: (2 * 32 * 10) as f64, run: |n| unsafe { maddubs_avx2(n) } },
        // SAFETY: as above.
        Loop { ops: (2 * 32 * 24) as f64, run: |n| unsafe { maddubs_narrow_avx2(n) } },
    ];
    if isa.vnni() {
        // SAFETY: at this level `vnni` tells that AVX-VNNI is there.
        int8 = vec![Loop { ops: (2 * 32 * 12) as f64, run: |n| unsafe { vpdpbusd_avx2(n) } }];
    }
    Loops { fma_f32, int8, bf16: vec![] }
}

pub(super) fn avx512(isa: Isa) -> Loops {
    // SAFETY: an `Isa` exists only for levels of this machine, and this one has AVX-512 F and BW.
    let fma_f32 = vec![Loop { ops: (2 * 16 * 24) as f64, run: |n| unsafe { fma_avx512(n) } }];
    let mut int8 = vec![
        // SAFETY: as above.
        Loop { ops: (2 * 64 * 20) as f64, run: |n| unsafe { maddubs_avx512(n) } },
    ];
    if isa.vnni() {
        // SAFETY: at this level `vnni` tells that AVX512_VNNI is there.
        int8 = vec![Loop { ops: (2 * 64 * 24) as f64, run: |n| unsafe { vpdpbusd_avx512(n) } }];
    }
    let mut bf16 = vec![];
    if isa.bf16() {
        // SAFETY: as above for AVX512_BF16.
        bf16.push(Loop { ops: (2 * 32 * 24) as f64, run: |n| unsafe { dpbf16_avx512(n) } });
    }
    if isa.amx() {
        // SAFETY: there are tiles, which this process may use.
        bf16.push(Loop { ops: (2 * 16 * 16 * 32 * 4) as f64, run: |n| unsafe { dpbf16_amx(n) } });
    }
    Loops { fma_f32, int8, bf16 }
}

/// 12 accumulators: the 16 registers less the two operands leave room for no spill.
#[target_feature(enable = "avx2,fma")]
fn fma_avx2(iterations: u64) -> f32 {
    let a = _mm256_set1_ps(black_box(0.999));
    let b = _mm256_set1_ps(black_box(0.01));
    let mut acc = [_mm256_set1_ps(0.0); 12];
    for (i, v) in acc.iter_mut().enumerate() {
        *v = _mm256_set1_ps(i as f32);
    }
    for _ in 0..iterations {
        for v in &mut acc {
            *v = _mm256_fmadd_ps(*v, a, b);
        }
    }
    let sum = acc.into_iter().fold(_mm256_setzero_ps(), |s, v| _mm256_add_ps(s, v));
    let mut lanes = [0.0; 8];
    // SAFETY: `lanes` holds the 8 floats that are stored.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    lanes.iter().sum()
}

/// u8 x i8 products in pairs, pairs to i32, sums: the sequence that is exact for every pair that fits 16 bits.
#[target_feature(enable = "avx2")]
fn maddubs_avx2(iterations: u64) -> f32 {
    let x = _mm256_set1_epi8(black_box(3));
    let ones = _mm256_set1_epi16(black_box(1));
    let mut acc = [_mm256_set1_epi32(0); 10];
    for (i, v) in acc.iter_mut().enumerate() {
        *v = _mm256_set1_epi32(i as i32);
    }
    for _ in 0..iterations {
        for v in &mut acc {
            // The sum is one operand, so that no product can be moved out of the loop.
            let pairs = _mm256_maddubs_epi16(x, *v);
            *v = _mm256_add_epi32(*v, _mm256_madd_epi16(pairs, ones));
        }
    }
    low_bits_256(acc.into_iter().fold(_mm256_setzero_si256(), |s, v| _mm256_add_epi32(s, v)))
}

/// The same with pairs summed in 16 bits twice before they widen: possible where one side is small (4-bit weights).
#[target_feature(enable = "avx2")]
fn maddubs_narrow_avx2(iterations: u64) -> f32 {
    let x = _mm256_set1_epi8(black_box(3));
    let y = _mm256_set1_epi8(black_box(5));
    let ones = _mm256_set1_epi16(black_box(1));
    let mut acc = [_mm256_set1_epi32(0); 6];
    for (i, v) in acc.iter_mut().enumerate() {
        *v = _mm256_set1_epi32(i as i32);
    }
    for _ in 0..iterations {
        for v in &mut acc {
            let a = _mm256_maddubs_epi16(x, *v);
            let b = _mm256_maddubs_epi16(y, *v);
            let c = _mm256_maddubs_epi16(*v, x);
            let d = _mm256_maddubs_epi16(*v, y);
            let pairs = _mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_add_epi16(c, d));
            *v = _mm256_add_epi32(*v, _mm256_madd_epi16(pairs, ones));
        }
    }
    low_bits_256(acc.into_iter().fold(_mm256_setzero_si256(), |s, v| _mm256_add_epi32(s, v)))
}

#[target_feature(enable = "avx2,avxvnni")]
fn vpdpbusd_avx2(iterations: u64) -> f32 {
    let x = _mm256_set1_epi8(black_box(3));
    let y = _mm256_set1_epi8(black_box(-2));
    let mut acc = [_mm256_setzero_si256(); 12];
    for (i, v) in acc.iter_mut().enumerate() {
        *v = _mm256_set1_epi32(i as i32);
    }
    for _ in 0..iterations {
        for v in &mut acc {
            *v = _mm256_dpbusd_avx_epi32(*v, x, y);
        }
    }
    low_bits_256(acc.into_iter().fold(_mm256_setzero_si256(), |s, v| _mm256_add_epi32(s, v)))
}

#[target_feature(enable = "avx2")]
fn low_bits_256(v: __m256i) -> f32 {
    let mut lanes = [0_i32; 8];
    // SAFETY: `lanes` holds the 32 bytes that are stored.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), v) };
    lanes.iter().map(|&l| (l & 0xffff) as f32).sum()
}

/// 24 accumulators of the 32 registers: at least twice what two ports times the latency need.
#[target_feature(enable = "avx512f")]
fn fma_avx512(iterations: u64) -> f32 {
    let a = _mm512_set1_ps(black_box(0.999));
    let b = _mm512_set1_ps(black_box(0.01));
    let mut acc = [_mm512_set1_ps(0.0); 24];
    for (i, v) in acc.iter_mut().enumerate() {
        *v = _mm512_set1_ps(i as f32);
    }
    for _ in 0..iterations {
        for v in &mut acc {
            *v = _mm512_fmadd_ps(*v, a, b);
        }
    }
    sum_512(acc.into_iter().fold(_mm512_setzero_ps(), |s, v| _mm512_add_ps(s, v)))
}

#[target_feature(enable = "avx512f,avx512bw")]
fn maddubs_avx512(iterations: u64) -> f32 {
    let x = _mm512_set1_epi8(black_box(3));
    let ones = _mm512_set1_epi16(black_box(1));
    let mut acc = [_mm512_set1_epi32(0); 20];
    for (i, v) in acc.iter_mut().enumerate() {
        *v = _mm512_set1_epi32(i as i32);
    }
    for _ in 0..iterations {
        for v in &mut acc {
            let pairs = _mm512_maddubs_epi16(x, *v);
            *v = _mm512_add_epi32(*v, _mm512_madd_epi16(pairs, ones));
        }
    }
    low_bits_512(acc.into_iter().fold(_mm512_setzero_si512(), |s, v| _mm512_add_epi32(s, v)))
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn vpdpbusd_avx512(iterations: u64) -> f32 {
    let x = _mm512_set1_epi8(black_box(3));
    let y = _mm512_set1_epi8(black_box(-2));
    let mut acc = [_mm512_set1_epi32(0); 24];
    for (i, v) in acc.iter_mut().enumerate() {
        *v = _mm512_set1_epi32(i as i32);
    }
    for _ in 0..iterations {
        for v in &mut acc {
            *v = _mm512_dpbusd_epi32(*v, x, y);
        }
    }
    low_bits_512(acc.into_iter().fold(_mm512_setzero_si512(), |s, v| _mm512_add_epi32(s, v)))
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn dpbf16_avx512(iterations: u64) -> f32 {
    // 0.0078125 x 0.0078125 in each of the two products of a lane.
    let bits = _mm512_set1_epi32(black_box(0x3c00_3c00));
    // SAFETY: both types are 64 plain bytes.
    let x: __m512bh = unsafe { std::mem::transmute(bits) };
    let mut acc = [_mm512_set1_ps(0.0); 24];
    for (i, v) in acc.iter_mut().enumerate() {
        *v = _mm512_set1_ps(i as f32);
    }
    for _ in 0..iterations {
        for v in &mut acc {
            *v = _mm512_dpbf16_ps(*v, x, x);
        }
    }
    sum_512(acc.into_iter().fold(_mm512_setzero_ps(), |s, v| _mm512_add_ps(s, v)))
}

/// Four tiles of sums.
///
/// # Safety
/// The machine has tiles of bf16, and the process may use them.
unsafe fn dpbf16_amx(iterations: u64) -> f32 {
    // Palette 1; eight tiles of 16 rows of 64 bytes.
    let mut config = [0u8; 64];
    config[0] = 1;
    for tile in 0..8 {
        (config[16 + 2 * tile], config[48 + tile]) = (64, 16);
    }
    let (x, mut sums) = ([black_box(0x3c00_u16); 16 * 32], [0.0f32; 16 * 16]);
    // SAFETY: the configuration is valid, operands and sums are a tile each, and code of the compiler does not use the tiles.
    unsafe {
        std::arch::asm!(
            "ldtilecfg [{config}]",
            "tileloadd tmm4, [{x} + {stride}]",
            "tileloadd tmm5, [{x} + {stride}]",
            "tileloadd tmm6, [{x} + {stride}]",
            "tileloadd tmm7, [{x} + {stride}]",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {n}",
            "jnz 2b",
            "tilestored [{sums} + {stride}], tmm0",
            "tilerelease",
            config = in(reg) config.as_ptr(),
            x = in(reg) x.as_ptr(),
            sums = in(reg) sums.as_mut_ptr(),
            stride = in(reg) 64usize,
            n = inout(reg) iterations.max(1) => _,
            options(nostack),
        );
    }
    sums.iter().sum()
}

#[target_feature(enable = "avx512f")]
fn sum_512(v: __m512) -> f32 {
    _mm512_reduce_add_ps(v)
}

#[target_feature(enable = "avx512f")]
fn low_bits_512(v: __m512i) -> f32 {
    (_mm512_reduce_add_epi32(v) & 0xff_ffff) as f32
}
