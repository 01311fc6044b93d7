//! FP4 as bitsandbytes has it: a sign, and eight values that are multiples of 1/192, in an order of their own.

use super::table;

/// Spelling in formats.
pub const NAME: &str = "bnb4";
/// Bits of a code.
pub const BITS: usize = 4;
/// No integers.
pub const CENTRE: Option<u8> = None;
/// Smallest and largest value.
pub const RANGE: (f32, f32) = table::range(VALUES);
/// Whether 16-bit floats hold every value.
pub const HALVES: bool = false;
/// The values by code.
pub const VALUES: &[f32; 16] = &[
    0.0,
    1.0 / 192.0,
    2.0 / 3.0,
    1.0,
    1.0 / 3.0,
    0.5,
    1.0 / 6.0,
    0.25,
    0.0,
    -1.0 / 192.0,
    -2.0 / 3.0,
    -1.0,
    -1.0 / 3.0,
    -0.5,
    -1.0 / 6.0,
    -0.25,
];
/// Decoder of Rust SIMD kernels.
pub const DECODER: table::Table = table::Table(VALUES);

/// The value of a code.
#[must_use]
pub fn value(field: u8) -> f32 {
    VALUES[usize::from(field & 15)]
}

/// The code nearest to `x`.
#[must_use]
pub fn nearest(x: f32) -> u8 {
    table::nearest(VALUES, x)
}
