//! What Rust SIMD kernels need to know of a code.

use crate::cpu::simd::Simd;

/// How the codes of one kind become floats. A value of the type may hold what decoding takes, such as a table.
pub trait Decoder: Copy + Send + Sync {
    /// Bits of a code: 4 or 8.
    const BITS: usize;
    /// Of integers, the stored field that stands for zero where there are no zero points; 0 of others.
    const CENTRE: u32;
    /// What [`field`](Self::field) gives a value times.
    const UNIT: f32;

    /// Words as [`field`](Self::field) takes them.
    fn split<S: Simd>(self, s: S, words: S::I) -> (S::I, S::I);

    /// The value of field `J` of each word, counted from the low end, times [`UNIT`](Self::UNIT); of integers less the centre.
    fn field<S: Simd, const J: usize>(self, s: S, words: (S::I, S::I)) -> S::V;

    /// The values of `LANES` codes that begin at a whole byte, low bits first; integers as they are stored.
    ///
    /// # Safety
    /// `p` is readable for `LANES * BITS / 8` bytes.
    unsafe fn load<S: Simd>(self, s: S, p: *const u8) -> S::V;

    /// One of them.
    fn one(self, field: u8) -> f32;
}
