//! Element types that vectors are loaded from and stored to.

use half::{bf16, f16};

use super::{MAX_LANES, Simd};

/// A type that widens exactly to f32.
pub trait Elem: Copy + Send + Sync + Default + PartialEq + 'static {
    /// The exact value.
    fn to_f32(self) -> f32;
    /// `LANES` values.
    ///
    /// # Safety
    /// `p` is readable for `LANES` values; alignment is not needed.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;
    /// The first `n` values, zeros after them.
    ///
    /// # Safety
    /// `p` is readable for `n <= LANES` values; alignment is not needed.
    #[inline(always)]
    unsafe fn load_n<S: Simd>(s: S, p: *const Self, n: usize) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { Self::load(s, first(p, n).as_ptr()) }
    }
}

/// The first `n` values, zeros after them.
///
/// # Safety
/// `p` is readable for `n <= MAX_LANES` values; alignment is not needed.
#[inline(always)]
pub(super) unsafe fn first<T: Elem>(p: *const T, n: usize) -> [T; MAX_LANES] {
    let mut a = [T::default(); MAX_LANES];
    // SAFETY: the caller vouches for `p`; the array is long enough.
    unsafe {
        std::ptr::copy_nonoverlapping(p.cast::<u8>(), a.as_mut_ptr().cast::<u8>(), n * size_of::<T>());
    }
    a
}

/// A type that f32 rounds to.
pub trait StoreElem: Elem {
    /// Rounded to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
    /// Stores `LANES` values.
    ///
    /// # Safety
    /// `p` is writable for `LANES` values; alignment is not needed.
    unsafe fn store<S: Simd>(s: S, p: *mut Self, a: S::V);
    /// Stores the first `n` values.
    ///
    /// # Safety
    /// `p` is writable for `n <= LANES` values; alignment is not needed.
    #[inline(always)]
    unsafe fn store_n<S: Simd>(s: S, p: *mut Self, a: S::V, n: usize) {
        let mut b = [Self::default(); MAX_LANES];
        // SAFETY: `n <= LANES <= MAX_LANES`; the caller vouches for `p`.
        unsafe {
            Self::store(s, b.as_mut_ptr(), a);
            std::ptr::copy_nonoverlapping(b.as_ptr().cast::<u8>(), p.cast::<u8>(), n * size_of::<Self>());
        }
    }
}

impl Elem for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { s.load(p) }
    }
    #[inline(always)]
    unsafe fn load_n<S: Simd>(s: S, p: *const f32, n: usize) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { s.load_n(p, n) }
    }
}

impl StoreElem for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut f32, a: S::V) {
        // SAFETY: as the caller vouches.
        unsafe { s.store(p, a) }
    }
    #[inline(always)]
    unsafe fn store_n<S: Simd>(s: S, p: *mut f32, a: S::V, n: usize) {
        // SAFETY: as the caller vouches.
        unsafe { s.store_n(p, a, n) }
    }
}

impl Elem for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const bf16) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { s.load_bf16(p) }
    }
    #[inline(always)]
    unsafe fn load_n<S: Simd>(s: S, p: *const bf16, n: usize) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { s.load_bf16_n(p, n) }
    }
}

impl StoreElem for bf16 {
    #[inline(always)]
    fn from_f32(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut bf16, a: S::V) {
        // SAFETY: as the caller vouches.
        unsafe { s.store_bf16(p, a) }
    }
}

impl Elem for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f16) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { s.load_f16(p) }
    }
    #[inline(always)]
    unsafe fn load_n<S: Simd>(s: S, p: *const f16, n: usize) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { s.load_f16_n(p, n) }
    }
}

impl StoreElem for f16 {
    #[inline(always)]
    fn from_f32(x: f32) -> f16 {
        f16::from_f32(x)
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut f16, a: S::V) {
        // SAFETY: as the caller vouches.
        unsafe { s.store_f16(p, a) }
    }
}

impl Elem for i8 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const i8) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { s.load_i8(p) }
    }
}

impl Elem for u8 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { s.load_u8(p) }
    }
}
