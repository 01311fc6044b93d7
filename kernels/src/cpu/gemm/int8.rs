//! Integer products for weights stored as grouped integers: activations are rounded to 8 bits, one scale per row and
//! group, four products per word (VNNI, or `pmaddubsw` on AVX2).
//!
//! With `w = (u - z) s`, `u` the stored field, and `x ~ q t`: `sum w x = s t (sum u q - z sum q)`, exact in i32 within a
//! group of at most 128. VNNI takes `u` as unsigned bytes. Without it the bytes are signed, `|u|` multiplies `q` with the
//! sign of `u`, and a pair of products is at most 2 * 128 * 127 < 2^15, so nothing saturates.

use super::super::isa::{Isa, Level};
use super::super::pool::Pool;
use super::super::simd::{Kernel, MAX_LANES, Simd};
use super::micro::Dot;
use super::{Arithmetic, GemmArgs, KC, NV, Operand, Part, X_STRIDE, XBlock, drive, epilogue};

/// Values of `k` that share a scale of `x`, at most: what i32 sums and f32 corrections hold exactly.
const GROUP: usize = 128;
/// Groups in one block of `k`, at most.
const GROUPS: usize = KC * 4 / 32;

/// What goes with a group of a packed row of `x`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Note {
    /// What the integers are multiplied with.
    scale: f32,
    /// Sum of the integers; where one value stands for zero in all weights, what it adds to the products, negated.
    sum: i32,
}

/// The notes of row `i` of a block.
///
/// # Safety
/// The row exists.
#[inline(always)]
unsafe fn notes(x: XBlock, i: usize) -> *mut Note {
    // SAFETY: as the caller vouches: they lie behind the rows.
    unsafe { x.row(x.rows).cast::<Note>().add(i * GROUPS) }
}

/// Words per packed row of `x` that hold the notes of its groups.
const NOTES: usize = GROUPS * size_of::<Note>() / 4;

/// Rows of weights stored as integers of at most 8 bits with a scale, and a value that stands for zero, per group.
pub trait Int8Source: Sync {
    /// Weights along `k` that share a scale; the whole row counts as a multiple of everything.
    fn group(&self) -> usize;

    /// The value that stands for zero in every group, where there is one such, as `pack_int8` counts it.
    fn zero(&self, signed: bool) -> Option<i32>;

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
    /// Values that stand for zero; not wanted where all groups share one.
    pub zeros: Option<*mut f32>,
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
    let mut zeros = args.parts.iter().map(|part| part.source.as_int8().and_then(|w| w.zero(!isa.vnni())));
    let zero = zeros.next().flatten().filter(|&zero| zeros.all(|other| other == Some(zero)));
    for part in args.parts {
        match part.source.as_int8() {
            Some(w) if w.group() % GROUP == 0 => {}
            Some(w) if matches!(w.group(), 32 | 64) => group = group.min(w.group()),
            _ => return false,
        }
    }
    if isa.vnni() {
        drive(isa, pool, args, Int8::<true> { group, zero });
    } else {
        drive(isa, pool, args, Int8::<false> { group, zero });
    }
    true
}

/// `VNNI`: only run where `vpdpbusd` is there.
#[derive(Clone, Copy)]
struct Int8<const VNNI: bool> {
    group: usize,
    /// What stands for zero in all weights, if that is one value.
    zero: Option<i32>,
}

impl<const VNNI: bool> Arithmetic for Int8<VNNI> {
    const PACK: usize = 4;

    fn run<K: Kernel>(self, isa: Isa, kernel: K) -> K::Output {
        if VNNI { isa.run_vnni(kernel) } else { isa.run(kernel) }
    }

    fn packs_ahead(self, _: &GemmArgs) -> bool {
        true
    }

