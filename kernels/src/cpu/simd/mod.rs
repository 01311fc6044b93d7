//! f32 vectors of whatever width the machine has: kernels are written once, generic over [`Simd`], and compiled once
//! per [`Level`].
//!
//! A kernel is a function wrapped in [`simd_fn!`](crate::simd_fn). The macro instantiates the body for every level
//! under the matching target features and emits a plain function that takes an [`Isa`] first:
//!
//! ```
//! use ocelli_kernels::cpu::{isa::Isa, simd::{Elem, Simd}};
//! ocelli_kernels::simd_fn! {
//!     /// `x: [n] -> y: [n]`, y = a * x + y.
//!     fn axpy<S, T: Elem>(s: S, a: f32, x: &[T], y: &mut [f32]) {
//!         let (n, va) = (x.len().min(y.len()), s.splat(a));
//!         for i in (0..n).step_by(S::LANES) {
//!             let len = (n - i).min(S::LANES);
//!             // SAFETY: `i + len <= n`, within both slices.
//!             unsafe {
//!                 let v = s.fma(va, T::load_n(s, x.as_ptr().add(i), len), s.load_n(y.as_ptr().add(i), len));
//!                 s.store_n(y.as_mut_ptr().add(i), v, len);
//!             }
//!         }
//!     }
//! }
//! let mut y = [1.0; 21];
//! axpy::<half::bf16>(Isa::best(), 2.0, &[half::bf16::from_f32(3.0); 21], &mut y);
//! assert_eq!(y, [7.0; 21]);
//! ```
//!
//! Generics other than `S` are listed after it with one bound each; lifetimes must be elided. A kernel that needs
//! more (several bounds, a closure, const generics) is a struct that implements [`Kernel`] and is started with
//! [`Isa::run`].
//!
//! Every function between the entry and the intrinsics must be `#[inline(always)]`: code that is not inlined into the
//! entry is compiled without its target features, and each operation in it becomes a call. Closures in a kernel are
//! subject to the same rule: pass them where they are called as `#[inline(always)] |x| ...`, or write a loop.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod elem;
pub mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use elem::{Elem, StoreElem};
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use portable::Portable;

use half::{bf16, f16};

use super::isa::{Isa, Level};

/// The largest [`Simd::LANES`] of any level: size of the arrays that hold one vector, or one transposition, at any
/// level.
pub const MAX_LANES: usize = 16;

