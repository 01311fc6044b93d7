//! bf16 x bf16 products, two per word: `vdpbf16ps` on machines with AVX512_BF16.

use half::{bf16, f16};

use super::super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::super::isa::Level;
use super::super::pool::Pool;
use super::super::simd::{Elem, Kernel, MAX_LANES, Simd, StoreElem};
use super::micro::{self, Dot};
use super::{Arithmetic, GemmArgs, Part, RowLoader, X_STRIDE, XBlock, drive, pack_rows};
use crate::spec::DType;

/// As [`gemm`](super::gemm), with `x` rounded to bf16. False, and nothing done, unless all weights are stored as bf16 and
/// `x` is stored.
///
/// Levels without the instruction multiply the halves of each word one after the other: slower than
/// [`gemm`](super::gemm), with the same result.
///
/// # Safety
/// As [`gemm`](super::gemm).
pub unsafe fn gemm_bf16(isa: Isa, pool: &Pool, args: &GemmArgs) -> bool {
    let all = args.rows.is_none() && args.parts.iter().all(|p| p.source.as_bf16().is_some());
    if all {
        if isa.bf16() {
            drive(isa, pool, args, Bf16::<true>);
        } else {
            drive(isa, pool, args, Bf16::<false>);
        }
    }
    all
}

/// `NATIVE`: only run where AVX512_BF16 is there.
#[derive(Clone, Copy)]
pub struct Bf16<const NATIVE: bool>;

impl<const NATIVE: bool> Arithmetic for Bf16<NATIVE> {
    const PACK: usize = 2;

    fn run<K: Kernel>(self, isa: Isa, kernel: K) -> K::Output {
        if NATIVE { isa.run_bf16(kernel) } else { isa.run(kernel) }
    }

    fn packs_ahead(self, _: &GemmArgs) -> bool {
        true
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
        i: usize,
    ) {
        let n = (2 * words).min(args.k - 2 * w0);
        // SAFETY: as the caller vouches.
        unsafe {
            let (x, to) = (&args.x, to.row(i));
            let at = row * x.stride + 2 * w0;
            match x.dtype {
                DType::BF16 => copy_rows(x.ptr.cast::<bf16>().add(at), x.stride, rows, n, to),
                DType::F16 => round_rows(s, x.ptr.cast::<f16>().add(at), x.stride, rows, n, to),
                _ => round_rows(s, x.ptr.cast::<f32>().add(at), x.stride, rows, n, to),
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
        if let Some((ptr, stride)) = part.source.as_bf16() {
            // SAFETY: as the caller vouches.
            unsafe { pack_rows(isa, Pairs { ptr, stride, k }, row, rows, w0, words, to.add(lane).cast(), nr) }
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
        unsafe { micro::tile(s, self, rows, words, x.row(i), w, c, first) }
    }
}

impl<const NATIVE: bool> Dot for Bf16<NATIVE> {
    #[inline(always)]
    fn dot<S: Simd>(self, s: S, acc: S::V, x: S::V, w: S::V) -> S::V {
        #[cfg(target_arch = "x86_64")]
        if NATIVE && S::LEVEL == Level::Avx512 {
            use std::arch::x86_64::*;
            // SAFETY: at this level a vector is `__m512`, which `__m512bh` has the size of; `NATIVE` stands for the feature.
            unsafe {
                let acc: __m512 = std::mem::transmute_copy(&acc);
                let x: __m512bh = std::mem::transmute_copy(&x);
                let w: __m512bh = std::mem::transmute_copy(&w);
                return std::mem::transmute_copy(&_mm512_dpbf16_ps(acc, x, w));
            }
        }
        let low = |v: S::V| s.of_bits(s.shl_i::<16>(s.to_bits(v)));
        let high = |v: S::V| s.of_bits(s.and_i(s.to_bits(v), s.splat_i(-65_536)));
        s.fma(high(x), high(w), s.fma(low(x), low(w), acc))
    }
}

/// # Safety
/// `rows` rows of `n` values exist; `to` has room for them at `X_STRIDE` words each.
#[inline(always)]
unsafe fn copy_rows(from: *const bf16, stride: usize, rows: usize, n: usize, to: *mut u32) {
    for i in 0..rows {
        // SAFETY: as the caller vouches.
        unsafe {
            let to = to.add(i * X_STRIDE).cast::<bf16>();
            std::ptr::copy_nonoverlapping(from.add(i * stride).cast::<u8>(), to.cast::<u8>(), 2 * n);
            if n % 2 == 1 {
                to.add(n).write(bf16::ZERO);
            }
        }
    }
}

/// # Safety
/// As [`copy_rows`].
#[inline(always)]
unsafe fn round_rows<S: Simd, T: Elem>(
    s: S,
    from: *const T,
    stride: usize,
    rows: usize,
    n: usize,
    to: *mut u32,
) {
    for i in 0..rows {
        // SAFETY: as the caller vouches.
        unsafe {
            let (from, to) = (from.add(i * stride), to.add(i * X_STRIDE).cast::<bf16>());
            let mut j = 0;
            while j + S::LANES <= n {
                s.store_bf16(to.add(j), T::load(s, from.add(j)));
                j += S::LANES;
            }
            if j < n {
                bf16::store_n(s, to.add(j), T::load_n(s, from.add(j), n - j), n - j);
            }
            if n % 2 == 1 {
                to.add(n).write(bf16::ZERO);
            }
        }
    }
}

/// Rows of bf16 as words of two.
#[derive(Clone, Copy)]
struct Pairs {
    ptr: *const bf16,
    stride: usize,
    /// Values in a row.
    k: usize,
}

impl RowLoader for Pairs {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, row: usize, col: usize) -> S::V {
        if 2 * (col + S::LANES) > self.k {
            // SAFETY: as the caller vouches.
            return unsafe { self.load_n(s, row, col, S::LANES) };
        }
        // SAFETY: as the caller vouches.
        unsafe { s.load(self.ptr.add(row * self.stride + 2 * col).cast()) }
    }
    #[inline(always)]
    unsafe fn load_n<S: Simd>(&self, s: S, row: usize, col: usize, n: usize) -> S::V {
        let mut a = [0u16; 2 * MAX_LANES];
        let values = (2 * n).min(self.k - 2 * col);
        // SAFETY: as the caller vouches; the last word of an odd row has one value.
        unsafe {
            let from = self.ptr.add(row * self.stride + 2 * col);
            std::ptr::copy_nonoverlapping(from.cast::<u8>(), a.as_mut_ptr().cast::<u8>(), 2 * values);
            s.load(a.as_ptr().cast())
        }
    }
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, row: usize, col: usize) {
        s.prefetch_l2(self.ptr.wrapping_add(row * self.stride + 2 * col));
    }
}
