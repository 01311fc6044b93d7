//! Two blocks at a time: one in the low, one in the high half of each register.

use std::arch::x86_64::*;

/// Constants of [`super::super::idct`] with 13 fractional bits, for sums of two products.
const C0_298: i16 = 2446;
const C0_390: i16 = 3196;
const C0_541: i16 = 4433;
const C0_765: i16 = 6270;
const C0_899: i16 = 7373;
const C1_175: i16 = 9633;
const C1_501: i16 = 12299;
const C1_847: i16 = 15137;
const C1_961: i16 = 16069;
const C2_053: i16 = 16819;
const C2_562: i16 = 20995;
const C3_072: i16 = 25172;

/// Eight rows of eight 16-bit values, of two blocks.
type Rows = [__m256i; 8];

/// 32-bit sums: of the first and of the last four columns.
type Sums = [__m256i; 2];

/// `a * x + b * y` in 32 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn products(x: __m256i, y: __m256i, a: i16, b: i16) -> Sums {
    let factors = _mm256_set1_epi32(i32::from(a) & 0xffff | i32::from(b) << 16);
    [
        _mm256_madd_epi16(_mm256_unpacklo_epi16(x, y), factors),
        _mm256_madd_epi16(_mm256_unpackhi_epi16(x, y), factors),
    ]
}

/// `x * 2^13` in 32 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn scaled(x: __m256i) -> Sums {
    let zero = _mm256_setzero_si256();
    [
        _mm256_srai_epi32::<3>(_mm256_unpacklo_epi16(zero, x)),
        _mm256_srai_epi32::<3>(_mm256_unpackhi_epi16(zero, x)),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn plus(a: Sums, b: Sums) -> Sums {
    [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn minus(a: Sums, b: Sums) -> Sums {
    [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])]
}

/// Rounds off `SHIFT` bits and clamps to 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn rounded<const SHIFT: i32>(x: Sums) -> __m256i {
    let half = _mm256_set1_epi32(1 << (SHIFT - 1));
    let [low, high] = [_mm256_add_epi32(x[0], half), _mm256_add_epi32(x[1], half)];
    _mm256_packs_epi32(_mm256_srai_epi32::<SHIFT>(low), _mm256_srai_epi32::<SHIFT>(high))
}

/// One-dimensional transform of the columns; drops `SHIFT` fractional bits, rounding.
#[inline]
#[target_feature(enable = "avx2")]
fn columns<const SHIFT: i32>(x: &Rows) -> Rows {
    let t2 = products(x[2], x[6], C0_541, C0_541 - C1_847);
    let t3 = products(x[2], x[6], C0_541 + C0_765, C0_541);
    let t0 = scaled(_mm256_add_epi16(x[0], x[4]));
    let t1 = scaled(_mm256_sub_epi16(x[0], x[4]));
    let even = [plus(t0, t3), plus(t1, t2), minus(t1, t2), minus(t0, t3)];

    let (z3, z4) = (_mm256_add_epi16(x[7], x[3]), _mm256_add_epi16(x[5], x[1]));
    let a = products(z3, z4, C1_175 - C1_961, C1_175);
    let b = products(z3, z4, C1_175, C1_175 - C0_390);
    let odd = [
        plus(products(x[7], x[1], -C0_899, C1_501 - C0_899), b),
        plus(products(x[5], x[3], -C2_562, C3_072 - C2_562), a),
        plus(products(x[5], x[3], C2_053 - C2_562, -C2_562), b),
        plus(products(x[7], x[1], C0_298 - C0_899, -C0_899), a),
    ];
    [
        rounded::<SHIFT>(plus(even[0], odd[0])),
        rounded::<SHIFT>(plus(even[1], odd[1])),
        rounded::<SHIFT>(plus(even[2], odd[2])),
        rounded::<SHIFT>(plus(even[3], odd[3])),
        rounded::<SHIFT>(minus(even[3], odd[3])),
        rounded::<SHIFT>(minus(even[2], odd[2])),
        rounded::<SHIFT>(minus(even[1], odd[1])),
        rounded::<SHIFT>(minus(even[0], odd[0])),
    ]
}

/// Rows to columns, in each block.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(r: &Rows) -> Rows {
    let (a0, a1) = (_mm256_unpacklo_epi16(r[0], r[1]), _mm256_unpackhi_epi16(r[0], r[1]));
    let (a2, a3) = (_mm256_unpacklo_epi16(r[2], r[3]), _mm256_unpackhi_epi16(r[2], r[3]));
    let (a4, a5) = (_mm256_unpacklo_epi16(r[4], r[5]), _mm256_unpackhi_epi16(r[4], r[5]));
    let (a6, a7) = (_mm256_unpacklo_epi16(r[6], r[7]), _mm256_unpackhi_epi16(r[6], r[7]));
    let (b0, b1) = (_mm256_unpacklo_epi32(a0, a2), _mm256_unpackhi_epi32(a0, a2));
    let (b2, b3) = (_mm256_unpacklo_epi32(a1, a3), _mm256_unpackhi_epi32(a1, a3));
    let (b4, b5) = (_mm256_unpacklo_epi32(a4, a6), _mm256_unpackhi_epi32(a4, a6));
    let (b6, b7) = (_mm256_unpacklo_epi32(a5, a7), _mm256_unpackhi_epi32(a5, a7));
    [
        _mm256_unpacklo_epi64(b0, b4),
        _mm256_unpackhi_epi64(b0, b4),
        _mm256_unpacklo_epi64(b1, b5),
        _mm256_unpackhi_epi64(b1, b5),
        _mm256_unpacklo_epi64(b2, b6),
        _mm256_unpackhi_epi64(b2, b6),
        _mm256_unpacklo_epi64(b3, b7),
        _mm256_unpackhi_epi64(b3, b7),
    ]
}

