//! Index operands.

use std::marker::PhantomData;

use crate::buffer::View;
use crate::cpu::CpuCx;
use crate::spec::KernelError;

/// The values of an i32 operand `[n]` with a contiguous axis, which no thread writes meanwhile.
#[derive(Clone, Copy)]
pub(super) struct Indices<'a> {
    base: *const i32,
    len: usize,
    view: PhantomData<&'a View>,
}

// SAFETY: a pointer into memory that the view keeps alive and that is only read.
unsafe impl Send for Indices<'_> {}
// SAFETY: as above.
unsafe impl Sync for Indices<'_> {}

impl<'a> Indices<'a> {
    /// All of a vector.
    pub(super) fn new(cx: &CpuCx, view: &'a View) -> Result<Self, KernelError> {
        Ok(Self { base: cx.input(view)?, len: view.len(), view: PhantomData })
    }

    /// Value `at`.
    pub(super) fn get(&self, at: usize) -> i32 {
        assert!(at < self.len);
        // SAFETY: within the vector; `spec` checked that outputs do not overlap it.
        unsafe { *self.base.add(at) }
    }

    /// All values.
    pub(super) fn iter(&self) -> impl Iterator<Item = i32> + '_ {
        (0..self.len).map(|at| self.get(at))
    }
}
