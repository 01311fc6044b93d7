//! What a model keeps of sequences: keys and values in pages, in groups of layers that keep the same tokens, and states in slots.

use ocelli_kernels::ops::kept_elements;
use ocelli_kernels::{DType, View};

use crate::ctx::Ctx;
use crate::error::{Error, Result};

/// Tokens of a page.
pub const PAGE: usize = 16;

/// What the layers of a group keep of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Keys and values of every token.
    All,
    /// Those of the tokens that a query sees which sees the last so many, itself included. Pages behind them go back to the pool.
    Window(usize),
    /// Those of the tokens that are in the same run of so many positions as the query: 0 to the number, and so on. Pages of runs that
    /// have ended go back to the pool.
    Chunk(usize),
    /// Those of what the sequence attends to beside its tokens ([`Features::memory`](crate::prompt::Features::memory)): written
    /// with its first tokens and read by all.
    Memory,
    /// A state that each token changes: `heads x head_dim` numbers a layer, f32, in a slot of its own. It cannot be taken back.
    State,
}

/// What a block of a prompt's tokens ([`Prompt::blocks`](crate::prompt::Prompt::blocks)) is to layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Blocks {
    /// Its tokens see all of it, those that a window leaves behind too.
    #[default]
    Whole,
    /// Its tokens see those after them too; a window counts back from each.
    Ahead,
    /// Nothing: its tokens see those before them, as others do.
    Nothing,
}

/// Layers that keep the same of a sequence, in one shape.
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
    /// What blocks of tokens are to them.
    pub blocks: Blocks,
}

/// How much there is of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Its tokens.
    pub tokens: usize,
    /// Rows of its memory.
    pub memory: usize,
}

impl Extent {
    /// The same sequence with so many tokens.
    #[must_use]
    pub fn at(self, tokens: usize) -> Self {
        Self { tokens, ..self }
    }
}

impl KvGroup {
    /// Bytes that a page takes in all layers: keys and values of [`PAGE`] tokens, scales of codes included, or a state.
    #[must_use]
    pub fn bytes_per_page(&self, dtype: DType) -> u64 {
        let heads = self.layers * self.heads;
        let bytes = match self.keep {
            Keep::State => heads * self.head_dim * DType::F32.size(),
            _ => 2 * PAGE * heads * kept_elements(self.head_dim, dtype) * dtype.size(),
        };
        bytes as u64
    }

    /// Bytes that a kept token takes, keys and values of all layers. None for a memory and for a state, whatever the tokens.
    #[must_use]
    pub fn bytes_per_token(&self, dtype: DType) -> u64 {
        match self.keep {
            Keep::All | Keep::Window(_) | Keep::Chunk(_) => self.bytes_per_page(dtype) / PAGE as u64,
            Keep::Memory | Keep::State => 0,
        }
    }

    /// Most pages that a sequence holds on its way to `of`, while passes add at most `chunk` tokens at once.
    #[must_use]
    pub fn most_pages(&self, of: Extent, chunk: usize) -> usize {
        match self.keep {
            // The first page kept may hold one token that is needed, the last one may have one.
            Keep::Window(window) | Keep::Chunk(window) => {
                of.tokens.min(window.saturating_add(chunk) + 2 * PAGE).div_ceil(PAGE)
            }
            _ => self.pages(of),
        }
    }

    /// Pages that a sequence takes, those behind a window included.
    fn pages(&self, of: Extent) -> usize {
        match self.keep {
            Keep::All | Keep::Window(_) | Keep::Chunk(_) => of.tokens.div_ceil(PAGE),
            Keep::Memory if of.tokens == 0 => 0,
            Keep::Memory => of.memory.div_ceil(PAGE),
            Keep::State => of.tokens.min(1),
        }
    }

    /// Pages that a sequence holds once those that no token to come sees have gone back.
    #[must_use]
    pub fn pages_at(&self, of: Extent) -> usize {
        self.pages(of) - self.behind(of.tokens)
    }

    /// Pages that `new` more tokens take.
    #[must_use]
    pub fn pages_more(&self, of: Extent, new: usize) -> usize {
        self.pages(of.at(of.tokens.saturating_add(new))) - self.pages(of)
    }

    /// Tokens that a sequence can take with so many free pages.
    #[must_use]
    pub fn tokens_more(&self, of: Extent, free: usize) -> usize {
        match self.keep {
            Keep::All | Keep::Window(_) | Keep::Chunk(_) => {
                of.tokens.next_multiple_of(PAGE).saturating_add(free.saturating_mul(PAGE)) - of.tokens
            }
            // All of them, or none.
            Keep::Memory | Keep::State => {
                if self.pages_more(of, 1) <= free {
                    usize::MAX - of.tokens
                } else {
                    0
                }
            }
        }
    }

