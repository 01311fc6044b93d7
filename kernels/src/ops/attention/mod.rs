//! Attention over packed sequences.
//!
//! `out[i] = sum_j softmax_j(cap(scale * q[i] . k[j])) v[j]`, where `j` runs over the keys of the sequence that the
//! mask lets query `i` see. Query heads share key heads in groups of `heads_q / heads_kv`, neighbours together.
//! The queries of a sequence are its last ones: query `i` of `q_len` stands at position `kv_len - q_len + i`.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::check;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// Where keys and values lie.
#[derive(Clone, Debug)]
pub enum AttentionKv {
    /// Packed `[tokens_kv, heads_kv, head_dim]`, with the first row of each sequence.
    Packed {
        /// Keys.
        k: View,
        /// Values.
        v: View,
        /// i32 `[seqs + 1]`, ascending.
        kv_starts: View,
    },
    /// Pages `[pages, page_size, heads_kv, head_dim]`; key `j` of a sequence lies in slot `j % page_size` of page
    /// `block_table[seq, j / page_size]`.
    Paged {
        /// Pages of keys.
        k: View,
        /// Pages of values.
        v: View,
        /// i32 `[seqs, max_pages]`.
        block_table: View,
        /// i32 `[seqs]`: keys of each sequence, those of the present queries included.
        kv_lens: View,
    },
}

/// Which keys a query sees.
#[derive(Clone, Debug, Default)]
pub struct Mask {
    /// Only keys at its own position or before.
    pub causal: bool,
    /// Only the last so many keys up to its own position; 0 is no limit. Needs `causal`.
    pub window: usize,
    /// i32 `[seqs]`: with `causal`, the first so many keys of a sequence are seen by all of its queries.
    pub prefix: Option<View>,
}

/// `q: [tokens, heads_q, head_dim]  k, v: packed or paged  ->  out: [tokens, heads_q, head_dim]`.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Queries `[tokens, heads_q, head_dim]`; tokens and heads may be strided.
    pub q: View,
    /// Keys and values.
    pub kv: AttentionKv,
    /// i32 `[seqs + 1]`: the first row of each sequence in `q`, ascending.
    pub q_starts: View,
    /// Which keys a query sees.
    pub mask: Mask,
    /// Factor of the scores.
    pub scale: f32,
    /// Scores become `softcap * tanh(score / softcap)`; 0 is off.
    pub softcap: f32,
    /// Result, of the shape of `q`.
    pub out: View,
    /// Host bound of the queries of one sequence.
    pub max_q: usize,
    /// Host bound of the keys of one sequence.
    pub max_kv: usize,
    /// Pairs of query and key that the mask keeps, over all sequences and one head: for [`Op::cost`] only.
    pub pairs: u64,
}

/// The key of an [`Attention`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct AttentionSpec {
    /// Sequences, bucketed.
    pub seqs: u32,
    /// Most queries of one sequence, bucketed.
    pub q: u32,
    /// Most keys of one sequence, bucketed.
    pub kv: u32,
    /// Query heads.
    pub heads_q: u32,
    /// Key heads.
    pub heads_kv: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Type of queries and result.
    pub x: DType,
    /// Type of keys and values.
    pub kv_dtype: DType,
    /// Slots of a page; 0 where keys are packed.
    pub page: u32,
    /// Whether later keys are hidden.
    pub causal: bool,
    /// Sliding window; 0 is none.
    pub window: u32,
    /// Whether sequences have a prefix that all their queries see.
    pub prefix: bool,
    /// Whether scores are capped.
    pub softcap: bool,
}

impl Attention {
    /// Sequences of the batch.
    #[must_use]
    pub fn seqs(&self) -> usize {
        self.q_starts.size(0).saturating_sub(1)
    }
}

impl Op for Attention {
    const NAME: &'static str = "attention";
    type Spec = AttentionSpec;

