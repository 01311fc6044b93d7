//! Buffers of whole pictures.

use bytemuck::Zeroable;

/// A buffer of `len` zeros, `None` where there is no memory for it. Large ones ask for large pages: a picture of twelve
/// megapixels is else touched page by page for as long as its colours are converted.
pub(crate) fn zeroed<T: Zeroable>(len: usize) -> Option<Vec<T>> {
    let buffer: Vec<T> = bytemuck::allocation::try_zeroed_vec(len).ok()?;
    #[cfg(target_os = "linux")]
    advise_large_pages(buffer.as_ptr().cast(), size_of_val(&buffer[..]));
    Some(buffer)
}

/// Asks for large pages where they lie wholly within `bytes` bytes at `start`, at least two of them.
#[cfg(target_os = "linux")]
fn advise_large_pages(start: *const u8, bytes: usize) {
    /// Of x86-64, and of 64-bit Arm with small pages of 4 KiB. Others get what they ask for or nothing.
    const LARGE: usize = 2 << 20;
    let skipped = start.align_offset(LARGE);
    let inside = bytes.saturating_sub(skipped) / LARGE * LARGE;
    if inside >= 2 * LARGE {
        // SAFETY: the range lies within one allocation; the advice changes no content, and its failure does not matter.
        unsafe { libc::madvise(start.add(skipped).cast_mut().cast(), inside, libc::MADV_HUGEPAGE) };
    }
}
