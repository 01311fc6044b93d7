//! Aligned working memory that kernels reuse: after the first calls nothing is allocated.

use std::alloc::{Layout, handle_alloc_error};
use std::cell::RefCell;

use crate::zeroed::Zeroed;

/// Alignment of scratch memory: a cache line, and the widest vector.
pub const ALIGN: usize = 64;

thread_local! {
    /// Buffers that no kernel on this thread holds at the moment.
    static FREE: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

struct Buffer {
    zeros: Zeroed,
    bytes: usize,
}

impl Buffer {
    fn grown(bytes: usize) -> Buffer {
        assert!(bytes <= isize::MAX as usize / 2, "scratch of {bytes} bytes");
        let bytes = bytes.next_multiple_of(4096);
        match Zeroed::new(bytes, ALIGN) {
            Some(zeros) => Buffer { zeros, bytes },
            None => handle_alloc_error(Layout::array::<u8>(bytes).unwrap_or(Layout::new::<u8>())),
        }
    }
}

fn largest(free: &mut Vec<Buffer>) -> Option<Buffer> {
    let i = free.iter().enumerate().max_by_key(|(_, b)| b.bytes).map(|(i, _)| i)?;
    Some(free.swap_remove(i))
}

/// A grow-only buffer borrowed from the thread's store, given back on drop. Contents are unspecified but initialized.
///
/// Scratches nest: a second one on the same thread is another buffer.
#[derive(Default)]
pub struct Scratch(Option<Buffer>);

impl Scratch {
    /// An empty scratch, which takes a buffer when it is first asked for bytes.
    pub const fn new() -> Scratch {
        Scratch(None)
    }

    /// `len` bytes, aligned to [`ALIGN`].
    pub fn bytes(&mut self, len: usize) -> &mut [u8] {
        if len == 0 {
            return &mut [];
        }
        if self.0.is_none() {
            self.0 = FREE.try_with(|f| largest(&mut f.borrow_mut())).ok().flatten();
        }
        if self.0.as_ref().is_none_or(|b| b.bytes < len) {
            // The old buffer goes first: a store never holds a buffer and its replacement.
            self.0 = None;
            self.0 = Some(Buffer::grown(len));
        }
        match &mut self.0 {
            // SAFETY: `bytes >= len` initialized bytes, borrowed through `&mut self`.
            Some(b) => unsafe { std::slice::from_raw_parts_mut(b.zeros.base().as_ptr(), len) },
            None => &mut [],
        }
    }

    /// `len` values, aligned to [`ALIGN`].
    pub fn slice<T: bytemuck::Pod>(&mut self, len: usize) -> &mut [T] {
        assert!(align_of::<T>() <= ALIGN);
        if len == 0 {
            return &mut [];
        }
        bytemuck::cast_slice_mut(self.bytes(len * size_of::<T>()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(b) = self.0.take() {
            // A thread that is ending frees the buffer instead.
            let _ = FREE.try_with(|f| f.borrow_mut().push(b));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_reused_and_nest() {
        let mut a = Scratch::new();
        let pa = a.bytes(1000).as_mut_ptr();
        assert_eq!(pa as usize % ALIGN, 0);
        a.slice::<f32>(100).fill(1.0);
        let mut b = Scratch::new();
        b.slice::<f32>(100).fill(2.0);
        assert!(a.slice::<f32>(100).iter().all(|x| *x == 1.0));
        assert_eq!(a.bytes(100_000).len(), 100_000);
        drop(b);
        let grown = a.bytes(100_000).as_ptr();
        drop(a);
        let mut c = Scratch::new();
        assert_eq!(c.bytes(10).as_ptr(), grown);
        assert!(Scratch::new().bytes(0).is_empty() && Scratch::new().slice::<u64>(0).is_empty());
    }
}