/// The vector operations of one level.
///
/// A value is a token: it exists only where the CPU has the instructions, so that everything that does not touch
/// memory is safe. Lanes hold f32 (`V`), i32 (`I`) or truth values (`M`). Partial operations (`_n`) read or write
/// exactly the first `n <= LANES` lanes; lanes beyond `n` read as zero.
///
/// NaN: `min`, `max` and the reductions built on them give an unspecified operand when one is NaN.
pub trait Simd: Copy + Send + Sync + 'static {
    /// Lanes of a vector: at most [`MAX_LANES`].
    const LANES: usize;
    /// Architectural vector registers: what micro-kernels may fill.
    const REGISTERS: usize;
    /// The level that this implements.
    const LEVEL: Level;
    /// f32 lanes.
    type V: Copy;
    /// i32 lanes.
    type I: Copy;
    /// Truth lanes.
    type M: Copy;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::V;
    /// All lanes zero.
    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }
    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the level has FMA.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `c - a * b`, rounded once where the level has FMA.
    fn fnma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The smaller.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `-a`
    fn neg(self, a: Self::V) -> Self::V;
    /// `|a|`
    fn abs(self, a: Self::V) -> Self::V;
    /// Square root.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// `|a|` with the sign of `b`.
    fn copysign(self, a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer, ties to even; exact for `|a| < 2^31`.
    fn round(self, a: Self::V) -> Self::V;

    /// `a < b`
    fn lt(self, a: Self::V, b: Self::V) -> Self::M;
    /// `a <= b`
    fn le(self, a: Self::V, b: Self::V) -> Self::M;
    /// `m ? a : b`
    fn select(self, m: Self::M, a: Self::V, b: Self::V) -> Self::V;
    /// True in the first `n` lanes.
    fn first(self, n: usize) -> Self::M;

    /// Sum of the lanes, in a fixed order.
    fn sum(self, a: Self::V) -> f32;
    /// Largest lane.
    fn max_lane(self, a: Self::V) -> f32;

    /// The bits of `a`.
    fn to_bits(self, a: Self::V) -> Self::I;
    /// The f32 whose bits are `a`.
    fn of_bits(self, a: Self::I) -> Self::V;
    /// All lanes `x`.
    fn splat_i(self, x: i32) -> Self::I;
    /// `x` in the first lane, zeros in the others.
    #[inline(always)]
    fn first_i(self, x: i32) -> Self::I {
        let mut lanes = [0; MAX_LANES];
        lanes[0] = x;
        // SAFETY: `LANES <= MAX_LANES` values.
        unsafe { self.load_i(lanes.as_ptr()) }
    }
    /// Wrapping `a + b`.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Wrapping `a - b`.
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a & b`
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a | b`
    fn or_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a ^ b`
    fn xor_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a << K`
    fn shl_i<const K: i32>(self, a: Self::I) -> Self::I;
    /// `a >> K`, zeros in.
    fn shr_i<const K: i32>(self, a: Self::I) -> Self::I;
    /// `a >> K`, copies of the sign in.
    fn sra_i<const K: i32>(self, a: Self::I) -> Self::I;
    /// Each lane of `a` shifted right by that lane of `k`, zeros in; `0 <= k < 32`.
    fn shr_lanes_i(self, a: Self::I, k: Self::I) -> Self::I;
    /// To the nearest integer, ties to even; `|a| < 2^31`.
    fn to_int(self, a: Self::V) -> Self::I;
    /// To f32, rounded to nearest.
    fn to_float(self, a: Self::I) -> Self::V;

    /// # Safety
    /// `p` is readable for `LANES` values; alignment is not needed.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `p` is readable for `n <= LANES` values.
    unsafe fn load_n(self, p: *const f32, n: usize) -> Self::V;
    /// # Safety
    /// `p` is writable for `LANES` values; alignment is not needed.
    unsafe fn store(self, p: *mut f32, a: Self::V);
    /// # Safety
    /// `p` is writable for `n <= LANES` values.
    unsafe fn store_n(self, p: *mut f32, a: Self::V, n: usize);
    /// # Safety
    /// `p` is readable for `LANES` values.
    unsafe fn load_i(self, p: *const i32) -> Self::I;
    /// # Safety
    /// `p` is writable for `LANES` values.
    unsafe fn store_i(self, p: *mut i32, a: Self::I);

    /// Values of -128 to 127 as bytes; others give an unspecified byte.
    ///
    /// # Safety
    /// `p` is writable for `LANES` values.
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, a: Self::I) {
        let mut all = [0i32; MAX_LANES];
        // SAFETY: `LANES <= MAX_LANES`; the caller vouches for `p`.
        unsafe {
            self.store_i(all.as_mut_ptr(), a);
            for (i, x) in all.iter().enumerate().take(Self::LANES) {
                p.add(i).write(*x as i8);
            }
        }
    }

    /// The first 4 values, or more.
    ///
    /// # Safety
    /// `p` is readable for `LANES` values; alignment is not needed.
    #[inline(always)]
    unsafe fn load_4(self, p: *const f32) -> Self::V {
        // SAFETY: as the caller vouches.
        unsafe { self.load(p) }
    }
    /// Widened exactly.
    ///
    /// # Safety
    /// `p` is readable for `LANES` values; alignment is not needed.
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V;
    /// Widened exactly.
    ///
    /// # Safety
    /// `p` is readable for `LANES` values; alignment is not needed.
    unsafe fn load_f16(self, p: *const f16) -> Self::V;
    /// The first `n`, widened exactly; zeros after them.
    ///
    /// # Safety
    /// `p` is readable for `n <= LANES` values; alignment is not needed.
    #[inline(always)]
    unsafe fn load_bf16_n(self, p: *const bf16, n: usize) -> Self::V {
        // SAFETY: as the caller vouches.
        unsafe { self.load_bf16(elem::first(p, n).as_ptr()) }
    }
    /// The first `n`, widened exactly; zeros after them.
    ///
    /// # Safety
    /// `p` is readable for `n <= LANES` values; alignment is not needed.
    #[inline(always)]
    unsafe fn load_f16_n(self, p: *const f16, n: usize) -> Self::V {
        // SAFETY: as the caller vouches.
        unsafe { self.load_f16(elem::first(p, n).as_ptr()) }
    }
    /// Widened exactly.
    ///
    /// # Safety
    /// `p` is readable for `LANES` values.
    unsafe fn load_i8(self, p: *const i8) -> Self::V;
    /// Widened exactly.
    ///
    /// # Safety
    /// `p` is readable for `LANES` values.
    unsafe fn load_u8(self, p: *const u8) -> Self::V;
    /// `LANES` values of 4 bits, 0 to 15, from `LANES / 2` bytes, low half of each byte first.
    ///
    /// # Safety
    /// `p` is readable for `LANES / 2` bytes.
    unsafe fn load_u4(self, p: *const u8) -> Self::V;
    /// Rounded to nearest, ties to even; NaN stays NaN.
    ///
    /// # Safety
    /// `p` is writable for `LANES` values; alignment is not needed.
    unsafe fn store_bf16(self, p: *mut bf16, a: Self::V);
    /// Rounded to nearest, ties to even; too large becomes infinite.
    ///
    /// # Safety
    /// `p` is writable for `LANES` values; alignment is not needed.
    unsafe fn store_f16(self, p: *mut f16, a: Self::V);

    /// Lane i is lane `index[i]` of `a`; `0 <= index < LANES`.
    fn permute(self, a: Self::V, index: Self::I) -> Self::V;
    /// Lane i is `table[index[i] % 16]`.
    #[inline(always)]
    fn look_up(self, table: &[f32; 16], index: Self::I) -> Self::V {
        let (mut at, mut out) = ([0i32; MAX_LANES], [0.0f32; MAX_LANES]);
        // SAFETY: `LANES <= MAX_LANES` values.
        unsafe {
            self.store_i(at.as_mut_ptr(), index);
            for (out, at) in out.iter_mut().zip(at).take(Self::LANES) {
                *out = table[(at & 15) as usize];
            }
            self.load(out.as_ptr())
        }
    }
    /// What [`field`](Self::field) takes: packed words of offset-binary fields of `BITS` (4 or 8) bits.
    #[inline(always)]
    fn fields<const BITS: usize>(self, words: Self::I) -> (Self::I, Self::I) {
        let signed = self.xor_i(
            words,
            self.splat_i(if BITS == 4 { 0x8888_8888_u32 as i32 } else { 0x8080_8080_u32 as i32 }),
        );
        (signed, signed)
    }
    /// Field `J` of each word, counted from the low end, times `2^(32 - BITS)`: a field `u` stands for
    /// `u - 2^(BITS - 1)`.
    #[inline(always)]
    fn field<const BITS: usize, const J: usize>(self, fields: (Self::I, Self::I)) -> Self::V {
        let w = fields.0;
        let top = match 32 - BITS - BITS * J {
            0 => w,
            4 => self.shl_i::<4>(w),
            8 => self.shl_i::<8>(w),
            12 => self.shl_i::<12>(w),
            16 => self.shl_i::<16>(w),
            20 => self.shl_i::<20>(w),
            24 => self.shl_i::<24>(w),
            _ => self.shl_i::<28>(w),
        };
        self.to_float(self.and_i(top, self.splat_i(i32::MIN >> (BITS - 1))))
    }

    /// `LANES` x `LANES` transposition in place: lane j of vector i goes to lane i of vector j.
    ///
    /// # Safety
    /// `rows` points to `LANES` vectors.
    unsafe fn transpose(self, rows: *mut Self::V);

    /// Asks for the cache line at `p`, as far as the second level; any address is allowed.
    #[inline(always)]
    fn prefetch_l2<T>(self, p: *const T) {
        let _ = p;
    }
    /// Asks for the cache line at `p`, which is used once: it need not be kept further out. Any address is allowed.
    #[inline(always)]
    fn prefetch_once<T>(self, p: *const T) {
        self.prefetch(p);
    }
    /// Asks for the cache line at `p`; any address is allowed.
    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        let _ = p;
    }
}

