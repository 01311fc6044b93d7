//! Grouped integers times activations rounded to bytes: dot products of bytes, exact in i32.

use super::super::gemm::Operand;
use super::super::isa::{Isa, Level};
use super::super::scratch::Scratch;
use super::super::simd::{Kernel, Simd};
use super::int::group_of_lane;
use super::x::{Layout, X};
use super::{Dots, IntDots};

/// The instructions that multiply bytes.
pub trait Bytes: Copy + Sync {
    /// `sum u x` over the four bytes of each lane, `u` unsigned and below 16.
    fn dot_small<S: Simd>(self, s: S, u: [S::I; 2], x: [S::I; 2]) -> S::I;
    /// `sum (u - 128) x` over the four bytes of each lane, `u` unsigned; `less` is `sum 128 x`.
    fn dot<S: Simd>(self, s: S, u: S::I, x: S::I, less: S::I) -> S::I;
    /// Starts a kernel that uses these instructions.
    fn start<K: Kernel>(self, isa: Isa, kernel: K) -> K::Output;
}

/// One stored tensor of fields of `BITS` bits, see [`IntDots`]; `x` is rounded to bytes.
#[derive(Clone, Copy, Debug)]
pub struct Int8Dots<const BITS: usize, B>(pub IntDots<BITS>, pub B);

/// Bytes that a row is asked for ahead of its use.
const AHEAD: usize = 1024;

impl<const BITS: usize, B: Bytes> Dots for Int8Dots<BITS, B> {
    const WIDE: bool = true;

    fn layout(&self, k: usize) -> Layout {
        self.0.layout(k)
    }

    fn row_bytes(&self, k: usize) -> usize {
        self.0.row_bytes(k)
    }

    #[inline(always)]
    fn work(&self, rows: usize, k: usize, lanes: usize) -> usize {
        self.0.work(rows, k, lanes)
    }

    unsafe fn prepare(&self, isa: Isa, x: Operand, m: usize, k: usize, scratch: &mut Scratch) -> X {
        // SAFETY: as the caller vouches.
        unsafe { X::prepare_bytes(isa, x, m, k, self.layout(k), scratch) }
    }

    fn start<K: Kernel>(&self, isa: Isa, kernel: K) -> K::Output {
        self.1.start(isa, kernel)
    }

    #[inline(always)]
    unsafe fn dots<S: Simd, const R: usize, const M: usize>(
        &self,
        s: S,
        row: usize,
        x: &X,
        m0: usize,
        work: *mut f32,
    ) -> [[f32; M]; R] {
        let Self(int, bytes) = self;
        let rows = &int.0;
        let (words, groups) = ((x.k * BITS).div_ceil(32), int.groups(x.k));
        let scale_len = int.scale_len(x.k, S::LANES);
        let group_words = int.group_words(x.k, S::LANES);
        let small = group_words < S::LANES;
        let index = group_of_lane(s, group_words);
        let mut acc = [[s.zero(); M]; R];
        let (mut v, mut g, mut left) = (0, 0, group_words);
        let low = s.splat_i(0x0f0f_0f0f);
        // SAFETY: rows, scales and `x` exist as the caller vouches; `x` is padded to whole vectors of words.
        unsafe {
            for r in 0..R {
                int.scales(s, row + r, groups, 1.0, work.add(r * scale_len));
            }
            while v < words {
                let mut xs = [[s.splat_i(0); 2]; M];
                let mut sums = [s.splat_i(0); M];
                let mut scales = [s.zero(); M];
                for i in 0..M {
                    let codes = x.codes(m0 + i);
                    if BITS == 4 {
                        xs[i] = [s.load_i(codes.add(2 * v)), s.load_i(codes.add(2 * v + S::LANES))];
                    } else {
                        xs[i][0] = s.load_i(codes.add(v));
                    }
                    let sum = s.load_i(x.lane_sums(m0 + i).add(v));
                    sums[i] = if BITS == 4 { s.shl_i::<3>(sum) } else { s.shl_i::<7>(sum) };
                    scales[i] = s.splat(*x.scales(m0 + i).add(v / S::LANES));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let at = rows.packed.wrapping_add((row + r) * rows.words + v);
                    s.prefetch(at.cast::<u8>().wrapping_add(AHEAD));
                    let w = if v + S::LANES <= words {
                        s.load_i(at)
                    } else {
                        s.to_bits(s.load_n(at.cast(), words - v))
                    };
                    let scale = if small {
                        s.permute(s.load(work.add(r * scale_len + v / group_words)), index)
                    } else {
                        s.splat(*work.add(r * scale_len + g))
                    };
                    let halves = [s.and_i(w, low), s.and_i(s.shr_i::<4>(w), low)];
                    for i in 0..M {
                        let dot = if BITS == 4 {
                            s.sub_i(bytes.dot_small(s, halves, xs[i]), sums[i])
                        } else {
                            bytes.dot(s, w, xs[i][0], sums[i])
                        };
                        acc[i] = s.fma(s.to_float(dot), s.mul(scale, scales[i]), acc[i]);
                    }
                }
                v += S::LANES;
                left = left.saturating_sub(S::LANES);
                if left == 0 {
                    g += 1;
                    left = group_words;
                }
            }
        }
        let mut out = [[0.0; M]; R];
        for r in 0..R {
            for i in 0..M {
                out[r][i] = s.sum(acc[r][i]);
            }
        }
        // SAFETY: as above; the scales were written above.
        unsafe { int.less_zeros(s, row, x, m0, 1.0, work, &mut out) };
        out
    }
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
    use super::super::simd::MAX_LANES;
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
    #[inline(always)]
    fn dot_small<S: Simd>(self, s: S, u: [S::I; 2], x: [S::I; 2]) -> S::I {
        match S::LEVEL {
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
        }
    }

    #[inline(always)]
    fn dot<S: Simd>(self, s: S, u: S::I, x: S::I, _: S::I) -> S::I {
        match S::LEVEL {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a token of this level exists, and its I is this register.
            Level::Avx2 => unsafe { x86::same(x86::signed_256(x86::same(u), x86::same(x))) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx512 => unsafe { x86::same(x86::signed_512(x86::same(u), x86::same(x))) },
            _ => by_lane(s, u, x, 128),
        }
    }

    #[inline(always)]
    fn start<K: Kernel>(self, isa: Isa, kernel: K) -> K::Output {
        isa.run(kernel)
    }
}

#[cfg(target_arch = "x86_64")]
impl Bytes for Vnni {
    #[inline(always)]
    fn dot_small<S: Simd>(self, s: S, u: [S::I; 2], x: [S::I; 2]) -> S::I {
        let first = busd(s, s.splat_i(0), u[0], x[0]);
        busd(s, first, u[1], x[1])
    }

    #[inline(always)]
    fn dot<S: Simd>(self, s: S, u: S::I, x: S::I, less: S::I) -> S::I {
        s.sub_i(busd(s, s.splat_i(0), u, x), less)
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
