//! Portable vectors: plain arrays that the compiler may vectorize with the target's baseline instructions.

use std::array::from_fn;

use half::{bf16, f16};

use super::super::isa::Level;
use super::Simd;

/// Plain arrays of `N <= 16` lanes; `N` even. The fallback level uses 8; other widths exist to test geometry.
#[derive(Clone, Copy, Debug, Default)]
pub struct Portable<const N: usize>;

#[inline(always)]
fn map<const N: usize, A: Copy, B>(a: [A; N], f: impl Fn(A) -> B) -> [B; N] {
    from_fn(
        #[inline(always)]
        |i| f(a[i]),
    )
}

#[inline(always)]
fn zip<const N: usize, A: Copy, B: Copy, C>(a: [A; N], b: [B; N], f: impl Fn(A, B) -> C) -> [C; N] {
    from_fn(
        #[inline(always)]
        |i| f(a[i], b[i]),
    )
}

/// Pairwise, so that the order is fixed and the error grows with log N.
#[inline(always)]
fn fold<const N: usize>(mut a: [f32; N], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut n = N;
    while n > 1 {
        let h = n / 2;
        for i in 0..h {
            a[i] = f(a[i], a[n - 1 - i]);
        }
        n -= h;
    }
    a[0]
}

impl<const N: usize> Simd for Portable<N> {
    const LANES: usize = N;
    const REGISTERS: usize = 16;
    const LEVEL: Level = Level::Scalar;
    type V = [f32; N];
    type I = [i32; N];
    type M = [bool; N];

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; N] {
        [x; N]
    }
    #[inline(always)]
    fn add(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |x, y| x + y)
    }
    #[inline(always)]
    fn sub(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |x, y| x - y)
    }
    #[inline(always)]
    fn mul(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |x, y| x * y)
    }
    #[inline(always)]
    fn div(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |x, y| x / y)
    }
    #[inline(always)]
    fn fma(self, a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn fnma(self, a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        from_fn(|i| c[i] - a[i] * b[i])
    }
    #[inline(always)]
    fn min(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    fn max(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn neg(self, a: [f32; N]) -> [f32; N] {
        map(a, |x| -x)
    }
    #[inline(always)]
    fn abs(self, a: [f32; N]) -> [f32; N] {
        map(a, f32::abs)
    }
    #[inline(always)]
    fn sqrt(self, a: [f32; N]) -> [f32; N] {
        map(a, f32::sqrt)
    }
    #[inline(always)]
    fn copysign(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, f32::copysign)
    }
    #[inline(always)]
    fn round(self, a: [f32; N]) -> [f32; N] {
        self.to_float(self.to_int(a))
    }
    #[inline(always)]
    fn lt(self, a: [f32; N], b: [f32; N]) -> [bool; N] {
        zip(a, b, |x, y| x < y)
    }
    #[inline(always)]
    fn le(self, a: [f32; N], b: [f32; N]) -> [bool; N] {
        zip(a, b, |x, y| x <= y)
    }
    #[inline(always)]
    fn select(self, m: [bool; N], a: [f32; N], b: [f32; N]) -> [f32; N] {
        from_fn(|i| if m[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn first(self, n: usize) -> [bool; N] {
        from_fn(|i| i < n)
    }
    #[inline(always)]
    fn sum(self, a: [f32; N]) -> f32 {
        fold(a, |x, y| x + y)
    }
    #[inline(always)]
    fn max_lane(self, a: [f32; N]) -> f32 {
        fold(a, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn to_bits(self, a: [f32; N]) -> [i32; N] {
        map(a, |x| x.to_bits() as i32)
    }
    #[inline(always)]
    fn of_bits(self, a: [i32; N]) -> [f32; N] {
        map(a, |x| f32::from_bits(x as u32))
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> [i32; N] {
        [x; N]
    }
    #[inline(always)]
    fn add_i(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_i(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn and_i(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        zip(a, b, |x, y| x & y)
    }
    #[inline(always)]
    fn or_i(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        zip(a, b, |x, y| x | y)
    }
    #[inline(always)]
    fn xor_i(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        zip(a, b, |x, y| x ^ y)
    }
    #[inline(always)]
    fn shl_i<const K: i32>(self, a: [i32; N]) -> [i32; N] {
        map(a, |x| x << K)
    }
    #[inline(always)]
    fn shr_i<const K: i32>(self, a: [i32; N]) -> [i32; N] {
        map(a, |x| ((x as u32) >> K) as i32)
    }
    #[inline(always)]
    fn sra_i<const K: i32>(self, a: [i32; N]) -> [i32; N] {
        map(a, |x| x >> K)
    }
    #[inline(always)]
    fn shr_lanes_i(self, a: [i32; N], k: [i32; N]) -> [i32; N] {
        zip(a, k, |x, y| ((x as u32) >> (y & 31)) as i32)
    }
    #[inline(always)]
    fn to_float(self, a: [i32; N]) -> [f32; N] {
        map(a, |x| x as f32)
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> [f32; N] {
        // SAFETY: as the caller vouches.
        unsafe { p.cast::<[f32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> [f32; N] {
        // SAFETY: as the caller vouches.
        unsafe { from_fn(|i| if i < n { p.add(i).read_unaligned() } else { 0.0 }) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: [f32; N]) {
        // SAFETY: as the caller vouches.
        unsafe { p.cast::<[f32; N]>().write_unaligned(a) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, a: [f32; N], n: usize) {
        // SAFETY: as the caller vouches.
        unsafe {
            for (i, x) in a.into_iter().enumerate().take(n) {
                p.add(i).write_unaligned(x)
            }
        }
    }
    #[inline(always)]
    unsafe fn load_i(self, p: *const i32) -> [i32; N] {
        // SAFETY: as the caller vouches.
        unsafe { p.cast::<[i32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_i(self, p: *mut i32, a: [i32; N]) {
        // SAFETY: as the caller vouches.
        unsafe { p.cast::<[i32; N]>().write_unaligned(a) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> [f32; N] {
        // SAFETY: as the caller vouches.
        unsafe { map(p.cast::<[u16; N]>().read_unaligned(), |x| f32::from_bits(u32::from(x) << 16)) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> [f32; N] {
        // SAFETY: as the caller vouches.
        unsafe { map(p.cast::<[f16; N]>().read_unaligned(), f16::to_f32) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> [f32; N] {
        // SAFETY: as the caller vouches.
        unsafe { map(p.cast::<[i8; N]>().read(), f32::from) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> [f32; N] {
        // SAFETY: as the caller vouches.
        unsafe { map(p.cast::<[u8; N]>().read(), f32::from) }
    }
    #[inline(always)]
    unsafe fn load_u4(self, p: *const u8) -> [f32; N] {
        // SAFETY: as the caller vouches.
        unsafe { from_fn(|i| f32::from((*p.add(i / 2) >> (4 * (i % 2))) & 15)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, a: [f32; N]) {
        // SAFETY: as the caller vouches.
        unsafe { p.cast::<[bf16; N]>().write_unaligned(map(a, bf16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16, a: [f32; N]) {
        // SAFETY: as the caller vouches.
        unsafe { p.cast::<[f16; N]>().write_unaligned(map(a, f16::from_f32)) }
    }
    #[inline(always)]
    fn to_int(self, a: [f32; N]) -> [i32; N] {
        // Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits, as long as it fits in 22 bits.
        const MAGIC: f32 = 12_582_912.0;
        map(a, |x| {
            if x.abs() < 4_194_304.0 {
                ((x + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32)
            } else {
                x.round_ties_even() as i32
            }
        })
    }
    #[inline(always)]
    fn permute(self, a: [f32; N], index: [i32; N]) -> [f32; N] {
        map(
            index,
            #[inline(always)]
            |i| a[i as usize % N],
        )
    }
    #[inline(always)]
    unsafe fn transpose(self, rows: *mut [f32; N]) {
        // SAFETY: the caller vouches for N vectors of N lanes.
        let m = unsafe { std::slice::from_raw_parts_mut(rows, N) };
        for i in 1..N {
            let (above, below) = m.split_at_mut(i);
            for (j, row) in above.iter_mut().enumerate() {
                std::mem::swap(&mut row[i], &mut below[0][j]);
            }
        }
    }
}
