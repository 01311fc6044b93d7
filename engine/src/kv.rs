//! Keys and values in pages.

use ocelli_kernels::{DType, View};

use crate::ctx::Ctx;
use crate::error::{Error, Result};

/// Tokens of a page.
pub const PAGE: usize = 16;

/// What one layer of a model keeps for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Text layers.
    pub layers: usize,
    /// Key heads of a layer.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl KvLayout {
    /// Bytes that a token keeps, keys and values of all layers.
    #[must_use]
    pub fn bytes_per_token(&self, dtype: DType) -> u64 {
        (2 * self.layers * self.heads * self.head_dim * dtype.size()) as u64
    }
}

/// A sequence in a [`KvCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeqId(usize);

#[derive(Default)]
struct Seq {
    pages: Vec<u32>,
    len: usize,
    used: bool,
}

/// Pages of keys and values of all layers, and which sequence holds which.
pub struct KvCache {
    layers: Vec<(View, View)>,
    free: Vec<u32>,
    seqs: Vec<Seq>,
    pages: usize,
}

impl KvCache {
    /// Pages for `tokens` tokens, each sequence rounded up to whole pages by the caller.
    pub fn new(cx: &mut Ctx, layout: KvLayout, tokens: usize) -> Result<Self> {
        let pages = tokens.div_ceil(PAGE);
        let shape = [pages, PAGE, layout.heads, layout.head_dim];
        let dtype = cx.dtype();
        let mut layers = Vec::with_capacity(layout.layers);
        for _ in 0..layout.layers {
            let (k, v) = (cx.alloc_owned(&shape, dtype)?, cx.alloc_owned(&shape, dtype)?);
            layers.push((k.view().clone(), v.view().clone()));
        }
        let free = (0..u32::try_from(pages).unwrap_or(u32::MAX)).rev().collect();
        Ok(Self { layers, free, seqs: Vec::new(), pages })
    }

    /// Pages of keys and of values of a layer, `[pages, PAGE, heads, head_dim]` each.
    #[must_use]
    pub fn layer(&self, layer: usize) -> Option<&(View, View)> {
        self.layers.get(layer)
    }

    /// Pages of keys and of values of every layer.
    #[must_use]
    pub fn layers(&self) -> &[(View, View)] {
        &self.layers
    }

    /// Tokens that still fit, in whole pages.
    #[must_use]
    pub fn free_tokens(&self) -> usize {
        self.free.len() * PAGE
    }

    /// An empty sequence.
    pub fn open(&mut self) -> SeqId {
        let id = self.seqs.iter().position(|seq| !seq.used).unwrap_or(self.seqs.len());
        if id == self.seqs.len() {
            self.seqs.push(Seq::default());
        }
        self.seqs[id].used = true;
        SeqId(id)
    }

    /// Gives the pages of a sequence back.
    pub fn close(&mut self, id: SeqId) {
        if let Some(seq) = self.seqs.get_mut(id.0) {
            self.free.extend(seq.pages.drain(..).rev());
            *seq = Seq::default();
        }
    }

    /// Tokens that a sequence holds.
    #[must_use]
    pub fn len(&self, id: SeqId) -> usize {
        self.seqs.get(id.0).map_or(0, |seq| seq.len)
    }

    /// Pages of a sequence, in order.
    #[must_use]
    pub fn pages(&self, id: SeqId) -> &[u32] {
        self.seqs.get(id.0).map_or(&[], |seq| &seq.pages)
    }

    /// Makes a sequence longer and gives the slots of the new tokens. Errors if the pages do not suffice.
    pub fn extend(&mut self, id: SeqId, tokens: usize) -> Result<Vec<i32>> {
        let pages = self.pages;
        let seq = self.seqs.get_mut(id.0).filter(|seq| seq.used);
        let seq = seq
            .ok_or_else(|| Error::Request("KV cache: a sequence was used after it had been closed".into()))?;
        let need = (seq.len + tokens).div_ceil(PAGE).saturating_sub(seq.pages.len());
        if need > self.free.len() {
            return Err(Error::Request(format!(
                "KV cache: {} tokens need {need} more pages of {PAGE}, {} of {pages} are free",
                seq.len + tokens,
                self.free.len(),
            )));
        }
        seq.pages.extend(self.free.drain(self.free.len() - need..).rev());
        let slots =
            (seq.len..seq.len + tokens).map(|t| (seq.pages[t / PAGE] as usize * PAGE + t % PAGE) as i32);
        let slots = slots.collect();
        seq.len += tokens;
        Ok(slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(tokens: usize) -> KvCache {
        let device = ocelli_kernels::open(ocelli_kernels::Backend::Cpu, &Default::default()).unwrap();
        let mut cx = Ctx::new(&*device, Default::default()).unwrap();
        KvCache::new(&mut cx, KvLayout { layers: 1, heads: 1, head_dim: 2 }, tokens).unwrap()
    }

    #[test]
    fn pages_are_shared_out_and_returned() {
        let mut kv = cache(5 * PAGE);
        let (a, b) = (kv.open(), kv.open());
        let first = kv.extend(a, PAGE + 1).unwrap();
        let other = kv.extend(b, 2 * PAGE).unwrap();
        let more = kv.extend(a, PAGE).unwrap();
        let mut all: Vec<i32> = [first, other, more].concat();
        assert_eq!(all.len(), 4 * PAGE + 1);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 4 * PAGE + 1, "each token has a slot of its own");
        assert!(kv.extend(b, 1).is_err(), "page 5 is taken");
        assert_eq!(kv.len(b), 2 * PAGE, "a refused extension changes nothing");
        kv.close(a);
        assert_eq!(kv.free_tokens(), 3 * PAGE);
        assert!(kv.extend(a, 1).is_err());
        assert_eq!(kv.extend(b, 3 * PAGE).unwrap().len(), 3 * PAGE);
    }
}
