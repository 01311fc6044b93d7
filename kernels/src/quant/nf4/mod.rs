//! NF4: the 16 quantiles of a normal distribution between -1 and 1 (Dettmers et al., QLoRA, 2023), as bitsandbytes stores them.

use super::table;

/// Spelling in formats.
pub const NAME: &str = "nf4";
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
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
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