    fn spec(&self) -> Result<AttentionSpec, ShapeError> {
        let Self { q, q_starts, out, .. } = self;
        check::rank("q", q, 3)?;
        check::float("q", q)?;
        check::rank("q_starts", q_starts, 1)?;
        check::dtype("q_starts", q_starts, DType::I32)?;
        if q_starts.is_empty() {
            return Err(ShapeError::mismatch("q_starts", "at least one element", 0));
        }
        let (heads_q, head_dim, seqs) = (q.size(1), q.size(2), self.seqs());
        let (k, v, page) = match &self.kv {
            AttentionKv::Packed { k, v, kv_starts } => {
                check::rank("k", k, 3)?;
                check::shape("kv_starts", kv_starts, &[seqs + 1])?;
                check::dtype("kv_starts", kv_starts, DType::I32)?;
                check::shape("v", v, k.shape())?;
                (k, v, 0)
            }
            AttentionKv::Paged { k, v, block_table, kv_lens } => {
                check::rank("k", k, 4)?;
                check::rank("block_table", block_table, 2)?;
                check::shape("block_table", block_table, &[seqs, block_table.size(1)])?;
                check::dtype("block_table", block_table, DType::I32)?;
                check::shape("kv_lens", kv_lens, &[seqs])?;
                check::dtype("kv_lens", kv_lens, DType::I32)?;
                check::shape("v", v, k.shape())?;
                let page = k.size(1);
                if self.max_kv > block_table.size(1) * page {
                    return Err(ShapeError::mismatch(
                        "block_table axis 1",
                        format!("pages of {page} for {} keys", self.max_kv),
                        block_table.size(1),
                    ));
                }
                (k, v, page)
            }
        };
        check::float("k", k)?;
        check::dtype("v", v, k.dtype())?;
        let last = k.layout().rank() - 1;
        let heads_kv = k.size(last - 1);
        if k.size(last) != head_dim {
            return Err(ShapeError::mismatch("k axis head_dim", head_dim, k.size(last)));
        }
        if heads_kv == 0 || !heads_q.is_multiple_of(heads_kv) {
            return Err(ShapeError::mismatch("q axis heads", format!("a multiple of {heads_kv}"), heads_q));
        }
        if self.mask.window > 0 && !self.mask.causal {
            return Err(ShapeError::mismatch("mask", "causal with a window", "a window alone"));
        }
        if let Some(prefix) = &self.mask.prefix {
            check::shape("mask prefix", prefix, &[seqs])?;
            check::dtype("mask prefix", prefix, DType::I32)?;
            if !self.mask.causal {
                return Err(ShapeError::mismatch("mask", "causal with a prefix", "a prefix alone"));
            }
        }
        check::dtype("out", out, q.dtype())?;
        check::shape("out", out, q.shape())?;
        check::output("out", out, [("q", q), ("k", k), ("v", v)])?;
        Ok(AttentionSpec {
            seqs: bucket(seqs),
            q: bucket(self.max_q),
            kv: bucket(self.max_kv),
            heads_q: heads_q as u32,
            heads_kv: heads_kv as u32,
            head_dim: head_dim as u32,
            x: q.dtype(),
            kv_dtype: k.dtype(),
            page: page as u32,
            causal: self.mask.causal,
            window: self.mask.window as u32,
            prefix: self.mask.prefix.is_some(),
            softcap: self.softcap > 0.0,
        })
    }

    fn cost(&self) -> Cost {
        let (heads_q, head_dim) = (self.q.size(1) as u64, self.q.size(2) as u64);
        let (k, keys) = match &self.kv {
            AttentionKv::Packed { k, .. } => (k, k.size(0) as u64),
            AttentionKv::Paged { k, kv_lens, .. } => (k, (kv_lens.size(0) * self.max_kv) as u64),
        };
        let heads_kv = k.size(k.layout().rank() - 2) as u64;
        Cost {
            flops: 4 * self.pairs * heads_q * head_dim,
            read: self.q.bytes() + 2 * keys * heads_kv * head_dim * k.dtype().size() as u64,
            written: self.out.bytes(),
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.q);
        visit(Access::In, &mut self.q_starts);
        match &mut self.kv {
            AttentionKv::Packed { k, v, kv_starts } => {
                visit(Access::In, k);
                visit(Access::In, v);
                visit(Access::In, kv_starts);
            }
            AttentionKv::Paged { k, v, block_table, kv_lens } => {
                visit(Access::In, k);
                visit(Access::In, v);
                visit(Access::In, block_table);
                visit(Access::In, kv_lens);
            }
        }
        if let Some(prefix) = &mut self.mask.prefix {
            visit(Access::In, prefix);
        }
        visit(Access::Out, &mut self.out);
    }

    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError> {
        reference::reference(self, io)
    }

    #[cfg(feature = "conformance")]
    fn cases(cx: &mut crate::conformance::CaseCx) -> Vec<crate::conformance::Case<Self>> {
        cases::cases(cx)
    }
}
