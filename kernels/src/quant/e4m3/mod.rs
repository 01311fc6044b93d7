//! E4M3FN: 8-bit floats of a sign, 4 bits of exponent (bias 7) and 3 of mantissa, without infinities (OCP 8-bit floating
//! point, 2023). The largest is 448, the smallest above zero 2^-9.
//!
//! The codes 0x7f and 0xff are NaN. No encoder of weights writes them, and kernels may take them for ±480, which is what the
//! other codes' rule gives.

pub mod cpu;

/// Spelling in formats.
pub const NAME: &str = "fp8";
/// Bits of a code.
pub const BITS: usize = 8;
/// No integers.
pub const CENTRE: Option<u8> = None;
/// The largest finite value.
pub const MAX: f32 = 448.0;
/// Smallest and largest value.
pub const RANGE: (f32, f32) = (-MAX, MAX);
/// Whether 16-bit floats hold every value.
pub const HALVES: bool = true;
/// Decoder of Rust SIMD kernels.
pub const DECODER: cpu::E4m3 = cpu::E4m3;

/// The value of a code; ±480 for NaN.
#[must_use]
pub fn value(code: u8) -> f32 {
    let magnitude = u32::from(code & 0x7f);
    let value = if magnitude < 8 {
        magnitude as f32 / 512.0
    } else {
        // The exponent's bias becomes that of f32.
        f32::from_bits((magnitude << 20) + ((127 - 7) << 23))
    };
    if code & 0x80 == 0 { value } else { -value }
}

/// The code nearest to `x`, ties to even; values beyond the largest become that. NaN becomes 0x7f.
#[must_use]
pub fn nearest(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    if x.is_nan() {
        return 0x7f;
    }
    let x = x.abs().min(MAX);
    // The step between neighbours at this size: a power of two, so that dividing by it is exact.
    let exponent = ((x.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (x / f32::from_bits(((exponent - 3 + 127) as u32) << 23)).round_ties_even() as i32;
    // 8 steps is the least normal value of an exponent; 16 carries into the next one.
    let code = if steps < 8 { steps } else { (exponent + 7) * 8 + steps - 8 };
    sign | code as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_their_own_nearest_and_values_ascend() {
        assert_eq!((value(0x7e), value(1), value(0x38), value(0xb8)), (448.0, 0.001_953_125, 1.0, -1.0));
        for code in 0..0x7f_u8 {
            assert_eq!((nearest(value(code)), nearest(-value(code))), (code, code | 0x80));
            assert_eq!(value(code | 0x80), -value(code));
            assert!(value(code) < value(code + 1));
        }
    }

    #[test]
    fn what_lies_between_goes_to_the_nearer_and_ties_to_even_codes() {
        for code in 0..0x7e_u8 {
            let (low, high) = (value(code), value(code + 1));
            let middle = (low + high) / 2.0;
            assert_eq!(nearest(middle), code + code % 2, "{middle}");
            assert_eq!(nearest(middle - (high - low) / 64.0), code);
            assert_eq!(nearest(middle + (high - low) / 64.0), code + 1);
        }
        assert_eq!((nearest(1e9), nearest(f32::NEG_INFINITY), nearest(464.1)), (0x7e, 0xfe, 0x7e));
        assert_eq!(nearest(f32::NAN), 0x7f);
    }
}
