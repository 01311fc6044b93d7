//! Grouped integers times activations rounded to bytes: dot products of bytes, exact in i32.

use super::super::gemm::Operand;
use super::super::isa::{Isa, Level};
use super::super::scratch::Scratch;
use super::super::simd::{Kernel, MAX_LANES, Simd};
use super::grouped::{group_of_lane, spread};
use super::x::{Layout, X};
use super::{Dots, GroupedDots, Row};
use crate::quant::int::Int;

/// The instructions that multiply bytes.
pub trait Bytes: Copy + Sync {
    /// `acc + sum u x` over the four bytes of each lane of both pairs, `u` unsigned and below 16.
    fn dot_small<S: Simd>(self, s: S, acc: S::I, u: [S::I; 2], x: [S::I; 2]) -> S::I;
    /// `acc + sum (u - LESS) x` over the four bytes of each lane, `u` unsigned.
    fn dot<S: Simd>(self, s: S, acc: S::I, u: S::I, x: S::I) -> S::I;
    /// What [`dot`](Self::dot) takes off each `u`: 128 or 0.
    const LESS: i32;
    /// Starts a kernel that uses these instructions.
    fn start<K: Kernel>(self, isa: Isa, kernel: K) -> K::Output;
}

/// One stored tensor of fields of `BITS` bits, see [`GroupedDots`]; `x` is rounded to bytes.
///
/// Stored fields are unsigned: a sum of products starts at `-2^(BITS - 1) sum x`, which is exact. Vectors of words that
/// share a scale of the weights and one of `x` are summed as integers first, see [`Layout::vectors`].
#[derive(Clone, Copy, Debug)]
pub struct Int8Dots<const BITS: usize, B>(pub GroupedDots<Int<BITS>>, pub B);

/// Bytes that a row is asked for ahead of its use.
const AHEAD: usize = 1024;

impl<const BITS: usize, B: Bytes> Int8Dots<BITS, B> {
    /// What is to be taken off a stored field, and is not by the instructions.
    const HALF: i32 = (1 << (BITS - 1)) - if BITS == 8 { B::LESS } else { 0 };

    /// Whether so many instructions go by for a line that a core does not look far enough ahead by itself.
    const fn asks<S: Simd>() -> bool {
        BITS == 4 || B::LESS != 0 || S::LANES < MAX_LANES
    }

    /// The product of a vector of words with the bytes that meet it, added to `acc`.
    ///
    /// # Safety
    /// The bytes exist.
    #[inline(always)]
    unsafe fn vector<S: Simd>(&self, s: S, acc: S::I, w: S::I, codes: *const i32) -> S::I {
        // SAFETY: as the caller vouches.
        unsafe {
            if const { BITS == 4 } {
                let low = s.splat_i(0x0f0f_0f0f);
                let halves = [s.and_i(w, low), s.and_i(s.shr_i::<4>(w), low)];
                self.1.dot_small(s, acc, halves, [s.load_i(codes), s.load_i(codes.add(S::LANES))])
            } else {
                self.1.dot(s, acc, w, s.load_i(codes))
            }
        }
    }

    /// Scales of units: those of a row times those of a row of `x`.
    ///
    /// # Safety
    /// The row exists; `scales` are its scales unless groups are one unit long; `to` holds a value for each unit, padded to
    /// whole vectors and one more.
    #[inline(always)]
    unsafe fn unit_scales<S: Simd>(
        &self,
        s: S,
        row: usize,
        each: usize,
        scales: *const f32,
        x: &X,
        i: usize,
        to: *mut f32,
    ) {
        let (units, of_x) = (x.units(), x.scales(i));
        // SAFETY: as the caller vouches; the memory of both is padded to whole vectors.
        unsafe {
            if each == 1 {
                let rows = &self.0.0;
                for u in (0..units).step_by(S::LANES) {
                    let n = S::LANES.min(units - u);
                    let v = s.mul(rows.scales.load(s, row, u, n), s.splat(rows.factor));
                    s.store(to.add(u), s.mul(v, s.load(of_x.add(u))));
                }
                return;
            }
            for (g, first) in (0..units).step_by(each).enumerate() {
                let scale = s.splat(*scales.add(g));
                for u in (first..units.min(first + each)).step_by(S::LANES) {
                    s.store(to.add(u), s.mul(scale, s.load(of_x.add(u))));
                }
            }
        }
    }