/// A kernel as a value: `run` is compiled for every level by [`Isa::run`].
pub trait Kernel {
    /// What the kernel returns.
    type Output;
    /// The body; mark it `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Lanes of the level without vectors.
const PORTABLE: usize = 8;

impl Isa {
    /// [`Simd::LANES`] of this level.
    pub const fn lanes(self) -> usize {
        match self.level() {
            Level::Scalar => PORTABLE,
            Level::Avx2 => 8,
            Level::Avx512 => 16,
            Level::Neon => 4,
        }
    }

    /// Runs the instance of `kernel` for this level.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.level() {
            Level::Scalar => kernel.run(Portable::<PORTABLE>),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of this level exists only where the CPU has the features.
            Level::Avx2 => unsafe { run_avx2(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx512 => unsafe { run_avx512(kernel) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Level::Neon => unsafe { run_neon(kernel) },
            #[allow(unreachable_patterns, reason = "levels of other architectures are never constructed")]
            _ => kernel.run(Portable::<PORTABLE>),
        }
    }

    /// As [`Isa::run`], with AVX512_BF16 where [`Isa::bf16`] says that it is there.
    #[inline]
    pub fn run_bf16<K: Kernel>(self, kernel: K) -> K::Output {
        match self.level() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of this level, with this extension, exists only where the CPU has the features.
            Level::Avx512 if self.bf16() => unsafe { run_avx512_bf16(kernel) },
            _ => self.run(kernel),
        }
    }