/// Row `i` of two blocks.
#[inline]
#[target_feature(enable = "avx2")]
fn row(a: &[i16; 64], b: &[i16; 64], i: usize) -> __m256i {
    // SAFETY: `i` is below 8, so that eight values are there; loads need no alignment.
    unsafe {
        let low = _mm_loadu_si128(a.as_ptr().add(i * 8).cast());
        let high = _mm_loadu_si128(b.as_ptr().add(i * 8).cast());
        _mm256_set_m128i(high, low)
    }
}

/// Two blocks, `a` and `b`, to the first eight columns and, with `WIDE`, the next eight of `samples: [8, stride]`
/// from column `x` on. There are that many columns.
#[inline]
#[target_feature(enable = "avx2")]
fn pair<const WIDE: bool>(a: &[i16; 64], b: &[i16; 64], quant: &[u16; 64], x: usize, samples: &mut [u8]) {
    let stride = samples.len() / 8;
    debug_assert!(x + if WIDE { 16 } else { 8 } <= stride);
    let mut coefs = [_mm256_setzero_si256(); 8];
    for (i, coefs) in coefs.iter_mut().enumerate() {
        *coefs = row(a, b, i);
    }
    // Which block has nothing but its first row.
    let mut below = coefs[1];
    for &row in &coefs[2..] {
        below = _mm256_or_si256(below, row);
    }
    let nothing = _mm256_cmpeq_epi64(below, _mm256_setzero_si256());
    let nothing = _mm256_and_si256(nothing, _mm256_permute4x64_epi64::<0b10_11_00_01>(nothing));
    for (i, coefs) in coefs.iter_mut().enumerate() {
        // SAFETY: `i` is below 8.
        let quant = unsafe { _mm_loadu_si128(quant.as_ptr().add(i * 8).cast()) };
        *coefs = _mm256_mullo_epi16(*coefs, _mm256_set_m128i(quant, quant));
    }
    let flat = _mm256_movemask_epi8(nothing);
    let mut half_way = [_mm256_setzero_si256(); 8];
    if flat != -1 {
        half_way = transposed(&columns::<11>(&coefs));
    }
    if flat != 0 {
        // Each column is its first value throughout, however large.
        let first = _mm256_slli_epi16::<2>(coefs[0]);
        for (i, values) in half_way.iter_mut().enumerate() {
            let lanes = _mm256_set1_epi16(((2 * i) | ((2 * i + 1) << 8)) as i16);
            *values = _mm256_blendv_epi8(*values, _mm256_shuffle_epi8(first, lanes), nothing);
        }
    }
    let out = transposed(&columns::<18>(&half_way));
    for i in [0, 2, 4, 6] {
        let level = _mm256_set1_epi8(i8::MIN);
        let bytes = _mm256_xor_si256(_mm256_packs_epi16(out[i], out[i + 1]), level);
        let at = samples[i * stride + x..].as_mut_ptr();
        // SAFETY: rows `i` and `i + 1` have `stride` samples each, and those from `x` on are enough, as asserted.
        unsafe {
            if WIDE {
                let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes);
                _mm_storeu_si128(at.cast(), _mm256_castsi256_si128(bytes));
                _mm_storeu_si128(at.add(stride).cast(), _mm256_extracti128_si256::<1>(bytes));
            } else {
                let low = _mm256_castsi256_si128(bytes);
                _mm_storel_epi64(at.cast(), low);
                _mm_storel_epi64(at.add(stride).cast(), _mm_unpackhi_epi64(low, low));
            }
        }
    }
}

/// See [`super::super::idct::block_row`].
#[target_feature(enable = "avx2")]
pub(in super::super) fn block_row(coefs: &[i16], quant: &[u16; 64], samples: &mut [u8]) {
    let stride = samples.len() / 8;
    assert_eq!(coefs.len(), stride * 8, "blocks of the row");
    let (pairs, last) = coefs.as_chunks::<64>().0.as_chunks::<2>();
    for (i, [a, b]) in pairs.iter().enumerate() {
        pair::<true>(a, b, quant, i * 16, samples);
    }
    for a in last {
        pair::<false>(a, a, quant, pairs.len() * 16, samples);
    }
}
