//! What one forward pass takes: ragged sequences, packed without padding.

use crate::ctx::{Ctx, ReplayKey};
use crate::error::{Error, Result};
use crate::kv::{KvCache, PAGE, SeqId};
use crate::tensor::Tensor;

/// Which logits of a sequence are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Want {
    /// None: there are more tokens of the prompt to come.
    #[default]
    Nothing,
    /// Those of the last so many tokens.
    Last(usize),
}

/// Rows of image features and where they go in a sequence's new tokens.
#[derive(Clone, Debug)]
pub struct ImageRows {
    /// Features `[rows, d_model]`.
    pub features: Tensor,
    /// Place of each row among the sequence's new tokens.
    pub at: Vec<usize>,
}

/// New tokens of one sequence.
#[derive(Clone, Debug)]
pub struct SeqInput<'a> {
    /// The sequence in the cache; its length there is the position of the first new token.
    pub seq: SeqId,
    /// Token ids.
    pub tokens: &'a [u32],
    /// Image features that replace embeddings of tokens.
    pub images: &'a [ImageRows],
    /// Which logits are wanted.
    pub want: Want,
}

/// New tokens of several sequences.
#[derive(Clone, Debug, Default)]
pub struct Batch<'a> {
    /// The sequences.
    pub seqs: Vec<SeqInput<'a>>,
    /// Token ids that are on the device alone, i32 `[tokens]` in the order of the sequences; those of `seqs` then only say how
    /// many there are.
    pub ids: Option<Tensor>,
}

/// A batch as the device sees it: everything that changes from step to step is in these buffers.
pub struct Packed {
    /// i32 `[tokens]`.
    pub ids: Tensor,
    /// i32 `[1, tokens]`.
    pub positions: Tensor,
    /// i32 `[tokens]`: slot in the KV pages.
    pub slots: Tensor,
    /// i32 `[seqs + 1]`: first row of each sequence.
    pub q_starts: Tensor,
    /// i32 `[seqs]`: tokens of each sequence in the cache, the new ones included.
    pub kv_lens: Tensor,
    /// i32 `[seqs, max_pages]`.
    pub block_table: Tensor,
    /// i32 `[rows]`: rows whose logits are wanted, in order; `None` if every row is.
    pub wanted: Option<Tensor>,
    /// Image features with the rows of the packed batch that they replace, i32 `[rows]`.
    pub images: Vec<(Tensor, Tensor)>,
    /// Rows of the batch.
    pub tokens: usize,
    /// Rows whose logits are wanted.
    pub rows_wanted: usize,
    /// Most new tokens of one sequence.
    pub max_q: usize,
    /// Most tokens of one sequence in the cache.
    pub max_kv: usize,
    /// Pairs of query and key under a causal mask.
    pub pairs: u64,
}

impl Packed {
    /// What launches on this batch depend on.
    #[must_use]
    pub fn replay_key(&self) -> ReplayKey {
        let mut key = ReplayKey::default();
        let always =
            [&self.ids, &self.positions, &self.slots, &self.q_starts, &self.kv_lens, &self.block_table];
        for tensor in always.into_iter().chain(&self.wanted) {
            key.view(tensor.view());
        }
        key.number(self.rows_wanted).number(self.max_q).number(self.max_kv);
        key
    }
}

impl Batch<'_> {
    /// Takes slots in the cache for the new tokens and uploads what the device needs.
    ///
    /// `vocab` bounds the token ids. Errors name the sequence and what was wrong with it; the cache is then unchanged
    /// for the sequences not yet reached.
    pub fn pack(&self, cx: &mut Ctx, kv: &mut KvCache, vocab: usize) -> Result<Packed> {
        let (mut ids, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let (mut q_starts, mut kv_lens, mut wanted) = (vec![0i32], Vec::new(), Vec::new());
        let (mut max_q, mut max_kv, mut pairs) = (0, 0, 0u64);
        let mut images = Vec::new();
        for (index, seq) in self.seqs.iter().enumerate() {
            let (first, past, new) = (ids.len(), kv.len(seq.seq), seq.tokens.len());
            if new == 0 {
                return Err(Error::Request(format!(
                    "sequence {index}: expected at least one token, found none"
                )));
            }
            if let Some(id) = seq.tokens.iter().find(|&&id| id as usize >= vocab) {
                return Err(Error::Request(format!(
                    "sequence {index}: token id: expected below {vocab}, found {id}"
                )));
            }
            slots.extend(kv.extend(seq.seq, new)?);
            ids.extend(seq.tokens.iter().map(|&id| id as i32));
            positions.extend((past..past + new).map(|p| p as i32));
            q_starts.push(ids.len() as i32);
            kv_lens.push((past + new) as i32);
            if let Want::Last(count) = seq.want {
                wanted.extend((first + new - count.min(new)..first + new).map(|row| row as i32));
            }
            for image in seq.images {
                if image.at.iter().any(|&at| at >= new) {
                    return Err(Error::Request(format!(
                        "sequence {index}: an image row lies beyond its {new} tokens"
                    )));
                }
                let rows: Vec<i32> = image.at.iter().map(|&at| (first + at) as i32).collect();
                images.push((image.features.clone(), cx.upload(&[rows.len()], &rows)?));
            }
            max_q = max_q.max(new);
            max_kv = max_kv.max(past + new);
            pairs += (new * past + new * (new + 1) / 2) as u64;
        }
        // Where steps are recorded, their sizes must not change from one to the next.
        if max_q == 1 && cx.records() {
            max_kv = ocelli_kernels::spec::bucket(max_kv) as usize;
        }
        let width = max_kv.div_ceil(PAGE).max(1);
        let mut table = vec![0i32; self.seqs.len() * width];
        for (row, seq) in table.chunks_exact_mut(width).zip(&self.seqs) {
            for (slot, &page) in row.iter_mut().zip(kv.pages(seq.seq)) {
                *slot = page as i32;
            }
        }
        let (tokens, rows_wanted) = (ids.len(), wanted.len());
        let every = rows_wanted == tokens;
        let known: &[i32] = if self.ids.is_some() { &[] } else { &ids };
        let rows: &[i32] = if every { &[] } else { &wanted };
        let [ids, positions, slots, q_starts, kv_lens, table, wanted] =
            cx.upload_ids([known, &positions, &slots, &q_starts, &kv_lens, &table, rows])?;
        Ok(Packed {
            ids: match &self.ids {
                Some(known) => known.narrow(0, 0, tokens)?,
                None => ids,
            },
            positions: positions.reshape(&[1, tokens])?,
            slots,
            q_starts,
            kv_lens,
            block_table: table.reshape(&[self.seqs.len(), width])?,
            wanted: (!every).then_some(wanted),
            images,
            tokens,
            rows_wanted,
            max_q,
            max_kv,
            pairs,
        })
    }
}