    /// As [`Isa::run`], with `vpdpbusd` where [`Isa::vnni`] says that it is there.
    #[inline]
    pub fn run_vnni<K: Kernel>(self, kernel: K) -> K::Output {
        match self.level() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of this level, with this extension, exists only where the CPU has the features.
            Level::Avx512 if self.vnni() => unsafe { run_avx512_vnni(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx2 if self.vnni() => unsafe { run_avx2_vnni(kernel) },
            _ => self.run(kernel),
        }
    }
}

/// Caller must run on a CPU with the features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn run_avx512_bf16<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here.
    kernel.run(unsafe { Avx512::new() })
}

/// Caller must run on a CPU with the features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn run_avx512_vnni<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here.
    kernel.run(unsafe { Avx512::new() })
}

/// Caller must run on a CPU with the features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn run_avx2_vnni<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here.
    kernel.run(unsafe { Avx2::new() })
}

/// Caller must run on a CPU with the level's features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here.
    kernel.run(unsafe { Avx2::new() })
}

/// Caller must run on a CPU with the level's features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here.
    kernel.run(unsafe { Avx512::new() })
}

/// Caller must run on a CPU with the level's features.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn run_neon<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the feature is enabled here.
    kernel.run(unsafe { Neon::new() })
}

/// Makes a kernel out of a function that is generic over [`Simd`]; see the [module](crate::cpu::simd) for an example.
///
/// `fn name<S, T: Bound>(s: S, args) -> R { body }` becomes `fn name<T: Bound>(isa: Isa, args) -> R`.
#[macro_export]
macro_rules! simd_fn {
    (
        $(#[$meta:meta])* $vis:vis fn $name:ident<$s:ident $(, $g:ident : $b:path)* $(,)?>
        ($token:ident : $s2:ident $(, $arg:ident : $ty:ty)* $(,)?) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$($g: $b),*>(isa: $crate::cpu::isa::Isa $(, $arg: $ty)*) $(-> $ret)? {
            #[inline(always)]
            fn body<$s: $crate::cpu::simd::Simd $(, $g: $b)*>($token: $s2 $(, $arg: $ty)*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2<$($g: $b),*>($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the features are enabled here.
                body::<$crate::cpu::simd::Avx2 $(, $g)*>(unsafe { $crate::cpu::simd::Avx2::new() } $(, $arg)*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
            fn avx512<$($g: $b),*>($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the features are enabled here.
                body::<$crate::cpu::simd::Avx512 $(, $g)*>(unsafe { $crate::cpu::simd::Avx512::new() } $(, $arg)*)
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon<$($g: $b),*>($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the feature is enabled here.
                body::<$crate::cpu::simd::Neon $(, $g)*>(unsafe { $crate::cpu::simd::Neon::new() } $(, $arg)*)
            }
            match isa.level() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` of this level exists only where the CPU has the features.
                $crate::cpu::isa::Level::Avx2 => unsafe { avx2::<$($g),*>($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::cpu::isa::Level::Avx512 => unsafe { avx512::<$($g),*>($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: as above.
                $crate::cpu::isa::Level::Neon => unsafe { neon::<$($g),*>($($arg),*) },
                _ => body::<$crate::cpu::simd::Portable<8> $(, $g)*>($crate::cpu::simd::Portable::<8> $(, $arg)*),
            }
        }
    };
}