    /// Sums of rows whose units are `N` vectors of words, each with one scale.
    ///
    /// # Safety
    /// As [`dots`](Dots::dots); `scales` are those of the units, `stride` from row of `x` to row of `x`.
    #[inline(always)]
    unsafe fn units<S: Simd, const R: usize, const M: usize, const N: usize>(
        &self,
        s: S,
        rows: &[*const i32; R],
        x: &X,
        m0: usize,
        scales: *const f32,
        stride: usize,
    ) -> [[S::V; M]; R] {
        // An FMA takes 4 cycles; more sums than one are chains of their own.
        let chains = if const { R * M == 1 } { 2 } else { 1 };
        let words = (x.k * BITS).div_ceil(32);
        let mut acc = [[[s.zero(); M]; R]; 2];
        // SAFETY: as the caller vouches; `x` is padded to whole units.
        unsafe {
            let mut u = 0;
            while (u + chains) * N * S::LANES <= words {
                for (c, acc) in acc.iter_mut().enumerate().take(chains) {
                    let v = (u + c) * N * S::LANES;
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let at = rows[r].wrapping_add(v);
                        let mut w = [s.splat_i(0); N];
                        for (n, w) in w.iter_mut().enumerate() {
                            let at = at.add(n * S::LANES);
                            if const { Self::asks::<S>() } && ((c * N + n) * S::LANES).is_multiple_of(16) {
                                s.prefetch(at.wrapping_byte_add(AHEAD));
                            }
                            *w = s.load_i(at);
                        }
                        for (i, acc) in acc.iter_mut().enumerate() {
                            let codes = x.codes(m0 + i).add(v * BYTES[BITS / 8]);
                            let mut dot = s.first_i(*x.starts(m0 + i).add(u + c));
                            for (n, w) in w.iter().enumerate() {
                                dot = self.vector(s, dot, *w, codes.add(n * S::LANES * BYTES[BITS / 8]));
                            }
                            let scale = s.splat(*scales.add((r * M + i) * stride + u + c));
                            *acc = s.fma(s.to_float(dot), scale, *acc);
                        }
                    }
                }
                u += chains;
            }
            let mut v = u * N * S::LANES;
            while v < words {
                let u = v / (N * S::LANES);
                let starts = v.is_multiple_of(N * S::LANES);
                for (r, acc) in acc[0].iter_mut().enumerate() {
                    let w = load_words(s, rows[r].add(v), words - v);
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let start = if starts { *x.starts(m0 + i).add(u) } else { 0 };
                        let codes = x.codes(m0 + i).add(v * BYTES[BITS / 8]);
                        let dot = self.vector(s, s.first_i(start), w, codes);
                        let scale = s.splat(*scales.add((r * M + i) * stride + u));
                        *acc = s.fma(s.to_float(dot), scale, *acc);
                    }
                }
                v += S::LANES;
            }
        }
        let mut out = acc[0];
        for (out, more) in out.iter_mut().zip(&acc[1]) {
            for (out, more) in out.iter_mut().zip(more) {
                *out = s.add(*out, *more);
            }
        }
        out
    }

    /// Sums of rows with several groups in a vector of words.
    ///
    /// # Safety
    /// As [`dots`](Dots::dots); `scales` are those of the rows, `stride` from row to row.
    #[inline(always)]
    unsafe fn small_groups<S: Simd, const R: usize, const M: usize>(
        &self,
        s: S,
        rows: &[*const i32; R],
        x: &X,
        m0: usize,
        scales: *const f32,
        stride: usize,
    ) -> [[S::V; M]; R] {
        let words = (x.k * BITS).div_ceil(32);
        let group_words = self.0.group_words(x.k, S::LANES);
        // A power of two, see `fits`.
        let (group_shift, few) = (group_words.trailing_zeros(), 4 * group_words >= S::LANES);
        let index = group_of_lane(s, group_words);
        let mut acc = [[s.zero(); M]; R];
        // SAFETY: as the caller vouches; `x` is padded to whole vectors of words.
        unsafe {
            for v in (0..words).step_by(S::LANES) {
                for (r, acc) in acc.iter_mut().enumerate() {
                    let at = rows[r].add(v);
                    s.prefetch(at.wrapping_byte_add(AHEAD));
                    let w = load_words(s, at, words - v);
                    let scale = spread(s, scales.add(r * stride + (v >> group_shift)), index, few);
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let start = s.load_i(x.lane_starts(m0 + i).add(v));
                        let dot = self.vector(s, start, w, x.codes(m0 + i).add(v * BYTES[BITS / 8]));
                        let scale = s.mul(scale, s.splat(*x.scales(m0 + i).add(v / S::LANES)));
                        *acc = s.fma(s.to_float(dot), scale, *acc);
                    }
                }
            }
        }
        acc
    }
}

