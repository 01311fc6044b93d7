//! What prompts have in common: pages of keys and values that a request begins with because others have read the same before.
//!
//! A page is known by a hash of all that its keys and values follow from, the pages before it included: equal hashes mean equal
//! pages. Sequences that have ended are kept, the least recently used of them only as long as nobody else needs their pages.

use blake3::Hasher;

use super::request::Media;
use crate::image::Key;
use crate::kv::{KvCache, PAGE, SeqId};
use crate::prompt::{Positions, Prompt};

/// Hashes of the full pages of a sequence that begins with a prompt and has these tokens; none where its pages follow from more than
/// can be compared: an encoder's text, features that were given.
pub(super) fn chain(prompt: &Prompt, media: &[Media], adapter: Option<&str>, tokens: &[u32]) -> Vec<Key> {
    let keys: Option<Vec<Key>> = media.iter().map(Media::key).collect();
    let Some(keys) = keys.filter(|_| prompt.source.tokens.is_empty()) else { return Vec::new() };
    let number = |hash: &mut Hasher, value: usize| {
        hash.update(&(value as u64).to_le_bytes());
    };
    let mut root = Hasher::new();
    if let Some(adapter) = adapter {
        number(&mut root, adapter.len());
        root.update(adapter.as_bytes());
    }
    if prompt.memory_rows() > 0 {
        for (media, key) in keys.iter().enumerate() {
            let rows = |rows: &[usize]| rows.get(media).copied().unwrap_or(0);
            root.update(key);
            number(&mut root, rows(&prompt.memory));
            number(&mut root, rows(&prompt.rest));
        }
    }
    let mut last: Key = root.finalize().into();
    let mut chain = Vec::with_capacity(tokens.len() / PAGE);
    for (page, tokens) in tokens.chunks_exact(PAGE).enumerate() {
        let (start, end) = (page * PAGE, (page + 1) * PAGE);
        let mut hash = Hasher::new();
        hash.update(&last).update(bytemuck::cast_slice(tokens));
        let first = prompt.spans.partition_point(|span| span.tokens().end <= start);
        for span in prompt.spans[first..].iter().take_while(|span| span.at < end) {
            hash.update(&keys[span.media]);
            for value in [span.rows.start, span.rows.end, span.at] {
                number(&mut hash, value);
            }
        }
        if let Positions::Axes { .. } = prompt.positions {
            for token in start..end {
                hash.update(bytemuck::bytes_of(&prompt.position(token)));
            }
        }
        let first = prompt.blocks.partition_point(|block| block.end <= start);
        for block in prompt.blocks[first..].iter().take_while(|block| block.start < end) {
            number(&mut hash, block.start);
            number(&mut hash, block.end);
        }
        if !prompt.reaches.is_empty() {
            for token in start..end {
                let rows = prompt.reach(token);
                [rows.start, rows.end, prompt.reached(token).into()]
                    .into_iter()
                    .for_each(|value| number(&mut hash, value));
            }
        }
        last = hash.finalize().into();
        chain.push(last);
    }
    chain
}

/// Pages that two sequences have in common.
pub(super) fn common(a: &[Key], b: &[Key]) -> usize {
    // Equal hashes mean equal pages before.
    let most = a.len().min(b.len());
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = (low + high).div_ceil(2);
        match a[middle - 1] == b[middle - 1] {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    low
}

/// The most of `pages` that a sequence which begins with `prompt` can take from another: a block is taken whole or not at all, and a
/// token of the prompt is left to read.
pub(super) fn whole(prompt: &Prompt, pages: usize) -> usize {
    let mut pages = pages.min(prompt.len().saturating_sub(1) / PAGE);
    while let Some(block) = prompt.block_of(pages * PAGE).filter(|block| block.start < pages * PAGE) {
        pages = block.start / PAGE;
    }
    pages
}

/// A sequence that has ended.
struct Kept {
    seq: SeqId,
    chain: Vec<Key>,
    used: u64,
}

/// Sequences that have ended, for others to begin with.
pub(super) struct Prefixes {
    /// Most of them.
    most: usize,
    kept: Vec<Kept>,
    now: u64,
}

impl Prefixes {
    pub fn new(most: usize) -> Self {
        Self { most, kept: Vec::new(), now: 0 }
    }

    /// Whether sequences are kept at all.
    pub fn is_on(&self) -> bool {
        self.most > 0
    }

    /// The sequence with most pages in common, and how many.
    pub fn find(&mut self, chain: &[Key]) -> Option<(SeqId, usize)> {
        let pages = |kept: &Kept| common(chain, &kept.chain);
        let best = self.kept.iter_mut().max_by_key(|kept| pages(kept))?;
        let pages = pages(best);
        (pages > 0).then(|| {
            self.now += 1;
            best.used = self.now;
            (best.seq, pages)
        })
    }

    /// Keeps an open sequence that nobody runs any more, whose full pages are these; or closes it.
    pub fn keep(&mut self, kv: &mut KvCache, seq: SeqId, chain: Vec<Key>) {
        let pages = chain.len();
        self.now += 1;
        if let Some(longer) = self.kept.iter_mut().find(|kept| common(&chain, &kept.chain) == pages) {
            longer.used = self.now;
            return kv.close(seq);
        }
        kv.truncate(seq, pages * PAGE);
        let (shorter, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.kept)
            .into_iter()
            .partition(|kept| common(&chain, &kept.chain) == kept.chain.len());
        shorter.into_iter().for_each(|kept| kv.close(kept.seq));
        self.kept = others;
        kv.keep(seq);
        self.kept.push(Kept { seq, chain, used: self.now });
        if self.kept.len() > self.most {
            self.forget_one(kv);
        }
    }

    /// Closes the sequence that was used least recently; false if there is none.
    pub fn forget_one(&mut self, kv: &mut KvCache) -> bool {
        let Some(place) = (0..self.kept.len()).min_by_key(|&place| self.kept[place].used) else {
            return false;
        };
        kv.close(self.kept.swap_remove(place).seq);
        true
    }
}

#[cfg(test)]
#[path = "prefix_tests.rs"]
mod tests;
