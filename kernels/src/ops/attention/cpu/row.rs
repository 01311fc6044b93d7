//! What a head of keys or values is made of.

use half::{bf16, f16};

use crate::cpu::simd::Elem;

/// A type of elements of keys and values: numbers, or codes of a head that has a scale.
pub(super) trait Row: Elem {
    /// Whether elements are codes.
    const SCALED: bool = false;

    /// What the elements of a head are to be multiplied by.
    ///
    /// # Safety
    /// `head` is the first element of a head of `head_dim` in pages of this type.
    #[inline(always)]
    unsafe fn scale(_head: *const Self, _head_dim: usize) -> f32 {
        1.0
    }
}

impl Row for f32 {}
impl Row for bf16 {}
impl Row for f16 {}

impl Row for i8 {
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn scale(head: *const i8, head_dim: usize) -> f32 {
        // SAFETY: the scale is behind the codes.
        unsafe { head.add(head_dim).cast::<f32>().read_unaligned() }
    }
}
