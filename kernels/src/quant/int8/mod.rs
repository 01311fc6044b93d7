//! Integers of 8 bits.

use super::int;

/// Spelling in formats.
pub const NAME: &str = "int8";
/// Bits of a code.
pub const BITS: usize = 8;
/// The stored field that stands for zero.
pub const CENTRE: Option<u8> = Some(int::centre(BITS));
/// Smallest and largest value.
pub const RANGE: (f32, f32) = int::range(BITS);
/// Whether 16-bit floats hold every value.
pub const HALVES: bool = true;
/// Decoder of Rust SIMD kernels.
pub const DECODER: int::Int<BITS> = int::Int;

/// The value of a stored field.
#[must_use]
pub fn value(field: u8) -> f32 {
    int::value(BITS, field)
}

/// The field nearest to a value, ties to even.
#[must_use]
pub fn nearest(x: f32) -> u8 {
    int::nearest(BITS, x)
}
