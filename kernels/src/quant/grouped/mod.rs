//! Codes in groups that share a scale: `w = (q - zero) * scale`; see [`Grouped`](crate::Grouped) for the planes.

pub mod cpu;
mod encode;

pub use encode::{decode, encode};

use super::e4m3;
use crate::spec::Code;

/// The code of number `index` in the 32-bit word that holds it, low bits first.
#[must_use]
pub const fn field(word: i64, index: usize, bits: usize) -> u8 {
    (((word as u32) >> (index % (32 / bits) * bits)) & ((1 << bits) - 1)) as u8
}

/// What code number `index` in the word that holds it stands for.
#[must_use]
pub fn value(code: Code, word: i64, index: usize) -> f32 {
    let bits = code.bits();
    let field = field(word, index, bits);
    if code.is_int() { f32::from(i16::from(field) - (1 << (bits - 1))) } else { e4m3::value(field) }
}
