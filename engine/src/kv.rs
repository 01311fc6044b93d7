//! Keys and values in pages, in groups of layers that keep the same tokens.

use ocelli_kernels::{DType, View};

use crate::ctx::Ctx;
use crate::error::{Error, Result};

/// Tokens of a page.
pub const PAGE: usize = 16;

/// What the layers of a group keep of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Every token.
    All,
    /// Tokens that a query sees which sees the last so many, itself included. Pages behind them go back to the pool.
    Window(usize),
}

/// Layers that keep keys and values of the same tokens, in one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvGroup {
    /// Layers. A text layer names its group and its number in it; two may name the same.
    pub layers: usize,
    /// Key heads of a layer.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// What is kept.
    pub keep: Keep,
}

impl KvGroup {
    /// Bytes that a kept token takes, keys and values of all layers.
    #[must_use]
    pub fn bytes_per_token(&self, dtype: DType) -> u64 {
        (2 * self.layers * self.heads * self.head_dim * dtype.size()) as u64
    }

    /// Most tokens, in whole pages, that a sequence of `tokens` holds while passes add at most `chunk` at once.
    #[must_use]
    pub fn tokens_held(&self, tokens: usize, chunk: usize) -> usize {
        let held = match self.keep {
            Keep::All => tokens,
            // The first page kept may hold one token that is needed, the last one may have one.
            Keep::Window(window) => tokens.min(window.saturating_add(chunk) + 2 * PAGE),
        };
        held.next_multiple_of(PAGE)
    }
}

impl KvGroup {
    /// Pages that a sequence of `len` tokens holds once those that no token to come sees have gone back.
    #[must_use]
    pub fn pages_at(&self, len: usize) -> usize {
        len.div_ceil(PAGE) - behind(self.keep, len)
    }

    /// Pages that `new` more tokens take, in any group.
    #[must_use]
    pub fn pages_more(len: usize, new: usize) -> usize {
        len.saturating_add(new).div_ceil(PAGE) - len.div_ceil(PAGE)
    }
}

/// What a model keeps of a sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvLayout(pub Vec<KvGroup>);

impl KvLayout {
    /// One group of layers that keep every token.
    #[must_use]
    pub fn all(layers: usize, heads: usize, head_dim: usize) -> Self {
        Self(vec![KvGroup { layers, heads, head_dim, keep: Keep::All }])
    }

    /// Bytes that a token takes in all groups, before any leaves its window.
    #[must_use]
    pub fn bytes_per_token(&self, dtype: DType) -> u64 {
        self.0.iter().map(|group| group.bytes_per_token(dtype)).sum()
    }

    /// Layers of all groups.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.0.iter().map(|group| group.layers).sum()
    }
}

/// A sequence in a [`KvCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeqId(usize);

/// A page that has gone back to the pool.
const GONE: u32 = u32::MAX;

#[derive(Default)]
struct Seq {
    /// Pages of each group, in order; [`GONE`] for those behind a window.
    pages: Vec<Vec<u32>>,
    len: usize,
    used: bool,
}

struct Pool {
    group: KvGroup,
    /// Keys and values of each layer, `[pages, PAGE, heads, head_dim]`.
    layers: Vec<(View, View)>,
    free: Vec<u32>,
    pages: usize,
}

impl Pool {
    /// Takes the pages back that the next token of a sequence of `len` tokens does not see.
    fn trim(&mut self, len: usize, pages: &mut [u32]) {
        let leaves = behind(self.group.keep, len).min(pages.len());
        for page in &mut pages[..leaves] {
            if *page != GONE {
                self.free.push(std::mem::replace(page, GONE));
            }
        }
    }
}

/// Pages of keys and values of all layers, and which sequence holds which.
pub struct KvCache {
    pools: Vec<Pool>,
    seqs: Vec<Seq>,
}

impl KvCache {
    /// For each group, pages for so many tokens, each sequence rounded up to whole pages by the caller.
    pub fn new(cx: &mut Ctx, layout: &KvLayout, tokens: &[usize]) -> Result<Self> {
        let mut pools = Vec::with_capacity(layout.0.len());
        for (&group, &tokens) in layout.0.iter().zip(tokens) {
            let pages = tokens.div_ceil(PAGE);
            let shape = [pages, PAGE, group.heads, group.head_dim];
            let dtype = cx.dtype();
            let mut layers = Vec::new();
            for _ in 0..group.layers {
                let (k, v) = (cx.alloc_owned(&shape, dtype)?, cx.alloc_owned(&shape, dtype)?);
                layers.push((k.view().clone(), v.view().clone()));
            }
            let free = (0..u32::try_from(pages).unwrap_or(GONE)).rev().collect();
            pools.push(Pool { group, layers, free, pages });
        }
        Ok(Self { pools, seqs: Vec::new() })
    }

