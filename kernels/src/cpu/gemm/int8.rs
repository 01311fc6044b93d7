//! Integer products for weights stored as grouped integers: activations are rounded to 8 bits, one scale per row and
//! group, four products per word (VNNI, or `pmaddubsw` on AVX2).
//!
//! With `w = (u - z) s`, `u` the stored field, and `x ~ q t`: `sum w x = s t (sum u q - z sum q)`, exact in i32 within a
//! group of at most 128. VNNI takes `u` as unsigned bytes. Without it the bytes are signed, `|u|` multiplies `q` with the
//! sign of `u`, and a pair of products is at most 2 * 128 * 127 < 2^15, so nothing saturates.

use super::super::isa::{Isa, Level};
use super::super::pool::Pool;
use super::super::simd::Simd;
use super::micro::Dot;
use super::{Arithmetic, GemmArgs, KC, NV, Operand, Part, X_STRIDE, drive, epilogue};

/// Values of `k` that share a scale of `x`, at most: what i32 sums and f32 corrections hold exactly.
const GROUP: usize = 128;
/// Groups in one block of `k`, at most.
const GROUPS: usize = KC * 4 / 32;
/// Words per packed row of `x` that hold (scale, sum of the integers) of each group.
const NOTES: usize = 2 * GROUPS;

/// Rows of weights stored as integers of at most 8 bits with a scale, and a value that stands for zero, per group.
pub trait Int8Source: Sync {
    /// Weights along `k` that share a scale; the whole row counts as a multiple of everything.
    fn group(&self) -> usize;

    /// Decodes `k` columns from `col`, a multiple of 128, of rows `row..row + rows`: the bytes of four columns, lowest
    /// first, go to word `to[(i / 4) * stride + r]`, zeros in bytes past `k`; the scale and the zero value of each `group`
    /// columns go to `scales[g * stride + r]` and `zeros[g * stride + r]`. `signed`: bytes and zero values are moved so
    /// that bytes are signed.
    ///
    /// # Safety
    /// The rows and columns exist; the destinations are writable at those places.
    unsafe fn pack_int8(&self, isa: Isa, to: &Int8Panel, row: usize, rows: usize, col: usize, k: usize);
}

/// Where [`Int8Source::pack_int8`] writes.
#[derive(Clone, Copy, Debug)]
pub struct Int8Panel {
    /// Words of four bytes.
    pub words: *mut u32,
    /// Scales.
    pub scales: *mut f32,
    /// Values that stand for zero.
    pub zeros: *mut f32,
    /// Distance from one word, or group, to the next.
    pub stride: usize,
    /// Columns per scale.
    pub group: usize,
    /// Whether bytes are signed.
    pub signed: bool,
}

/// As [`gemm`](super::gemm), with `x` rounded to 8-bit integers. False, and nothing done, unless all weights are integers
/// whose groups are 32, 64 or multiples of 128, and `x` is stored.
///
/// # Safety
/// As [`gemm`](super::gemm).
pub unsafe fn gemm_int8(isa: Isa, pool: &Pool, args: &GemmArgs) -> bool {
    if args.rows.is_some() {
        return false;
    }
    let mut group = GROUP;
    for part in args.parts {
        match part.source.as_int8() {
            Some(w) if w.group() % GROUP == 0 => {}
            Some(w) if matches!(w.group(), 32 | 64) => group = group.min(w.group()),
            _ => return false,
        }
    }
    if isa.vnni() {
        drive(isa, pool, args, Int8::<true> { group }, |isa, job| isa.run_vnni(job));
    } else {
        drive(isa, pool, args, Int8::<false> { group }, |isa, job| isa.run(job));
    }
    true
}

/// `VNNI`: only run where `vpdpbusd` is there.
#[derive(Clone, Copy)]
struct Int8<const VNNI: bool> {
    group: usize,
}

impl<const VNNI: bool> Arithmetic for Int8<VNNI> {
    const PACK: usize = 4;

    fn mr(self, level: Level) -> usize {
        match level {
            // Magnitudes, ones and intermediate sums take registers too.
            Level::Avx2 if !VNNI => 4,
            Level::Avx512 if !VNNI => 12,
            _ => super::mr(level),
        }
    }

    fn panel_len(self, kc: usize, nr: usize) -> usize {
        (kc + 2 * (kc * 4).div_ceil(self.group)) * nr
    }

    fn x_len(self, rows: usize) -> usize {
        rows * (X_STRIDE + NOTES)
    }