    fn mr(self, level: Level) -> usize {
        match level {
            Level::Avx512 => 2 * HELD,
            // Magnitudes, ones and intermediate sums take registers too.
            Level::Avx2 if !VNNI => 4,
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
        to: XBlock,
        first: usize,
    ) {
        let n = (4 * words).min(args.k - 4 * w0);
        // SAFETY: the block has room for its rows and their notes.
        unsafe {
            for i in 0..rows {
                let (bytes, notes) = (to.row(first + i).cast::<i8>(), notes(to, first + i));
                for g in 0..n.div_ceil(self.group) {
                    let at = g * self.group;
                    let len = self.group.min(n - at);
                    let mut note = round_group(s, &args.x, row + i, 4 * w0 + at, len, bytes.add(at));
                    note.sum *= self.zero.map_or(1, |zero| -zero);
                    notes.add(g).write(note);
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
                    zeros: self.zero.is_none().then(|| scales.add((4 * words).div_ceil(self.group) * nr)),
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
        x: XBlock,
        i: usize,
        rows: usize,
        words: usize,
        w: *const u32,
        c: *mut f32,
        first: bool,
    ) {
        // SAFETY: as the caller vouches.
        unsafe {
            let mut done = 0;
            while done < rows {
                let (xi, ni) = (x.row(i + done), notes(x, i + done));
                let ci = c.add(done * NV * S::LANES);
                done += match (S::LEVEL, rows - done) {
                    (Level::Avx512, HELD..) => self.held::<S, HELD>(s, words, xi, ni, w, ci, first),
                    (Level::Avx512, 4..) => self.held::<S, 4>(s, words, xi, ni, w, ci, first),
                    (Level::Avx2, 6) if VNNI => self.held::<S, 6>(s, words, xi, ni, w, ci, first),
                    (_, 4..) => self.held::<S, 4>(s, words, xi, ni, w, ci, first),
                    (_, 2..) => self.held::<S, 2>(s, words, xi, ni, w, ci, first),
                    _ => self.held::<S, 1>(s, words, xi, ni, w, ci, first),
                };
            }
        }
    }
}

/// Rows whose sums over groups stay in registers beside those of the group at hand, with 32 registers.
const HELD: usize = 6;

impl<const VNNI: bool> Int8<VNNI> {
    /// A tile of `MR` rows; returns `MR`.
    ///
    /// # Safety
    /// As [`Arithmetic::tile`], with `x`, `notes` and `c` at the first of the rows.
    #[inline(always)]
    unsafe fn held<S: Simd, const MR: usize>(
        self,
        s: S,
        words: usize,
        x: *const u32,
        notes: *const Note,
        w: *const u32,
        c: *mut f32,
        first: bool,
    ) -> usize {
        let nr = NV * S::LANES;
        let per_group = self.group / 4;
        let groups = words.div_ceil(per_group);
        let (x, w) = (x.cast::<f32>(), w.cast::<f32>());
        let mut sums = [[s.zero(); NV]; MR];
        // SAFETY: as the caller vouches.
        unsafe {
            let scales = w.add(words * nr);
            let zeros = scales.add((4 * words).div_ceil(self.group) * nr);
            if !first {
                for (i, row) in sums.iter_mut().enumerate() {
                    for (v, sum) in row.iter_mut().enumerate() {
                        *sum = s.load(c.add((i * NV + v) * S::LANES));
                    }
                }
            }
            for g in 0..groups {
                let notes = notes.add(g);
                let mut acc = [[s.zero(); NV]; MR];
                if self.zero.is_some() {
                    for (i, row) in acc.iter_mut().enumerate() {
                        *row = [s.of_bits(s.splat_i((*notes.add(i * GROUPS)).sum)); NV];
                    }
                }
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
                if self.zero.is_none() {
                    for v in 0..NV {
                        let zero = s.to_int(s.load(zeros.add(g * nr + v * S::LANES)));
                        for (i, row) in acc.iter_mut().enumerate() {
                            let sum = s.splat((*notes.add(i * GROUPS)).sum as f32);
                            let extra = s.to_int(s.mul(s.to_float(zero), sum));
                            row[v] = s.of_bits(s.sub_i(s.to_bits(row[v]), extra));
                        }
                    }
                }
                let at = scales.add(g * nr);
                let scale = [s.load(at), s.load(at.add(S::LANES))];
                for (i, (row, done)) in acc.iter().zip(&mut sums).enumerate() {
                    let t = s.splat((*notes.add(i * GROUPS)).scale);
                    for v in 0..NV {
                        done[v] = s.fma(s.to_float(s.to_bits(row[v])), s.mul(scale[v], t), done[v]);
                    }
                }
            }
            for (i, row) in sums.iter().enumerate() {
                for (v, sum) in row.iter().enumerate() {
                    s.store(c.add((i * NV + v) * S::LANES), *sum);
                }
            }
        }
        MR
    }
}

/// The lanes of `acc` are the bits of i32 sums; `w` holds unsigned bytes with VNNI, signed ones without, `x` signed ones.
impl<const VNNI: bool> Dot for Int8<VNNI> {
    #[inline(always)]
    fn dot<S: Simd>(self, s: S, acc: S::V, x: S::V, w: S::V) -> S::V {
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
unsafe fn round_group<S: Simd>(s: S, x: &Operand, row: usize, col: usize, n: usize, to: *mut i8) -> Note {
    let at = row * x.stride + col;
    let mut top = s.zero();
    // SAFETY: as the caller vouches; a vector of bytes that is not whole goes through one that is.
    unsafe {
        for j in (0..n).step_by(S::LANES) {
            let v = epilogue::load_any(s, x.dtype, x.ptr, at + j, S::LANES.min(n - j));
            top = s.max(top, s.abs(v));
        }
        let top = s.max_lane(top);
        let inverse = s.splat(if top > 0.0 { 127.0 / top } else { 0.0 });
        // At most 128 * 127: exact.
        let mut sum = s.zero();
        for j in (0..n).step_by(S::LANES) {
            let lanes = S::LANES.min(n - j);
            let q = s.to_int(s.mul(epilogue::load_any(s, x.dtype, x.ptr, at + j, lanes), inverse));
            sum = s.add(sum, s.to_float(q));
            if lanes == S::LANES {
                s.store_i8(to.add(j), q);
            } else {
                let mut bytes = [0i8; MAX_LANES];
                s.store_i8(bytes.as_mut_ptr(), q);
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.add(j), lanes);
            }
        }
        Note { scale: top / 127.0, sum: s.sum(sum) as i32 }
    }
}
