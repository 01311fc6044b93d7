//! E2M1: 4-bit floats of a sign, 2 bits of exponent (bias 1) and 1 of mantissa (OCP microscaling formats, 2023). The weights of MXFP4
//! and NVFP4.

use super::table;

/// Spelling in formats.
pub const NAME: &str = "fp4";
/// Bits of a code.
pub const BITS: usize = 4;
/// No integers.
pub const CENTRE: Option<u8> = None;
/// Smallest and largest value.
pub const RANGE: (f32, f32) = (-6.0, 6.0);
/// Whether 16-bit floats hold every value.
pub const HALVES: bool = true;
/// The values by code.
pub const VALUES: &[f32; 16] =
    &[0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
/// Decoder of Rust SIMD kernels.
pub const DECODER: table::Table = table::Table(VALUES);

/// The value of a code.
#[must_use]
pub fn value(field: u8) -> f32 {
    VALUES[usize::from(field & 15)]
}

/// The code nearest to `x`, ties to even codes; values beyond the largest become that.
#[must_use]
pub fn nearest(x: f32) -> u8 {
    // Middles between neighbours; one that falls on a middle goes to the even code.
    let magnitude = x.abs();
    let code = match magnitude {
        m if m <= 0.25 => 0,
        m if m < 0.75 => 1,
        m if m <= 1.25 => 2,
        m if m < 1.75 => 3,
        m if m <= 2.5 => 4,
        m if m < 3.5 => 5,
        m if m <= 5.0 => 6,
        m if m.is_nan() => 0,
        _ => 7,
    };
    code | if x.is_sign_negative() && !x.is_nan() { 8 } else { 0 }
}