/// Words of bytes that meet a word, by `BITS / 8`.
const BYTES: [usize; 2] = [2, 1];

/// Words `0..min(LANES, left)`, zeros after them.
///
/// # Safety
/// `left` words exist.
#[inline(always)]
unsafe fn load_words<S: Simd>(s: S, at: *const i32, left: usize) -> S::I {
    // SAFETY: as the caller vouches.
    unsafe { if left >= S::LANES { s.load_i(at) } else { s.to_bits(s.load_n(at.cast(), left)) } }
}

impl<const BITS: usize, B: Bytes> Dots for Int8Dots<BITS, B> {
    fn layout(&self, k: usize, lanes: usize) -> Layout {
        let group_words = self.0.group_words(k, lanes);
        let pairs = group_words >= lanes && (group_words / lanes).is_multiple_of(2);
        Layout {
            vectors: if pairs { 2 } else { 1 },
            half: Self::HALF,
            small: group_words < lanes,
            ..self.0.layout(k, lanes)
        }
    }

    fn row_bytes(&self, k: usize) -> usize {
        self.0.row_bytes(k)
    }

    #[inline(always)]
    fn work(&self, rows: usize, k: usize, lanes: usize) -> usize {
        // Scales of units, for each of two rows and four of `x`, or of four rows and one.
        self.0.work(rows, k, lanes) + 8 * unit_stride::<BITS>(k, lanes)
    }

    unsafe fn prepare(&self, isa: Isa, x: Operand, m: usize, k: usize, scratch: &mut Scratch) -> X {
        // SAFETY: as the caller vouches.
        unsafe { X::prepare_bytes(isa, x, m, k, self.layout(k, isa.lanes()), scratch) }
    }

    fn start<K: Kernel>(&self, isa: Isa, kernel: K) -> K::Output {
        self.1.start(isa, kernel)
    }