    /// Room for `tokens` tokens of one sequence that comes in chunks of at most `chunk`.
    pub fn for_one(cx: &mut Ctx, layout: &KvLayout, tokens: usize, chunk: usize) -> Result<Self> {
        let held: Vec<usize> = layout.0.iter().map(|group| group.tokens_held(tokens, chunk)).collect();
        Self::new(cx, layout, &held)
    }

    /// The groups.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = KvGroup> {
        self.pools.iter().map(|pool| pool.group)
    }

    /// Pages of keys and of values of a layer of a group, `[pages, PAGE, heads, head_dim]` each.
    #[must_use]
    pub fn layer(&self, group: usize, layer: usize) -> Option<&(View, View)> {
        self.pools.get(group)?.layers.get(layer)
    }

    /// Pages of keys and of values of every layer.
    pub fn layers(&self) -> impl Iterator<Item = &(View, View)> {
        self.pools.iter().flat_map(|pool| &pool.layers)
    }

    /// Free pages of a group.
    #[must_use]
    pub fn free_pages(&self, group: usize) -> usize {
        self.pools.get(group).map_or(0, |pool| pool.free.len())
    }

    /// Pages of a group that sequences hold.
    #[must_use]
    pub fn used_pages(&self, group: usize) -> usize {
        self.pools.get(group).map_or(0, |pool| pool.pages - pool.free.len())
    }

    /// An empty sequence.
    pub fn open(&mut self) -> SeqId {
        let id = self.seqs.iter().position(|seq| !seq.used).unwrap_or(self.seqs.len());
        if id == self.seqs.len() {
            self.seqs.push(Seq::default());
        }
        self.seqs[id] = Seq { pages: vec![Vec::new(); self.pools.len()], len: 0, used: true };
        SeqId(id)
    }

    /// Gives the pages of a sequence back.
    pub fn close(&mut self, id: SeqId) {
        let Some(seq) = self.seqs.get_mut(id.0) else { return };
        for (pool, pages) in self.pools.iter_mut().zip(&mut seq.pages) {
            pool.free.extend(pages.drain(..).rev().filter(|&page| page != GONE));
        }
        *seq = Seq::default();
    }

    /// Tokens that a sequence has had, those behind windows included.
    #[must_use]
    pub fn len(&self, id: SeqId) -> usize {
        self.seqs.get(id.0).map_or(0, |seq| seq.len)
    }

    /// Whether no sequence is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seqs.iter().all(|seq| !seq.used)
    }

    /// Pages of a group that hold a sequence's tokens, in order; 0 for those that no query to come sees.
    pub fn pages(&self, id: SeqId, group: usize) -> impl Iterator<Item = u32> {
        let pages = self.seqs.get(id.0).and_then(|seq| seq.pages.get(group));
        pages.into_iter().flatten().map(|&page| if page == GONE { 0 } else { page })
    }

    /// Pages that each group lacks to make a sequence longer, once what is behind its window has gone back: what must be free.
    #[must_use]
    pub fn pages_needed(&self, id: SeqId, tokens: usize) -> Vec<usize> {
        let Some(seq) = self.seqs.get(id.0) else { return vec![0; self.pools.len()] };
        let need = (seq.len + tokens).div_ceil(PAGE);
        let pools = self.pools.iter().zip(&seq.pages);
        pools
            .map(|(pool, pages)| {
                let leaves = behind(pool.group.keep, seq.len).min(pages.len());
                let leaving = pages[..leaves].iter().filter(|&&page| page != GONE).count();
                need.saturating_sub(pages.len()).saturating_sub(leaving)
            })
            .collect()
    }

    /// Makes a sequence longer and gives the slots of the new tokens in each group. Pages that none of the new tokens sees go back
    /// to the pool first. Errors if the pages do not suffice; nothing is changed then but that.
    pub fn extend(&mut self, id: SeqId, tokens: usize) -> Result<Vec<Vec<i32>>> {
        let seq = self.seqs.get_mut(id.0).filter(|seq| seq.used);
        let seq = seq
            .ok_or_else(|| Error::Request("KV cache: a sequence was used after it had been closed".into()))?;
        let need = (seq.len + tokens).div_ceil(PAGE);
        for (pool, pages) in self.pools.iter_mut().zip(&mut seq.pages) {
            pool.trim(seq.len, pages);
        }
        for (pool, pages) in self.pools.iter().zip(&seq.pages) {
            let more = need.saturating_sub(pages.len());
            if more > pool.free.len() {
                return Err(Error::Request(format!(
                    "KV cache: {} tokens need {more} more pages of {PAGE}, {} of {} are free",
                    seq.len + tokens,
                    pool.free.len(),
                    pool.pages
                )));
            }
        }
        let mut slots = Vec::with_capacity(self.pools.len());
        for (pool, pages) in self.pools.iter_mut().zip(&mut seq.pages) {
            while pages.len() < need {
                pages.extend(pool.free.pop());
            }
            let slot = |token: usize| (pages[token / PAGE] as usize * PAGE + token % PAGE) as i32;
            slots.push((seq.len..seq.len + tokens).map(slot).collect());
        }
        seq.len += tokens;
        Ok(slots)
    }

    /// Gives back the pages that no token to come sees.
    pub fn trim(&mut self, id: SeqId) {
        let Some(seq) = self.seqs.get_mut(id.0) else { return };
        for (pool, pages) in self.pools.iter_mut().zip(&mut seq.pages) {
            pool.trim(seq.len, pages);
        }
    }

    /// Whether all that a sequence's next token sees is there: not so if it was cut back to before what is behind a window.
    #[must_use]
    pub fn is_whole(&self, id: SeqId) -> bool {
        let Some(seq) = self.seqs.get(id.0) else { return false };
        self.pools.iter().zip(&seq.pages).all(|(pool, pages)| {
            pages.iter().skip(behind(pool.group.keep, seq.len)).all(|&page| page != GONE)
        })
    }

    /// Forgets the last tokens of a sequence, which then has `len`; what was behind a window before stays gone.
    pub fn truncate(&mut self, id: SeqId, len: usize) {
        let Some(seq) = self.seqs.get_mut(id.0) else { return };
        seq.len = seq.len.min(len);
        let keep = seq.len.div_ceil(PAGE);
        for (pool, pages) in self.pools.iter_mut().zip(&mut seq.pages) {
            let keep = keep.min(pages.len());
            pool.free.extend(pages.drain(keep..).rev().filter(|&page| page != GONE));
        }
    }
}

