//! Rows of a picture whose chroma has the full width or half of it.

use std::arch::x86_64::*;

/// Pixels that are converted at a time.
pub(in super::super) const STEP: usize = 16;

/// Sixteen bytes of a row.
#[inline]
#[target_feature(enable = "avx2")]
fn load(row: &[u8; STEP]) -> __m256i {
    // SAFETY: sixteen bytes are there; loads need no alignment.
    _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(row.as_ptr().cast()) })
}

/// `(a x + b y + 2^15) >> 16` for 16 pairs of 16 bits, where `y` is 2 and `b` 2^14 for the rounding of one product.
#[inline]
#[target_feature(enable = "avx2")]
fn mixed(x: __m256i, y: __m256i, a: i16, b: i16, half: i32) -> __m256i {
    let factors = _mm256_set1_epi32(i32::from(a) & 0xffff | i32::from(b) << 16);
    let half = _mm256_set1_epi32(half);
    let low = _mm256_madd_epi16(_mm256_unpacklo_epi16(x, y), factors);
    let high = _mm256_madd_epi16(_mm256_unpackhi_epi16(x, y), factors);
    _mm256_packs_epi32(
        _mm256_srai_epi32::<16>(_mm256_add_epi32(low, half)),
        _mm256_srai_epi32::<16>(_mm256_add_epi32(high, half)),
    )
}

/// 16-bit values to bytes, clamped.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes(x: __m256i) -> __m128i {
    let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(x, x));
    _mm256_castsi256_si128(packed)
}

/// Which byte of a channel goes where in the `part`-th of three registers of packed pixels; -1: another channel's.
const fn places(part: usize, channel: usize) -> [i8; STEP] {
    let mut out = [-1; STEP];
    let mut i = 0;
    while i < STEP {
        if (part * STEP + i) % 3 == channel {
            out[i] = ((part * STEP + i) / 3) as i8;
        }
        i += 1;
    }
    out
}

const PLACES: [[[i8; STEP]; 3]; 3] = [
    [places(0, 0), places(0, 1), places(0, 2)],
    [places(1, 0), places(1, 1), places(1, 2)],
    [places(2, 0), places(2, 1), places(2, 2)],
];

/// YCbCr to RGB: rows of as many samples as `out` has pixels, in whole steps. The conversion's constants, with 16
/// fractional bits, are split into whole numbers and what fits 16 bits: 91881 = 65536 + 26345, -46802 = -65536 + 18734,
/// 116130 = 131072 - 14942.
#[target_feature(enable = "avx2")]
pub(in super::super) fn ycc(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
    let steps = y.as_chunks().0.iter().zip(cb.as_chunks().0).zip(cr.as_chunks().0);
    let two = _mm256_set1_epi16(2);
    let middle = _mm256_set1_epi16(128);
    for (((y, cb), cr), out) in steps.zip(out.as_chunks_mut::<{ 3 * STEP }>().0) {
        let y = load(y);
        let cb = _mm256_sub_epi16(load(cb), middle);
        let cr = _mm256_sub_epi16(load(cr), middle);
        let r = _mm256_add_epi16(_mm256_add_epi16(y, cr), mixed(cr, two, 26_345, 1 << 14, 0));
        let g = _mm256_add_epi16(_mm256_sub_epi16(y, cr), mixed(cb, cr, -22_554, 18_734, 1 << 15));
        let b = mixed(cb, two, -14_942, 1 << 14, 0);
        let b = _mm256_add_epi16(_mm256_add_epi16(y, _mm256_add_epi16(cb, cb)), b);
        let channels = [bytes(r), bytes(g), bytes(b)];
        for (part, places) in PLACES.iter().enumerate() {
            let mut packed = _mm_setzero_si128();
            for (&channel, places) in channels.iter().zip(places) {
                // SAFETY: sixteen bytes are there.
                let places = unsafe { _mm_loadu_si128(places.as_ptr().cast()) };
                packed = _mm_or_si128(packed, _mm_shuffle_epi8(channel, places));
            }
            // SAFETY: the three parts are 48 bytes.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().add(part * STEP).cast(), packed) };
        }
    }
}

/// `3 near + far`, for whole steps of `sums`, which both rows have.
#[target_feature(enable = "avx2")]
pub(in super::super) fn weighted(near: &[u8], far: &[u8], sums: &mut [u16]) {
    let steps = near.as_chunks().0.iter().zip(far.as_chunks().0);
    for ((near, far), sums) in steps.zip(sums.as_chunks_mut::<STEP>().0) {
        let (near, far) = (load(near), load(far));
        let sum = _mm256_add_epi16(_mm256_add_epi16(near, near), _mm256_add_epi16(near, far));
        // SAFETY: sixteen values are there.
        unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), sum) };
    }
}

/// Doubles a row as [`super::super::output`]'s `triangle` does. `sums` has a value before and one after those that are
/// doubled, which are whole steps.
#[target_feature(enable = "avx2")]
pub(in super::super) fn triangle<const SHIFT: i32>(sums: &[u16], bias: [u16; 2], out: &mut [u8]) {
    let bias = bias.map(|b| _mm256_set1_epi16(b as i16));
    for (i, out) in out.as_chunks_mut::<{ 2 * STEP }>().0.iter_mut().enumerate() {
        let sums = &sums[i * STEP..i * STEP + STEP + 2];
        // SAFETY: the slice has 18 values.
        let (before, near, after) = unsafe {
            let at = sums.as_ptr();
            (
                _mm256_loadu_si256(at.cast()),
                _mm256_loadu_si256(at.add(1).cast()),
                _mm256_loadu_si256(at.add(2).cast()),
            )
        };
        let thrice = _mm256_add_epi16(near, _mm256_add_epi16(near, near));
        let even = _mm256_add_epi16(_mm256_add_epi16(thrice, before), bias[0]);
        let odd = _mm256_add_epi16(_mm256_add_epi16(thrice, after), bias[1]);
        let odd = match SHIFT {
            2 => _mm256_slli_epi16::<8>(_mm256_srli_epi16::<2>(odd)),
            _ => _mm256_slli_epi16::<8>(_mm256_srli_epi16::<4>(odd)),
        };
        let even = match SHIFT {
            2 => _mm256_srli_epi16::<2>(even),
            _ => _mm256_srli_epi16::<4>(even),
        };
        // SAFETY: 32 bytes are there.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_or_si256(even, odd)) };
    }
}
