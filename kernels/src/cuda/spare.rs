//! Host blocks that answers of the device came through, kept for those that follow.

/// Blocks that are kept at most.
const MOST: usize = 8;
/// Bytes of the smallest block, and of the largest that is kept.
const LEAST_BYTES: usize = 4 << 10;
const MOST_BYTES: usize = 8 << 20;

/// Blocks of these lengths.
pub(super) struct Spares<T>(Vec<(usize, T)>);

impl<T> Default for Spares<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Spares<T> {
    /// Bytes of a new block for an answer of `bytes`: those of some size serve others of about that size too.
    pub fn len_for(bytes: usize) -> usize {
        if bytes > MOST_BYTES { bytes } else { bytes.next_power_of_two().max(LEAST_BYTES) }
    }

    /// The smallest block with room for `bytes`.
    pub fn take(&mut self, bytes: usize) -> Option<T> {
        let fits = |(_, (len, _)): &(usize, &(usize, T))| *len >= bytes;
        let at = self.0.iter().enumerate().filter(fits).min_by_key(|(_, (len, _))| *len)?.0;
        Some(self.0.swap_remove(at).1)
    }

    /// Keeps a block of `len` bytes, or gives back the smallest one where there are enough: a larger one serves in its place.
    pub fn keep(&mut self, len: usize, block: T) -> Option<T> {
        if len > MOST_BYTES {
            return Some(block);
        }
        self.0.push((len, block));
        let at = self.0.iter().enumerate().min_by_key(|(_, (len, _))| *len)?.0;
        (self.0.len() > MOST).then(|| self.0.swap_remove(at).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_get_the_smallest_block_that_has_room() {
        let mut spares = Spares::default();
        for (len, block) in [(8192, 'b'), (4096, 'a'), (1 << 20, 'c')] {
            assert_eq!(spares.keep(len, block), None);
        }
        assert_eq!((spares.take(4), spares.take(5000)), (Some('a'), Some('b')));
        assert_eq!((spares.take(4097), spares.take(1)), (Some('c'), None));
        assert_eq!(spares.keep(MOST_BYTES + 1, 'd'), Some('d'));
    }

    #[test]
    fn small_blocks_make_room_for_large_ones() {
        let mut spares = Spares::default();
        (0..MOST).for_each(|i| assert_eq!(spares.keep(LEAST_BYTES, i), None));
        assert!(spares.keep(MOST_BYTES, MOST).is_some_and(|gone| gone < MOST));
        assert_eq!(spares.take(LEAST_BYTES + 1), Some(MOST));
        let len = Spares::<()>::len_for;
        assert_eq!([0, 4097, MOST_BYTES, MOST_BYTES + 1].map(len), [4096, 8192, MOST_BYTES, MOST_BYTES + 1]);
    }
}