    #[inline(always)]
    unsafe fn pack_x<S: Simd>(
        self,
        s: S,
        args: &GemmArgs,
        row: usize,
        rows: usize,
        w0: usize,
        words: usize,
        to: *mut u32,
    ) {
        let n = (4 * words).min(args.k - 4 * w0);
        // SAFETY: the block has room for `rows` rows and their notes.
        unsafe {
            let notes = to.add(rows * X_STRIDE).cast::<f32>();
            for i in 0..rows {
                let bytes = to.add(i * X_STRIDE).cast::<i8>();
                for g in 0..n.div_ceil(self.group) {
                    let at = g * self.group;
                    let len = self.group.min(n - at);
                    let (scale, sum) = round_group(s, &args.x, row + i, 4 * w0 + at, len, bytes.add(at));
                    notes.add(i * NOTES + 2 * g).write(scale);
                    notes.add(i * NOTES + 2 * g + 1).write(sum);
                }
                for j in n..n.next_multiple_of(4) {
                    bytes.add(j).write(0);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn pack_w(
        self,
        isa: Isa,
        part: &Part,
        k: usize,
        row: usize,
        rows: usize,
        w0: usize,
        words: usize,
        to: *mut u32,
        lane: usize,
        nr: usize,
    ) {
        if let Some(source) = part.source.as_int8() {
            let n = (4 * words).min(k - 4 * w0);
            // SAFETY: as the caller vouches: a panel holds words, scales and zeros, in this order.
            unsafe {
                let scales = to.add(words * nr + lane).cast::<f32>();
                let panel = Int8Panel {
                    words: to.add(lane),
                    scales,
                    zeros: scales.add((4 * words).div_ceil(self.group) * nr),
                    stride: nr,
                    group: self.group,
                    signed: !VNNI,
                };
                source.pack_int8(isa, &panel, row, rows, 4 * w0, n);
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd>(
        self,
        s: S,
        block: usize,
        i: usize,
        rows: usize,
        words: usize,
        x: *const u32,
        w: *const u32,
        c: *mut f32,
        first: bool,
    ) {
        // SAFETY: as the caller vouches.
        unsafe {
            let notes = x.add(block * X_STRIDE + i * NOTES).cast::<f32>();
            let x = x.add(i * X_STRIDE);
            let mut done = 0;
            while done < rows {
                let (xi, ni) = (x.add(done * X_STRIDE), notes.add(done * NOTES));
                let ci = c.add(done * NV * S::LANES);
                done += match (S::LEVEL, rows - done) {
                    (Level::Avx512, 14) if VNNI => self.fixed::<S, 14>(s, words, xi, ni, w, ci, first),
                    (Level::Avx512, 12..) => self.fixed::<S, 12>(s, words, xi, ni, w, ci, first),
                    (Level::Avx512, 8..) => self.fixed::<S, 8>(s, words, xi, ni, w, ci, first),
                    (Level::Avx2, 6) if VNNI => self.fixed::<S, 6>(s, words, xi, ni, w, ci, first),
                    (_, 4..) => self.fixed::<S, 4>(s, words, xi, ni, w, ci, first),
                    (_, 2..) => self.fixed::<S, 2>(s, words, xi, ni, w, ci, first),
                    _ => self.fixed::<S, 1>(s, words, xi, ni, w, ci, first),
                };
            }
        }
    }
}

impl<const VNNI: bool> Int8<VNNI> {
    /// A tile of `MR` rows; returns `MR`.
    ///
    /// # Safety
    /// As [`Arithmetic::tile`], with `x`, `notes` and `c` at the first of the rows.
    #[inline(always)]
    unsafe fn fixed<S: Simd, const MR: usize>(
        self,
        s: S,
        words: usize,
        x: *const u32,
        notes: *const f32,
        w: *const u32,
        c: *mut f32,
        first: bool,
    ) -> usize {
        let nr = NV * S::LANES;
        let per_group = self.group / 4;
        let groups = words.div_ceil(per_group);
        let (x, w) = (x.cast::<f32>(), w.cast::<f32>());
        // SAFETY: as the caller vouches.
        unsafe {
            let scales = w.add(words * nr);
            let zeros = scales.add((4 * words).div_ceil(self.group) * nr);
            if first {
                for i in 0..MR * NV {
                    s.store(c.add(i * S::LANES), s.zero());
                }
            }
            for g in 0..groups {
                let mut acc = [[s.zero(); NV]; MR];
                for p in g * per_group..words.min((g + 1) * per_group) {
                    let at = w.add(p * nr);
                    let panel = [s.load(at), s.load(at.add(S::LANES))];
                    for (i, row) in acc.iter_mut().enumerate() {
                        let b = s.splat(*x.add(i * X_STRIDE + p));
                        for (a, q) in row.iter_mut().zip(panel) {
                            *a = self.dot(s, *a, b, q);
                        }
                    }
                }
                for (i, row) in acc.iter().enumerate() {
                    let note = notes.add(i * NOTES + 2 * g);
                    let (t, sum) = (s.splat(*note), s.splat(*note.add(1)));
                    for (v, a) in row.iter().enumerate() {
                        let at = c.add((i * NV + v) * S::LANES);
                        let lane = g * nr + v * S::LANES;
                        let whole = s.fnma(s.load(zeros.add(lane)), sum, s.to_float(s.to_bits(*a)));
                        s.store(at, s.fma(whole, s.mul(s.load(scales.add(lane)), t), s.load(at)));
                    }
                }
            }
        }
        MR
    }
}

/// The lanes of `acc` are the bits of i32 sums; `w` holds unsigned bytes with VNNI, signed ones without, `x` signed ones.
impl<S: Simd, const VNNI: bool> Dot<S> for Int8<VNNI> {
    #[inline(always)]
    fn dot(self, s: S, acc: S::V, x: S::V, w: S::V) -> S::V {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::*;
            // SAFETY: a vector is `__m512` or `__m256` at these levels; `VNNI` stands for the feature.
            unsafe {
                if S::LEVEL == Level::Avx512 {
                    let [acc, x, w]: [__m512i; 3] = [
                        std::mem::transmute_copy(&acc),
                        std::mem::transmute_copy(&x),
                        std::mem::transmute_copy(&w),
                    ];
                    let r = if VNNI {
                        _mm512_dpbusd_epi32(acc, w, x)
                    } else {
                        let y = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
                        let y = _mm512_maddubs_epi16(_mm512_abs_epi8(w), y);
                        _mm512_add_epi32(acc, _mm512_madd_epi16(y, _mm512_set1_epi16(1)))
                    };
                    return std::mem::transmute_copy(&r);
                }
                if S::LEVEL == Level::Avx2 {
                    let [acc, x, w]: [__m256i; 3] = [
                        std::mem::transmute_copy(&acc),
                        std::mem::transmute_copy(&x),
                        std::mem::transmute_copy(&w),
                    ];
                    let r = if VNNI {
                        _mm256_dpbusd_avx_epi32(acc, w, x)
                    } else {
                        let y = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
                        _mm256_add_epi32(acc, _mm256_madd_epi16(y, _mm256_set1_epi16(1)))
                    };
                    return std::mem::transmute_copy(&r);
                }
            }
        }
        let mut sum = s.to_bits(acc);
        for byte in 0..4 {
            sum = s.add_i(sum, mul_bytes(s, byte, s.to_bits(x), s.to_bits(w)));
        }
        s.of_bits(sum)
    }
}

/// Products of signed byte `byte` of each lane.
#[inline(always)]
fn mul_bytes<S: Simd>(s: S, byte: usize, x: S::I, w: S::I) -> S::I {
    let get = |v: S::I| {
        let high = match byte {
            0 => s.shl_i::<24>(v),
            1 => s.shl_i::<16>(v),
            2 => s.shl_i::<8>(v),
            _ => v,
        };
        // Alone in the high byte it is the value times 2^24, exact in f32, which has the multiplication.
        let f = s.to_float(s.and_i(high, s.splat_i(-16_777_216)));
        s.mul(f, s.splat(1.0 / 16_777_216.0))
    };
    s.to_int(s.mul(get(x), get(w)))
}

/// Rounds `n` values of `x` from (`row`, `col`) to integers of magnitude at most 127; returns their scale and sum.
///
/// # Safety
/// The values exist; `to` is writable for `n` bytes; `n <= GROUP`.
#[inline(always)]
unsafe fn round_group<S: Simd>(
    s: S,
    x: &Operand,
    row: usize,
    col: usize,
    n: usize,
    to: *mut i8,
) -> (f32, f32) {
    let mut values = [0.0f32; GROUP];
    let mut bytes = [0i8; GROUP];
    let (mut top, mut sum) = (s.zero(), s.zero());
    // SAFETY: as the caller vouches; the arrays hold whole vectors up to `GROUP`.
    unsafe {
        for j in (0..n).step_by(S::LANES) {
            let v = epilogue::load_any(s, x.dtype, x.ptr, row * x.stride + col + j, S::LANES.min(n - j));
            top = s.max(top, s.abs(v));
            s.store(values.as_mut_ptr().add(j), v);
        }
        let top = s.max_lane(top);
        let inverse = s.splat(if top > 0.0 { 127.0 / top } else { 0.0 });
        for j in (0..n).step_by(S::LANES) {
            let q = s.to_int(s.mul(s.load(values.as_ptr().add(j)), inverse));
            sum = s.add(sum, s.to_float(q));
            s.store_i8(bytes.as_mut_ptr().add(j), q);
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, n);
        // At most 128 * 127: exact.
        (top / 127.0, s.sum(sum))
    }
}
