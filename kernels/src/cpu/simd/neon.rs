//! AArch64 NEON.

use std::arch::aarch64::*;

use half::{bf16, f16};

use super::super::isa::Level;
use super::Simd;

/// NEON: 4 lanes.
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

impl Neon {
    /// # Safety
    /// The CPU has NEON.
    #[inline(always)]
    pub unsafe fn new() -> Self {
        Neon(())
    }
}

impl Simd for Neon {
    const LANES: usize = 4;
    const REGISTERS: usize = 32;
    const LEVEL: Level = Level::Neon;
    type V = float32x4_t;
    type I = int32x4_t;
    type M = uint32x4_t;

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    fn fnma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vfmsq_f32(c, a, b) }
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vminq_f32(a, b) }
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vmaxq_f32(a, b) }
    }
    #[inline(always)]
    fn neg(self, a: float32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vnegq_f32(a) }
    }
    #[inline(always)]
    fn abs(self, a: float32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vabsq_f32(a) }
    }
    #[inline(always)]
    fn sqrt(self, a: float32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vsqrtq_f32(a) }
    }
    #[inline(always)]
    fn copysign(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vbslq_f32(vdupq_n_u32(0x8000_0000), b, a) }
    }
    #[inline(always)]
    fn round(self, a: float32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vrndnq_f32(a) }
    }
    #[inline(always)]
    fn lt(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vcltq_f32(a, b) }
    }
    #[inline(always)]
    fn le(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vcleq_f32(a, b) }
    }
    #[inline(always)]
    fn select(self, m: uint32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vbslq_f32(m, a, b) }
    }
    #[inline(always)]
    fn first(self, n: usize) -> uint32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vcltq_u32(vld1q_u32([0u32, 1, 2, 3].as_ptr()), vdupq_n_u32(n as u32)) }
    }
    #[inline(always)]
    fn sum(self, a: float32x4_t) -> f32 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vaddvq_f32(a) }
    }
    #[inline(always)]
    fn max_lane(self, a: float32x4_t) -> f32 {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vmaxvq_f32(a) }
    }
    #[inline(always)]
    fn to_bits(self, a: float32x4_t) -> int32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vreinterpretq_s32_f32(a) }
    }
    #[inline(always)]
    fn of_bits(self, a: int32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vreinterpretq_f32_s32(a) }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> int32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vdupq_n_s32(x) }
    }
    #[inline(always)]
    fn add_i(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vaddq_s32(a, b) }
    }
    #[inline(always)]
    fn sub_i(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vsubq_s32(a, b) }
    }
    #[inline(always)]
    fn and_i(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vandq_s32(a, b) }
    }
    #[inline(always)]
    fn or_i(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vorrq_s32(a, b) }
    }
    #[inline(always)]
    fn xor_i(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { veorq_s32(a, b) }
    }
    #[inline(always)]
    fn shl_i<const K: i32>(self, a: int32x4_t) -> int32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vshlq_s32(a, vdupq_n_s32(K)) }
    }
    #[inline(always)]
    fn shr_i<const K: i32>(self, a: int32x4_t) -> int32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-K))) }
    }
    #[inline(always)]
    fn sra_i<const K: i32>(self, a: int32x4_t) -> int32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vshlq_s32(a, vdupq_n_s32(-K)) }
    }
    #[inline(always)]
    fn shr_lanes_i(self, a: int32x4_t, k: int32x4_t) -> int32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vnegq_s32(k))) }
    }
    #[inline(always)]
    fn to_int(self, a: float32x4_t) -> int32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vcvtnq_s32_f32(a) }
    }
    #[inline(always)]
    fn to_float(self, a: int32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do.
        unsafe { vcvtq_f32_s32(a) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> float32x4_t {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn load_n(self, p: *const f32, n: usize) -> float32x4_t {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            let mut b = [0.0f32; 4];
            std::ptr::copy_nonoverlapping(p, b.as_mut_ptr(), n.min(4));
            vld1q_f32(b.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: float32x4_t) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { vst1q_f32(p, a) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, a: float32x4_t, n: usize) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            let mut b = [0.0f32; 4];
            vst1q_f32(b.as_mut_ptr(), a);
            std::ptr::copy_nonoverlapping(b.as_ptr(), p, n.min(4))
        }
    }
    #[inline(always)]
    unsafe fn load_i(self, p: *const i32) -> int32x4_t {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { vld1q_s32(p) }
    }
    #[inline(always)]
    unsafe fn store_i(self, p: *mut i32, a: int32x4_t) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { vst1q_s32(p, a) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> float32x4_t {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> float32x4_t {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            let b: [f16; 4] = p.cast::<[f16; 4]>().read_unaligned();
            vld1q_f32(b.map(f16::to_f32).as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> float32x4_t {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            let b: [i8; 4] = p.cast::<[i8; 4]>().read_unaligned();
            vld1q_f32(b.map(f32::from).as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> float32x4_t {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            let b: [u8; 4] = p.cast::<[u8; 4]>().read_unaligned();
            vld1q_f32(b.map(f32::from).as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn load_u4(self, p: *const u8) -> float32x4_t {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            let (a, b) = (*p, *p.add(1));
            vld1q_f32([a & 15, a >> 4, b & 15, b >> 4].map(f32::from).as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, a: float32x4_t) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            let mut b = [0.0f32; 4];
            vst1q_f32(b.as_mut_ptr(), a);
            p.cast::<[bf16; 4]>().write_unaligned(b.map(bf16::from_f32))
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16, a: float32x4_t) {
        // SAFETY: as the caller vouches, and a token exists, so the instructions do.
        unsafe {
            let mut b = [0.0f32; 4];
            vst1q_f32(b.as_mut_ptr(), a);
            p.cast::<[f16; 4]>().write_unaligned(b.map(f16::from_f32))
        }
    }
    #[inline(always)]
    fn permute(self, a: float32x4_t, index: int32x4_t) -> float32x4_t {
        // SAFETY: a token exists, so the instructions do; both arrays hold four lanes.
        unsafe {
            let (mut from, mut at) = ([0.0f32; 4], [0i32; 4]);
            vst1q_f32(from.as_mut_ptr(), a);
            vst1q_s32(at.as_mut_ptr(), index);
            vld1q_f32(at.map(|i| from[i as usize % 4]).as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn transpose(self, rows: *mut float32x4_t) {
        // SAFETY: the caller vouches for 4 vectors; a token exists, so the instructions do.
        unsafe {
            let r = rows.cast::<[[f32; 4]; 4]>();
            let a = *r;
            for i in 0..4 {
                (*r)[i] = [a[0][i], a[1][i], a[2][i], a[3][i]];
            }
        }
    }
}
