//! AVX-512 F, BW, VL, DQ.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::super::isa::Level;
use super::{Avx2, Simd};

/// AVX-512 F, BW, VL, DQ with FMA and F16C: 16 lanes.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The CPU has AVX-512 F, BW, VL, DQ, and AVX2, FMA, F16C.
    #[inline(always)]
    pub unsafe fn new() -> Self {
        Avx512(())
    }
}

/// f32 to bf16 in the low half of each 32-bit lane, round to nearest even; NaN keeps its sign and gets a quiet bit.
#[inline(always)]
fn round_bf16(a: __m512) -> __m512i {
    // SAFETY: a token exists, so the instructions do.
    unsafe {
        let x = _mm512_castps_si512(a);
        let hi = _mm512_srli_epi32::<16>(x);
        let bias = _mm512_add_epi32(_mm512_and_si512(hi, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
        let r = _mm512_srli_epi32::<16>(_mm512_add_epi32(x, bias));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
        _mm512_mask_or_epi32(r, nan, hi, _mm512_set1_epi32(0x40))
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    const LEVEL: Level = Level::Avx512;
    type V = __m512;
    type I = __m512i;
    type M = __mmask16;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn fnma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn neg(self, a: __m512) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_xor_ps(a, _mm512_set1_ps(-0.0)) }
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_andnot_ps(_mm512_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn sqrt(self, a: __m512) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    fn copysign(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe {
            let s = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(s, a), _mm512_and_ps(s, b))
        }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn le(self, a: __m512, b: __m512) -> __mmask16 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, m: __mmask16, a: __m512, b: __m512) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_mask_blend_ps(m, b, a) }
    }
    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: a token exists, so the instructions do.
        unsafe {
            let h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            Avx2::new().sum(h)
        }
    }
    #[inline(always)]
    fn max_lane(self, a: __m512) -> f32 {
        // SAFETY: a token exists, so the instructions do.
        unsafe {
            let h = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            Avx2::new().max_lane(h)
        }
    }
    #[inline(always)]
    fn to_bits(self, a: __m512) -> __m512i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_castps_si512(a) }
    }
    #[inline(always)]
    fn of_bits(self, a: __m512i) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_castsi512_ps(a) }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn first_i(self, x: i32) -> __m512i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_zextsi128_si512(_mm_cvtsi32_si128(x)) }
    }
    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn and_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn or_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn xor_i(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    fn shl_i<const K: i32>(self, a: __m512i) -> __m512i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(K)) }
    }
    #[inline(always)]
    fn shr_i<const K: i32>(self, a: __m512i) -> __m512i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(K)) }
    }
    #[inline(always)]
    fn sra_i<const K: i32>(self, a: __m512i) -> __m512i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_sra_epi32(a, _mm_cvtsi32_si128(K)) }
    }
    #[inline(always)]
    fn shr_lanes_i(self, a: __m512i, k: __m512i) -> __m512i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_srlv_epi32(a, k) }
    }
    #[inline(always)]
    fn to_int(self, a: __m512) -> __m512i {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_cvtps_epi32(a) }
    }
    #[inline(always)]
    fn to_float(self, a: __m512i) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> __m512 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm512_maskz_loadu_ps(self.first(n), p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: __m512) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm512_storeu_ps(p, a) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, a: __m512, n: usize) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm512_mask_storeu_ps(p, self.first(n), a) }
    }
    #[inline(always)]
    unsafe fn load_i(self, p: *const i32) -> __m512i {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_i(self, p: *mut i32, a: __m512i) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm512_storeu_si512(p.cast(), a) }
    }
    #[inline(always)]
    unsafe fn load_4(self, p: *const f32) -> __m512 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm512_zextps128_ps512(_mm_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> __m512 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> __m512 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16_n(self, p: *const bf16, n: usize) -> __m512 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            let halves = _mm256_maskz_loadu_epi16(self.first(n), p.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }
    #[inline(always)]
    unsafe fn load_f16_n(self, p: *const f16, n: usize) -> __m512 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(self.first(n), p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> __m512 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> __m512 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_u4(self, p: *const u8) -> __m512 {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            let w = _mm_cvtepu8_epi16(_mm_loadl_epi64(p.cast()));
            let w = _mm_and_si128(_mm_or_si128(w, _mm_slli_epi16::<4>(w)), _mm_set1_epi16(0x0f0f));
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(w))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, a: __m512) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(round_bf16(a))) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16, a: __m512) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            _mm256_storeu_si256(
                p.cast(),
                _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a),
            )
        }
    }
    #[inline(always)]
    fn first(self, n: usize) -> __mmask16 {
        debug_assert!(n <= 16);
        ((1u32 << n.min(16)) - 1) as __mmask16
    }
    #[inline(always)]
    fn permute(self, a: __m512, index: __m512i) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { _mm512_permutexvar_ps(index, a) }
    }
    #[inline(always)]
    fn look_up(self, table: &[f32; 16], index: __m512i) -> __m512 {
        // SAFETY: a token exists, so the instructions do; the table holds a vector.
        unsafe { _mm512_permutexvar_ps(index, _mm512_loadu_ps(table.as_ptr())) }
    }
    #[inline(always)]
    fn fields<const BITS: usize>(self, words: __m512i) -> (__m512i, __m512i) {
        // Fields of 4 bits index a table as they are.
        let flip = if BITS == 4 { 0 } else { 0x8080_8080_u32 as i32 };
        let signed = self.xor_i(words, self.splat_i(flip));
        (signed, signed)
    }
    #[inline(always)]
    fn field<const BITS: usize, const J: usize>(self, fields: (__m512i, __m512i)) -> __m512 {
        // SAFETY: a token exists, so the instructions do.
        unsafe {
            if BITS == 4 {
                const ONE: f32 = (1u32 << 28) as f32;
                let table = _mm512_mul_ps(
                    _mm512_setr_ps(
                        -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0,
                        7.0,
                    ),
                    _mm512_set1_ps(ONE),
                );
                // The permutation looks at the low 4 bits of each index.
                let index = _mm512_srl_epi32(fields.0, _mm_cvtsi32_si128(4 * J as i32));
                return _mm512_permutexvar_ps(index, table);
            }
            let top = if J == 3 {
                _mm512_and_si512(fields.0, _mm512_set1_epi32(0xff00_0000_u32 as i32))
            } else {
                // Byte J of each word to its top, zeros below.
                let z = 0x80_u32;
                let base = z | z << 8 | z << 16;
                let at = |word: u32| (base | (word * 4 + J as u32) << 24) as i32;
                let lane = _mm_setr_epi32(at(0), at(1), at(2), at(3));
                _mm512_shuffle_epi8(fields.0, _mm512_broadcast_i32x4(lane))
            };
            _mm512_cvtepi32_ps(top)
        }
    }
    #[inline(always)]
    unsafe fn transpose(self, rows: *mut __m512) {
        // SAFETY: the caller vouches for 16 vectors; a token exists, so the instructions do.
        unsafe {
            let r = rows.cast::<[__m512; 16]>();
            let a = *r;
            let mut b = a;
            // 4x4 transpositions inside each 128-bit block of rows 4i..4i+4.
            for i in 0..4 {
                let (l0, h0) =
                    (_mm512_unpacklo_ps(a[4 * i], a[4 * i + 1]), _mm512_unpackhi_ps(a[4 * i], a[4 * i + 1]));
                let (l1, h1) = (
                    _mm512_unpacklo_ps(a[4 * i + 2], a[4 * i + 3]),
                    _mm512_unpackhi_ps(a[4 * i + 2], a[4 * i + 3]),
                );
                b[4 * i] = _mm512_shuffle_ps::<0x44>(l0, l1);
                b[4 * i + 1] = _mm512_shuffle_ps::<0xee>(l0, l1);
                b[4 * i + 2] = _mm512_shuffle_ps::<0x44>(h0, h1);
                b[4 * i + 3] = _mm512_shuffle_ps::<0xee>(h0, h1);
            }
            // Transposition of the 4x4 matrix of 128-bit blocks, for each column j of the blocks.
            for j in 0..4 {
                let (x, y) = (
                    _mm512_shuffle_f32x4::<0x44>(b[j], b[4 + j]),
                    _mm512_shuffle_f32x4::<0xee>(b[j], b[4 + j]),
                );
                let (z, w) = (
                    _mm512_shuffle_f32x4::<0x44>(b[8 + j], b[12 + j]),
                    _mm512_shuffle_f32x4::<0xee>(b[8 + j], b[12 + j]),
                );
                (*r)[j] = _mm512_shuffle_f32x4::<0x88>(x, z);
                (*r)[4 + j] = _mm512_shuffle_f32x4::<0xdd>(x, z);
                (*r)[8 + j] = _mm512_shuffle_f32x4::<0x88>(y, w);
                (*r)[12 + j] = _mm512_shuffle_f32x4::<0xdd>(y, w);
            }
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, a: __m512i) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(a)) }
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
