//! Codes of 4 bits whose values are a table of 16: what their folders share.

use super::Decoder;
use crate::cpu::simd::{MAX_LANES, Simd};

/// The field whose value is nearest to `x`; of two equally near ones the first in the table.
#[must_use]
pub fn nearest(values: &[f32; 16], x: f32) -> u8 {
    let (low, high) = range(values);
    let x = if x.is_nan() { 0.0 } else { x.clamp(low, high) };
    let mut best = 0;
    for (field, value) in values.iter().enumerate() {
        if (value - x).abs() < (values[best] - x).abs() {
            best = field;
        }
    }
    best as u8
}

/// Smallest and largest value.
#[must_use]
pub const fn range(values: &[f32; 16]) -> (f32, f32) {
    let (mut low, mut high, mut i) = (values[0], values[0], 1);
    while i < values.len() {
        if values[i] < low {
            low = values[i];
        }
        if values[i] > high {
            high = values[i];
        }
        i += 1;
    }
    (low, high)
}

/// The decoder of such codes.
#[derive(Clone, Copy, Debug)]
pub struct Table(pub &'static [f32; 16]);

impl Decoder for Table {
    const BITS: usize = 4;
    const CENTRE: u32 = 0;
    const UNIT: f32 = 1.0;

    #[inline(always)]
    fn split<S: Simd>(self, _: S, words: S::I) -> (S::I, S::I) {
        (words, words)
    }

    #[inline(always)]
    fn field<S: Simd, const J: usize>(self, s: S, (words, _): (S::I, S::I)) -> S::V {
        let index = match J {
            0 => words,
            1 => s.shr_i::<4>(words),
            2 => s.shr_i::<8>(words),
            3 => s.shr_i::<12>(words),
            4 => s.shr_i::<16>(words),
            5 => s.shr_i::<20>(words),
            6 => s.shr_i::<24>(words),
            _ => s.shr_i::<28>(words),
        };
        s.look_up(self.0, index)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(self, s: S, p: *const u8) -> S::V {
        // SAFETY: as the caller vouches.
        s.look_up(self.0, s.to_int(unsafe { s.load_u4(p) }))
    }

    #[inline(always)]
    fn one(self, field: u8) -> f32 {
        self.0[usize::from(field & 15)]
    }
}

const _: () = assert!(MAX_LANES <= 16, "a table in one or two vectors");
