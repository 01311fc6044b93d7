//! AVX2 with FMA and F16C.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::super::isa::Level;
use super::Simd;

/// AVX2 with FMA and F16C: 8 lanes.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU has AVX2, FMA and F16C.
    #[inline(always)]
    pub unsafe fn new() -> Self {
        Avx2(())
    }
}

/// Lane masks for the first n lanes start at `TAIL[8 - n]`.
static TAIL: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline(always)]
fn tail(n: usize) -> __m256i {
    debug_assert!(n <= 8);
    // SAFETY: 8 values from index `8 - n <= 8` of 16; a token exists, so the instructions do.
    unsafe { _mm256_loadu_si256(TAIL.as_ptr().add(8 - n.min(8)).cast()) }
}

/// f32 to bf16 in the low half of each 32-bit lane, round to nearest even; NaN keeps its sign and gets a quiet bit.
#[inline(always)]
fn round_bf16(a: __m256) -> __m256i {
    // SAFETY: a token exists, so the instructions do.
    unsafe {
        let x = _mm256_castps_si256(a);
        let hi = _mm256_srli_epi32::<16>(x);
        let bias = _mm256_add_epi32(_mm256_and_si256(hi, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
        let r = _mm256_srli_epi32::<16>(_mm256_add_epi32(x, bias));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, a));
        _mm256_blendv_epi8(r, _mm256_or_si256(hi, _mm256_set1_epi32(0x40)), nan)
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    const LEVEL: Level = Level::Avx2;
    type V = __m256;
    type I = __m256i;
    type M = __m256;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn fnma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn neg(self, a: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_xor_ps(a, _mm256_set1_ps(-0.0)) }
    }
    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    fn copysign(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe {
            let s = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_andnot_ps(s, a), _mm256_and_ps(s, b))
        }
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn lt(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn le(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_cmp_ps::<_CMP_LE_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, m: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_blendv_ps(b, a, m) }
    }
    #[inline(always)]
    fn first(self, n: usize) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_castsi256_ps(tail(n)) }
    }
    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        // SAFETY: a token exists, so the instructions do.
        unsafe {
            let h = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let h = _mm_add_ps(h, _mm_movehl_ps(h, h));
            _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)))
        }
    }
    #[inline(always)]
    fn max_lane(self, a: __m256) -> f32 {
        // SAFETY: a token exists, so the instructions do.
        unsafe {
            let h = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let h = _mm_max_ps(h, _mm_movehl_ps(h, h));
            _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)))
        }
    }
    #[inline(always)]
    fn to_bits(self, a: __m256) -> __m256i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_castps_si256(a) }
    }
    #[inline(always)]
    fn of_bits(self, a: __m256i) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_castsi256_ps(a) }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> __m256i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    fn first_i(self, x: i32) -> __m256i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_zextsi128_si256(_mm_cvtsi32_si128(x)) }
    }
    #[inline(always)]
    fn add_i(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub_i(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn and_i(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn or_i(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn xor_i(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_xor_si256(a, b) }
    }
    #[inline(always)]
    fn shl_i<const K: i32>(self, a: __m256i) -> __m256i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_slli_epi32::<K>(a) }
    }
    #[inline(always)]
    fn shr_i<const K: i32>(self, a: __m256i) -> __m256i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_srli_epi32::<K>(a) }
    }
    #[inline(always)]
    fn sra_i<const K: i32>(self, a: __m256i) -> __m256i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_srai_epi32::<K>(a) }
    }
    #[inline(always)]
    fn shr_lanes_i(self, a: __m256i, k: __m256i) -> __m256i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_srlv_epi32(a, k) }
    }
    #[inline(always)]
    fn to_int(self, a: __m256) -> __m256i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_cvtps_epi32(a) }
    }
    #[inline(always)]
    fn to_float(self, a: __m256i) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> __m256 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm256_maskload_ps(p, tail(n)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: __m256) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm256_storeu_ps(p, a) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, a: __m256, n: usize) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm256_maskstore_ps(p, tail(n), a) }
    }
    #[inline(always)]
    unsafe fn load_i(self, p: *const i32) -> __m256i {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_i(self, p: *mut i32, a: __m256i) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm256_storeu_si256(p.cast(), a) }
    }
    #[inline(always)]
    unsafe fn load_4(self, p: *const f32) -> __m256 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm256_zextps128_ps256(_mm_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> __m256 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> __m256 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16_n(self, p: *const bf16, n: usize) -> __m256 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(first_halves(p.cast(), n))))
        }
    }
    #[inline(always)]
    unsafe fn load_f16_n(self, p: *const f16, n: usize) -> __m256 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm256_cvtph_ps(first_halves(p.cast(), n)) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> __m256 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> __m256 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_u4(self, p: *const u8) -> __m256 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            let w = _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
            let w = _mm256_srlv_epi32(w, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
            _mm256_cvtepi32_ps(_mm256_and_si256(w, _mm256_set1_epi32(15)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, a: __m256) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            let r = round_bf16(a);
            let r = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(r, r));
            _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(r))
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16, a: __m256) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)) }
    }
    #[inline(always)]
    fn permute(self, a: __m256, index: __m256i) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm256_permutevar8x32_ps(a, index) }
    }
    #[inline(always)]
    fn look_up(self, table: &[f32; 16], index: __m256i) -> __m256 {
        // SAFETY: a token exists, so the instructions do; the table holds two vectors.
        unsafe {
            let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), index);
            let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr().add(8)), index);
            // Bit 3 chooses, from where the blend looks for it.
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
        }
    }
    /// Low and high halves of each byte, moved to the byte's top, so that one byte shuffle brings a field to the top of
    /// its word: shuffles run beside the conversions, shifts compete with them. Bytes stay as they are.
    #[inline(always)]
    fn fields<const BITS: usize>(self, words: __m256i) -> (__m256i, __m256i) {
        // SAFETY: a token exists, so the instructions do.
        unsafe {
            if BITS == 4 {
                let w = _mm256_xor_si256(words, _mm256_set1_epi8(0x88_u8 as i8));
                let top = _mm256_set1_epi8(0xf0_u8 as i8);
                let low = _mm256_sll_epi32(w, _mm_cvtsi32_si128(4));
                return (_mm256_and_si256(low, top), _mm256_and_si256(w, top));
            }
            let w = _mm256_xor_si256(words, _mm256_set1_epi8(0x80_u8 as i8));
            (w, w)
        }
    }
    #[inline(always)]
    fn field<const BITS: usize, const J: usize>(self, fields: (__m256i, __m256i)) -> __m256 {
        // SAFETY: a token exists, so the instructions do.
        unsafe {
            let (half, byte) = match BITS {
                4 => (if J.is_multiple_of(2) { fields.0 } else { fields.1 }, J / 2),
                _ => (fields.0, J),
            };
            let top = if byte == 3 {
                _mm256_and_si256(half, _mm256_set1_epi32(0xff00_0000_u32 as i32))
            } else {
                let z = 0x80_u32;
                let base = z | z << 8 | z << 16;
                let at = |word: u32| (base | (word * 4 + byte as u32) << 24) as i32;
                let lane = _mm_setr_epi32(at(0), at(1), at(2), at(3));
                _mm256_shuffle_epi8(half, _mm256_broadcastsi128_si256(lane))
            };
            _mm256_cvtepi32_ps(top)
        }
    }
    #[inline(always)]
    unsafe fn transpose(self, rows: *mut __m256) {
        // SAFETY: the caller vouches for 8 vectors; a token exists, so the instructions do.
        unsafe {
            let r = rows.cast::<[__m256; 8]>();
            let [a0, a1, a2, a3, a4, a5, a6, a7] = *r;
            let (b0, b1) = (_mm256_unpacklo_ps(a0, a1), _mm256_unpackhi_ps(a0, a1));
            let (b2, b3) = (_mm256_unpacklo_ps(a2, a3), _mm256_unpackhi_ps(a2, a3));
            let (b4, b5) = (_mm256_unpacklo_ps(a4, a5), _mm256_unpackhi_ps(a4, a5));
            let (b6, b7) = (_mm256_unpacklo_ps(a6, a7), _mm256_unpackhi_ps(a6, a7));
            let (c0, c1) = (_mm256_shuffle_ps::<0x44>(b0, b2), _mm256_shuffle_ps::<0xee>(b0, b2));
            let (c2, c3) = (_mm256_shuffle_ps::<0x44>(b1, b3), _mm256_shuffle_ps::<0xee>(b1, b3));
            let (c4, c5) = (_mm256_shuffle_ps::<0x44>(b4, b6), _mm256_shuffle_ps::<0xee>(b4, b6));
            let (c6, c7) = (_mm256_shuffle_ps::<0x44>(b5, b7), _mm256_shuffle_ps::<0xee>(b5, b7));
            *r = [
                _mm256_permute2f128_ps::<0x20>(c0, c4),
                _mm256_permute2f128_ps::<0x20>(c1, c5),
                _mm256_permute2f128_ps::<0x20>(c2, c6),
                _mm256_permute2f128_ps::<0x20>(c3, c7),
                _mm256_permute2f128_ps::<0x31>(c0, c4),
                _mm256_permute2f128_ps::<0x31>(c1, c5),
                _mm256_permute2f128_ps::<0x31>(c2, c6),
                _mm256_permute2f128_ps::<0x31>(c3, c7),
            ];
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, a: __m256i) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            let p16 = _mm256_packs_epi32(a, a);
            let p8 = _mm256_packs_epi16(p16, p16);
            let both = _mm_unpacklo_epi32(_mm256_castsi256_si128(p8), _mm256_extracti128_si256::<1>(p8));
            _mm_storel_epi64(p.cast(), both)
        }
    }
    #[inline(always)]
    fn prefetch_l2<T>(self, p: *const T) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_once<T>(self, p: *const T) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

/// The first `n` values of 16 bits, zeros after them, by overlapping loads: no trip through memory, which a load would wait
/// for.
///
/// # Safety
/// `p` is readable for `n <= 8` values; alignment is not needed.
#[inline(always)]
unsafe fn first_halves(p: *const u16, n: usize) -> __m128i {
    // SAFETY: reads end with value `n`, as the caller vouches; the instructions are those of every x86-64.
    unsafe {
        let four = |at: usize| p.add(at).cast::<u64>().read_unaligned();
        let two = |at: usize| u64::from(p.add(at).cast::<u32>().read_unaligned());
        let (low, high) = match n {
            8.. => (four(0), four(4)),
            5.. => (four(0), four(n - 4) >> (16 * (8 - n))),
            4 => (four(0), 0),
            3 => (two(0) | two(1) >> 16 << 32, 0),
            2 => (two(0), 0),
            1 => (u64::from(p.read_unaligned()), 0),
            0 => (0, 0),
        };
        _mm_set_epi64x(high as i64, low as i64)
    }
}