    #[inline(always)]
    unsafe fn dots<S: Simd, const R: usize, const M: usize>(
        s: S,
        rows: &[Row<'_, Self>; R],
        x: &X,
        m0: usize,
        work: *mut f32,
    ) -> [[f32; M]; R] {
        let (first, int) = (rows[0].of, &rows[0].of.0);
        let of_int = rows.map(|row| Row { of: &row.of.0, row: row.row });
        let at = of_int.map(|row| row.of.0.packed.wrapping_add(row.row * row.of.0.words));
        let groups = int.groups(x.k);
        let scale_len = int.scale_len(x.k, S::LANES);
        let group_words = int.group_words(x.k, S::LANES);
        let small = group_words < S::LANES;
        let vectors = group_words / S::LANES;
        let pairs = vectors.is_multiple_of(2);
        let each = if pairs { vectors / 2 } else { vectors };
        // SAFETY: rows, scales and `x` exist as the caller vouches; `work` says how much of it there is.
        let acc = unsafe {
            if small || each > 1 || int.0.has_zeros() {
                for (r, row) in of_int.iter().enumerate() {
                    row.of.scales(s, row.row, groups, 1.0, work.add(r * scale_len));
                }
            }
            if small {
                first.small_groups::<S, R, M>(s, &at, x, m0, work, scale_len)
            } else {
                let (units, stride) =
                    (work.add(int.work(R, x.k, S::LANES)), unit_stride::<BITS>(x.k, S::LANES));
                for (r, row) in rows.iter().enumerate() {
                    for i in 0..M {
                        let to = units.add((r * M + i) * stride);
                        row.of.unit_scales(s, row.row, each, work.add(r * scale_len), x, m0 + i, to);
                    }
                }
                if pairs {
                    first.units::<S, R, M, 2>(s, &at, x, m0, units, stride)
                } else {
                    first.units::<S, R, M, 1>(s, &at, x, m0, units, stride)
                }
            }
        };
        let mut out = [[0.0; M]; R];
        for r in 0..R {
            for i in 0..M {
                out[r][i] = s.sum(acc[r][i]);
            }
        }
        // SAFETY: as above; the scales were written above.
        unsafe { GroupedDots::less_zeros(s, &of_int, x, m0, 1.0, work, &mut out) };
        out
    }
}

/// Scales of the units of a row, which are vectors of words at least, in whole vectors and one more.
const fn unit_stride<const BITS: usize>(k: usize, lanes: usize) -> usize {
    (k * BITS).div_ceil(32 * lanes).next_multiple_of(lanes) + lanes
}

/// What every level has: byte multiplications of AVX2 and AVX-512 BW, plain integers elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

/// `vpdpbusd`: AVX512_VNNI at level AVX-512, AVX-VNNI at level AVX2.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Vnni(Isa);

#[cfg(target_arch = "x86_64")]
impl Vnni {
    /// The instruction, where the machine has it at this level.
    pub fn of(isa: Isa) -> Option<Vnni> {
        (isa.vnni() && matches!(isa.level(), Level::Avx2 | Level::Avx512)).then_some(Vnni(isa))
    }
}

/// `sum f(u) x` over the bytes of each lane, by the lane.
#[inline(always)]
fn by_lane<S: Simd>(s: S, u: S::I, x: S::I, less: i32) -> S::I {
    let (mut a, mut b) = ([0i32; MAX_LANES], [0i32; MAX_LANES]);
    // SAFETY: MAX_LANES integers each.
    unsafe {
        s.store_i(a.as_mut_ptr(), u);
        s.store_i(b.as_mut_ptr(), x);
    }
    let mut out = [0i32; MAX_LANES];
    for ((out, a), b) in out.iter_mut().zip(a).zip(b).take(S::LANES) {
        for byte in 0..4 {
            *out += ((a >> (8 * byte) & 255) - less) * i32::from((b >> (8 * byte)) as i8);
        }
    }
    // SAFETY: as above.
    unsafe { s.load_i(out.as_ptr()) }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// The same register under its other name.
    ///
    /// # Safety
    /// `A` and `B` are the same type.
    #[inline(always)]
    pub unsafe fn same<A: Copy, B: Copy>(a: A) -> B {
        // SAFETY: as the caller vouches.
        unsafe { std::mem::transmute_copy(&a) }
    }

    /// Pairs of bytes below 16 and signed bytes cannot leave i16: 4 * 15 * 127.
    #[inline(always)]
    pub unsafe fn small_256(u: [__m256i; 2], x: [__m256i; 2]) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe {
            let pairs = _mm256_add_epi16(_mm256_maddubs_epi16(u[0], x[0]), _mm256_maddubs_epi16(u[1], x[1]));
            _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
        }
    }

    #[inline(always)]
    pub unsafe fn small_512(u: [__m512i; 2], x: [__m512i; 2]) -> __m512i {
        // SAFETY: the caller has AVX-512 BW.
        unsafe {
            let pairs = _mm512_add_epi16(_mm512_maddubs_epi16(u[0], x[0]), _mm512_maddubs_epi16(u[1], x[1]));
            _mm512_madd_epi16(pairs, _mm512_set1_epi16(1))
        }
    }

