//! Grouped integers: `w = (q - zero) * scale`, in the compressed-tensors `pack-quantized` layout; see
//! [`Format::IntGroup`](crate::Format::IntGroup) for the planes.

pub mod cpu;
mod encode;

pub use encode::{decode, encode};

/// The signed value of field `index` in the 32-bit word that holds it: offset binary, low bits first.
#[must_use]
pub fn field(word: i64, index: usize, bits: u8) -> i64 {
    let per_word = 32 / bits as usize;
    let raw = (word as u32) >> (index % per_word * bits as usize) & ((1u32 << bits) - 1);
    i64::from(raw) - (1i64 << (bits - 1))
}