/// Pages at the beginning of a sequence of `len` tokens that the next token and those after it do not see.
fn behind(keep: Keep, len: usize) -> usize {
    match keep {
        Keep::All => 0,
        Keep::Window(window) => (len + 1).saturating_sub(window) / PAGE,
    }
}

#[cfg(test)]
mod tests {
    use ocelli_kernels::Caps;

    use super::*;
    use crate::ctx::Precision;

    fn cache(groups: &[KvGroup], tokens: &[usize]) -> KvCache {
        let (mut cx, _) = Ctx::dry(Caps::default(), Precision::default());
        KvCache::new(&mut cx, &KvLayout(groups.to_vec()), tokens).unwrap()
    }

    const ALL: KvGroup = KvGroup { layers: 2, heads: 1, head_dim: 2, keep: Keep::All };

    #[test]
    fn pages_come_and_go() {
        let mut kv = cache(&[ALL], &[5 * PAGE]);
        let (a, b) = (kv.open(), kv.open());
        assert_eq!(kv.extend(a, PAGE + 1).unwrap()[0].len(), PAGE + 1);
        assert_eq!(kv.extend(b, 2 * PAGE).unwrap()[0][0], 2 * PAGE as i32);
        assert_eq!(kv.free_pages(0), 1);
        kv.extend(a, PAGE - 1).unwrap();
        assert_eq!(kv.pages_needed(a, 1), [1]);
        kv.extend(a, 1).unwrap();
        assert!(kv.extend(b, 1).is_err(), "page 5 is taken");
        assert_eq!(kv.len(b), 2 * PAGE, "a refused extension changes nothing");
        kv.truncate(a, PAGE);
        assert_eq!((kv.len(a), kv.free_pages(0)), (PAGE, 2));
        kv.close(a);
        assert_eq!(kv.free_pages(0), 3);
        assert!(kv.extend(a, 1).is_err());
        assert_eq!(kv.extend(b, 3 * PAGE).unwrap()[0].len(), 3 * PAGE);
        kv.close(b);
        assert!(kv.is_empty() && kv.free_pages(0) == 5);
    }

    /// A sequence far longer than its window holds the pages of the window and no more, and its slots are those of its pages.
    #[test]
    fn pages_behind_a_window_return() {
        let window = 3 * PAGE + 5;
        let group = KvGroup { keep: Keep::Window(window), ..ALL };
        let held = group.tokens_held(100_000, 7);
        let mut kv = cache(&[ALL, group], &[20_000, held]);
        let seq = kv.open();
        let mut most = 0;
        for step in 0..1500 {
            let new = 1 + step % 7;
            let needed = kv.pages_needed(seq, new);
            assert!(needed[1] <= kv.free_pages(1));
            let slots = kv.extend(seq, new).unwrap();
            most = most.max(kv.used_pages(1));
            let pages: Vec<u32> = kv.pages(seq, 1).collect();
            let first = (kv.len(seq) - new + 1).saturating_sub(window);
            for token in first..kv.len(seq) {
                let page = pages[token / PAGE];
                assert_eq!(
                    pages[first / PAGE..].iter().filter(|&&other| other == page).count(),
                    1,
                    "pages are one's own"
                );
            }
            assert_eq!(slots[1][0] as usize / PAGE, pages[(kv.len(seq) - new) / PAGE] as usize);
        }
        assert!(kv.len(seq) > 5000 && most * PAGE <= held, "{most} pages of {held} tokens");
        kv.close(seq);
        assert_eq!((kv.used_pages(0), kv.used_pages(1)), (0, 0));
    }
}