    /// `|w|` times `x` with the sign of `w`: pairs of 128 * 127 fit in i16, those of unsigned weights would not.
    #[inline(always)]
    pub unsafe fn signed_256(u: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller has AVX2.
        unsafe {
            let w = _mm256_xor_si256(u, _mm256_set1_epi8(i8::MIN));
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
            _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
        }
    }

    #[inline(always)]
    pub unsafe fn signed_512(u: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the caller has AVX-512 BW.
        unsafe {
            let w = _mm512_xor_si512(u, _mm512_set1_epi8(i8::MIN));
            let negative = _mm512_movepi8_mask(w);
            let x = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
            let pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), x);
            _mm512_madd_epi16(pairs, _mm512_set1_epi16(1))
        }
    }
}

impl Bytes for Plain {
    const LESS: i32 = 128;

    #[inline(always)]
    fn dot_small<S: Simd>(self, s: S, acc: S::I, u: [S::I; 2], x: [S::I; 2]) -> S::I {
        let sum = match S::LEVEL {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a token of this level exists, and its I is this register.
            Level::Avx2 => unsafe {
                x86::same(x86::small_256(u.map(|a| x86::same(a)), x.map(|a| x86::same(a))))
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx512 => unsafe {
                x86::same(x86::small_512(u.map(|a| x86::same(a)), x.map(|a| x86::same(a))))
            },
            _ => s.add_i(by_lane(s, u[0], x[0], 0), by_lane(s, u[1], x[1], 0)),
        };
        s.add_i(acc, sum)
    }

    #[inline(always)]
    fn dot<S: Simd>(self, s: S, acc: S::I, u: S::I, x: S::I) -> S::I {
        let sum = match S::LEVEL {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a token of this level exists, and its I is this register.
            Level::Avx2 => unsafe { x86::same(x86::signed_256(x86::same(u), x86::same(x))) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx512 => unsafe { x86::same(x86::signed_512(x86::same(u), x86::same(x))) },
            _ => by_lane(s, u, x, Self::LESS),
        };
        s.add_i(acc, sum)
    }

    #[inline(always)]
    fn start<K: Kernel>(self, isa: Isa, kernel: K) -> K::Output {
        isa.run(kernel)
    }
}

#[cfg(target_arch = "x86_64")]
impl Bytes for Vnni {
    const LESS: i32 = 0;

    #[inline(always)]
    fn dot_small<S: Simd>(self, s: S, acc: S::I, u: [S::I; 2], x: [S::I; 2]) -> S::I {
        let acc = busd(s, acc, u[0], x[0]);
        busd(s, acc, u[1], x[1])
    }

    #[inline(always)]
    fn dot<S: Simd>(self, s: S, acc: S::I, u: S::I, x: S::I) -> S::I {
        busd(s, acc, u, x)
    }

    fn start<K: Kernel>(self, _: Isa, kernel: K) -> K::Output {
        use super::super::simd::{Avx2, Avx512};

        #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
        fn avx2<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: the features are enabled here.
            kernel.run(unsafe { Avx2::new() })
        }
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
        fn avx512<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: the features are enabled here.
            kernel.run(unsafe { Avx512::new() })
        }
        // SAFETY: `of` has checked that this machine has the level and the extension.
        unsafe {
            match self.0.level() {
                Level::Avx2 => avx2(kernel),
                _ => avx512(kernel),
            }
        }
    }
}

/// `acc + sum u x` over the four bytes of each lane.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn busd<S: Simd>(s: S, acc: S::I, u: S::I, x: S::I) -> S::I {
    use std::arch::x86_64::{_mm256_dpbusd_avx_epi32, _mm512_dpbusd_epi32};
    match S::LEVEL {
        // SAFETY: `Vnni` starts kernels with the extension, and the level's I is this register.
        Level::Avx2 => unsafe {
            x86::same(_mm256_dpbusd_avx_epi32(x86::same(acc), x86::same(u), x86::same(x)))
        },
        // SAFETY: as above.
        Level::Avx512 => unsafe {
            x86::same(_mm512_dpbusd_epi32(x86::same(acc), x86::same(u), x86::same(x)))
        },
        _ => s.add_i(acc, by_lane(s, u, x, 0)),
    }
}