    /// Pages at the beginning of a sequence of `len` tokens that the next token and those after it do not see.
    fn behind(&self, len: usize) -> usize {
        match self.keep {
            Keep::Window(window) => (len + 1).saturating_sub(window) / PAGE,
            Keep::Chunk(size) => (len - len % size.max(1)) / PAGE,
            _ => 0,
        }
    }
}

/// What a model keeps of a sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvLayout(pub Vec<KvGroup>);

impl KvLayout {
    /// One group of layers that keep every token.
    #[must_use]
    pub fn all(layers: usize, heads: usize, head_dim: usize) -> Self {
        Self(vec![KvGroup { layers, heads, head_dim, keep: Keep::All, blocks: Blocks::Whole }])
    }

    /// Bytes that a token takes in all groups, before any leaves its window.
    #[must_use]
    pub fn bytes_per_token(&self, dtype: DType) -> u64 {
        self.0.iter().map(|group| group.bytes_per_token(dtype)).sum()
    }

    /// Whether sequences can begin with pages of others: a state cannot be taken from the middle of a sequence.
    #[must_use]
    pub fn shares(&self) -> bool {
        self.0.iter().all(|group| group.keep != Keep::State)
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
    extent: Extent,
    /// A state has gone further than the sequence's tokens.
    spoilt: bool,
    used: bool,
    /// Nobody runs it.
    kept: bool,
}

/// What a layer keeps.
#[derive(Clone, Debug)]
pub enum Kept {
    /// Pages of keys and of values, `[pages, PAGE, heads, head_dim]` each; of i8 with a scale behind each head.
    Pages(View, View),
    /// States, f32 `[slots, heads, head_dim]`.
    States(View),
}

impl Kept {
    fn views(&self) -> impl Iterator<Item = &View> {
        let (first, second) = match self {
            Self::Pages(k, v) => (k, Some(v)),
            Self::States(states) => (states, None),
        };
        std::iter::once(first).chain(second)
    }
}

struct Pool {
    group: KvGroup,
    layers: Vec<Kept>,
    free: Vec<u32>,
    /// Sequences that hold each page.
    counts: Vec<u32>,
    /// Those of them that are kept.
    kept: Vec<u32>,
}

impl Pool {
    fn new(cx: &mut Ctx, group: KvGroup, pages: usize) -> Result<Self> {
        let dtype = match group.keep {
            // Written by scattered rows, which know no heads.
            Keep::Memory if !cx.kv_dtype().is_float() => cx.dtype(),
            _ => cx.kv_dtype(),
        };
        let shape = [pages, PAGE, group.heads, kept_elements(group.head_dim, dtype)];
        let view = |cx: &mut Ctx, shape: &[usize], dtype| -> Result<View> {
            Ok(cx.reserve_owned(shape, dtype)?.view().clone())
        };
        let mut layers = Vec::with_capacity(group.layers);
        for _ in 0..group.layers {
            layers.push(match group.keep {
                Keep::State => Kept::States(view(cx, &[pages, group.heads, group.head_dim], DType::F32)?),
                _ => Kept::Pages(view(cx, &shape, dtype)?, view(cx, &shape, dtype)?),
            });
        }
        let free = (0..u32::try_from(pages).unwrap_or(GONE)).rev().collect();
        Ok(Self { group, layers, free, counts: vec![0; pages], kept: vec![0; pages] })
    }

    fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.counts[page as usize] = 1;
        Some(page)
    }

    /// One sequence less holds a page.
    fn give(&mut self, page: u32) {
        if page == GONE {
            return;
        }
        let count = &mut self.counts[page as usize];
        *count -= 1;
        if *count == 0 {
            self.free.push(page);
        }
    }

    /// Takes the pages back that the next token of a sequence of `len` tokens does not see.
    fn trim(&mut self, len: usize, pages: &mut [u32]) {
        let leaves = self.group.behind(len).min(pages.len());
        for page in &mut pages[..leaves] {
            self.give(std::mem::replace(page, GONE));
        }
    }
}

/// Pages of keys and values of all layers, and which sequence holds which.
pub struct KvCache {
    pools: Vec<Pool>,
    seqs: Vec<Seq>,
}

impl KvCache {
    /// So many pages for each group.
    pub fn new(cx: &mut Ctx, layout: &KvLayout, pages: &[usize]) -> Result<Self> {
        let pools = layout.0.iter().zip(pages).map(|(&group, &pages)| Pool::new(cx, group, pages));
        Ok(Self { pools: pools.collect::<Result<_>>()?, seqs: Vec::new() })
    }

