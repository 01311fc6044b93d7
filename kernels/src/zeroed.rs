//! Aligned zeros, there from the beginning or where they are written.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Alignment up to which the system's allocator gives zeros as the kernel hands them out; beyond it they would be written, and so be there.
const PLAIN: usize = 16;

/// Some bytes, all zero at first.
pub(crate) struct Zeroed {
    start: NonNull<u8>,
    layout: Layout,
    /// The first aligned byte.
    base: NonNull<u8>,
}

// SAFETY: it owns its memory, and gives out nothing but where it lies.
unsafe impl Send for Zeroed {}
// SAFETY: as above.
unsafe impl Sync for Zeroed {}

impl Zeroed {
    /// `len` bytes, aligned to a power of two; `None` if there is no room. They are in memory: what is used whole is so faster, by one
    /// thread at once, than where several threads meet pages that are not there.
    pub fn new(len: usize, align: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len.max(1), align.max(2 * PLAIN)).ok()?;
        // SAFETY: the size is at least one.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { start, layout, base: start })
    }

    /// The same of which a page takes memory when it is first written.
    pub fn reserved(len: usize, align: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len.checked_add(align)?, PLAIN).ok()?;
        // SAFETY: the size is at least the alignment.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skipped = start.as_ptr().align_offset(align).min(align);
        // SAFETY: there are `align` bytes more than were asked for.
        let base = unsafe { start.add(skipped) };
        Some(Self { start, layout, base })
    }

    /// The first byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Zeroed {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and dropped once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_zeros() {
        for make in [Zeroed::new, Zeroed::reserved] {
            for (len, align) in [(1, 64), (1000, 64), (1 << 20, 4096), (0, 16)] {
                let zeros = make(len, align).expect("memory");
                assert_eq!(zeros.base().as_ptr() as usize % align, 0);
                // SAFETY: so many bytes are there.
                let bytes = unsafe { std::slice::from_raw_parts(zeros.base().as_ptr(), len) };
                assert!(bytes.iter().all(|&byte| byte == 0));
            }
            assert!(make(usize::MAX, 64).is_none() && make(isize::MAX as usize, 64).is_none());
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn reserved_zeros_take_no_memory() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").expect("a status");
            let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("a size").to_owned();
            line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("a number") << 10
        };
        let (before, len) = (resident(), 1 << 30);
        let zeros = Zeroed::reserved(len, 64).expect("memory");
        // SAFETY: the byte is there.
        unsafe { zeros.base().add(len / 2).write(1) };
        let more = resident().saturating_sub(before);
        assert!(more < len / 2, "{more} bytes");
    }
}