    /// Room for one sequence that comes in chunks of at most `chunk` tokens.
    pub fn for_one(cx: &mut Ctx, layout: &KvLayout, of: Extent, chunk: usize) -> Result<Self> {
        let held: Vec<usize> = layout.0.iter().map(|group| group.most_pages(of, chunk)).collect();
        Self::new(cx, layout, &held)
    }

    /// The groups.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = KvGroup> {
        self.pools.iter().map(|pool| pool.group)
    }

    /// Pages of keys and of values of a layer of a group, `[pages, PAGE, heads, head_dim]` each.
    #[must_use]
    pub fn layer(&self, group: usize, layer: usize) -> Option<(&View, &View)> {
        match self.pools.get(group)?.layers.get(layer)? {
            Kept::Pages(k, v) => Some((k, v)),
            Kept::States(_) => None,
        }
    }

    /// States of a layer of a group, f32 `[slots, heads, head_dim]`. A sequence's first token finds what another has left there.
    #[must_use]
    pub fn state(&self, group: usize, layer: usize) -> Option<&View> {
        match self.pools.get(group)?.layers.get(layer)? {
            Kept::Pages(..) => None,
            Kept::States(states) => Some(states),
        }
    }

    /// All memory that steps read and write.
    pub fn views(&self) -> impl Iterator<Item = &View> {
        self.pools.iter().flat_map(|pool| &pool.layers).flat_map(Kept::views)
    }

    /// Free pages of a group.
    #[must_use]
    pub fn free_pages(&self, group: usize) -> usize {
        self.pools.get(group).map_or(0, |pool| pool.free.len())
    }

    /// Pages of a group that sequences hold.
    #[must_use]
    pub fn used_pages(&self, group: usize) -> usize {
        self.pools.get(group).map_or(0, |pool| pool.counts.len() - pool.free.len())
    }

    /// An empty sequence that is to have so many rows of memory.
    pub fn open(&mut self, memory: usize) -> SeqId {
        let id = self.seqs.iter().position(|seq| !seq.used).unwrap_or(self.seqs.len());
        if id == self.seqs.len() {
            self.seqs.push(Seq::default());
        }
        let extent = Extent { tokens: 0, memory };
        self.seqs[id] =
            Seq { pages: vec![Vec::new(); self.pools.len()], extent, used: true, ..Seq::default() };
        SeqId(id)
    }

    /// A sequence that begins as another does, with its first `tokens` tokens and its memory; both hold the pages. `None` where
    /// that cannot be: within a page, behind a window, with a state.
    pub fn share(&mut self, other: SeqId, tokens: usize) -> Option<SeqId> {
        let seq = self.seqs.get(other.0).filter(|seq| seq.used)?;
        let of = seq.extent.at(tokens);
        if !tokens.is_multiple_of(PAGE) || tokens == 0 || tokens > seq.extent.tokens {
            return None;
        }
        let mut shared = Vec::with_capacity(self.pools.len());
        for (pool, pages) in self.pools.iter().zip(&seq.pages) {
            let mut pages = pages.get(..pool.group.pages(of))?.to_vec();
            let seen = pool.group.behind(tokens);
            if pool.group.keep == Keep::State || pages[seen..].contains(&GONE) {
                return None;
            }
            pages[..seen].fill(GONE);
            shared.push(pages);
        }
        for (pool, pages) in self.pools.iter_mut().zip(&shared) {
            for &page in pages.iter().filter(|&&page| page != GONE) {
                pool.counts[page as usize] += 1;
            }
        }
        let id = self.open(of.memory);
        let seq = &mut self.seqs[id.0];
        (seq.pages, seq.extent) = (shared, of);
        Some(id)
    }

    /// Keeps a sequence that nobody runs any more: it can be shared and closed, and no more.
    pub fn keep(&mut self, id: SeqId) {
        let Some(seq) = self.seqs.get_mut(id.0).filter(|seq| seq.used && !seq.kept) else { return };
        seq.kept = true;
        for (pool, pages) in self.pools.iter_mut().zip(&seq.pages) {
            pages.iter().filter(|&&page| page != GONE).for_each(|&page| pool.kept[page as usize] += 1);
        }
    }

    /// Pages of a group that sequences hold which are kept, and no others.
    #[must_use]
    pub fn kept_pages(&self, group: usize) -> usize {
        let Some(pool) = self.pools.get(group) else { return 0 };
        pool.kept.iter().zip(&pool.counts).filter(|&(&kept, &all)| kept > 0 && kept == all).count()
    }

    /// Gives the pages of a sequence back.
    pub fn close(&mut self, id: SeqId) {
        let Some(seq) = self.seqs.get_mut(id.0) else { return };
        for (pool, pages) in self.pools.iter_mut().zip(&mut seq.pages) {
            if seq.kept {
                pages.iter().filter(|&&page| page != GONE).for_each(|&page| pool.kept[page as usize] -= 1);
            }
            pages.drain(..).rev().for_each(|page| pool.give(page));
        }
        *seq = Seq::default();
    }

    /// Tokens that a sequence has had, those behind windows included.
    #[must_use]
    pub fn len(&self, id: SeqId) -> usize {
        self.seqs.get(id.0).map_or(0, |seq| seq.extent.tokens)
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

    /// Makes a sequence longer and gives the new slots in each group, counted in tokens: those of the new tokens, those of the
    /// memory where all tokens are new, or that of the state. Pages that none of the new tokens sees go back to the pool first.
    /// Errors if the pages do not suffice; nothing is changed then but that.
    pub fn extend(&mut self, id: SeqId, tokens: usize) -> Result<Vec<Vec<i32>>> {
        let seq = self.seqs.get_mut(id.0).filter(|seq| seq.used);
        let seq = seq
            .ok_or_else(|| Error::Request("KV cache: a sequence was used after it had been closed".into()))?;
        if seq.spoilt {
            return Err(Error::Request("KV cache: a state has gone further than its sequence".into()));
        }
        let (old, new) = (seq.extent, seq.extent.at(seq.extent.tokens + tokens));
        for (pool, pages) in self.pools.iter_mut().zip(&mut seq.pages) {
            pool.trim(old.tokens, pages);
        }
        for (pool, pages) in self.pools.iter().zip(&seq.pages) {
            let more = pool.group.pages(new).saturating_sub(pages.len());
            if more > pool.free.len() {
                return Err(Error::Request(format!(
                    "KV cache: {} tokens need {more} more pages of {PAGE}, {} of {} are free",
                    new.tokens,
                    pool.free.len(),
                    pool.counts.len()
                )));
            }
        }
        let mut slots = Vec::with_capacity(self.pools.len());
        for (pool, pages) in self.pools.iter_mut().zip(&mut seq.pages) {
            while pages.len() < pool.group.pages(new) {
                pages.extend(pool.take());
            }
            let slot = |token: usize| (pages[token / PAGE] as usize * PAGE + token % PAGE) as i32;
            slots.push(match pool.group.keep {
                Keep::All | Keep::Window(_) | Keep::Chunk(_) => (old.tokens..new.tokens).map(slot).collect(),
                Keep::Memory if old.tokens > 0 => Vec::new(),
                Keep::Memory => (0..new.memory).map(slot).collect(),
                Keep::State => pages.iter().map(|&page| page as i32).collect(),
            });
        }
        seq.extent = new;
        Ok(slots)
    }

    /// Gives back the pages that no token to come sees.
    pub fn trim(&mut self, id: SeqId) {
        let Some(seq) = self.seqs.get_mut(id.0) else { return };
        for (pool, pages) in self.pools.iter_mut().zip(&mut seq.pages) {
            pool.trim(seq.extent.tokens, pages);
        }
    }

    /// Whether all that a sequence's next token sees is there. Not so if it was cut back to before what is behind a window, or to
    /// where its state had been: it must be read again from its beginning.
    #[must_use]
    pub fn is_whole(&self, id: SeqId) -> bool {
        let Some(seq) = self.seqs.get(id.0) else { return false };
        !seq.spoilt
            && self.pools.iter().zip(&seq.pages).all(|(pool, pages)| {
                pages.iter().skip(pool.group.behind(seq.extent.tokens)).all(|&page| page != GONE)
            })
    }

    /// Forgets the last tokens of a sequence, which then has `len`; what was behind a window before stays gone. A last page that
    /// other sequences hold too is gone for this one, as it would write to it.
    pub fn truncate(&mut self, id: SeqId, len: usize) {
        let Some(seq) = self.seqs.get_mut(id.0) else { return };
        if len >= seq.extent.tokens {
            return;
        }
        seq.extent.tokens = len;
        for (pool, pages) in self.pools.iter_mut().zip(&mut seq.pages) {
            let keep = pool.group.pages(seq.extent).min(pages.len());
            pages.drain(keep..).rev().for_each(|page| pool.give(page));
            match pool.group.keep {
                Keep::State => seq.spoilt = len > 0,
                Keep::Memory => {}
                Keep::All | Keep::Window(_) | Keep::Chunk(_) => {
                    if let Some(last) = pages.last_mut().filter(|&&mut page| page != GONE)
                        && !len.is_multiple_of(PAGE)
                        && pool.counts[*last as usize] > 1
                    {
                        pool.give(std::mem::replace(last, GONE));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "kv_tests.rs"]
mod tests;
