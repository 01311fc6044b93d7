//! Attention over packed sequences.
//!
//! `out[i] = sum_j softmax_j(cap(scale * q[i] . k[j])) v[j]`, where `j` runs over the keys of the sequence that
//! query `i` sees. Query heads share key heads in groups of `heads_q / heads_kv`, neighbours together.
//! The queries of a sequence are its last ones: query `i` of `q_len` stands at position `kv_len - q_len + i`.
//!
//! The keys that a query sees are a range, [`Seen`], whose bounds ascend with the query: a sequence's queries together see keys from
//! the first of its first query to the last of its last one. What lies outside of that has no influence on any result, whatever
//! its memory holds, NaN included; a block table may name any page that exists for pages without a key in it. Between those
//! bounds, keys and values are numbers: a key that a query does not see has weight 0.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod grad;
mod of_spec;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;

pub use grad::{AttentionGrad, AttentionGradSpec};
use serde::{Deserialize, Serialize};

use super::{check, kept};
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, MANY, ShapeError, bucket};

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
    /// Pages `[pages, page_size, heads_kv, head_dim]`, of i8 `[pages, page_size, heads_kv, head_dim + SCALE_BYTES]`; key `j` of a
    /// sequence lies in slot `j % page_size` of page `block_table[seq, j / page_size]`.
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

/// Which keys of its sequence a query sees.
#[derive(Clone, Debug, Default)]
pub enum Seen {
    /// All of them.
    #[default]
    All,
    /// Those at its own position and before.
    Causal {
        /// Only the last so many of these; 0 is no limit.
        window: usize,
    },
    /// Those of a range for each row of `q`. Positions count from the first key of the row's sequence; ranges are cut off at its
    /// keys. A row whose range is empty sees nothing: its result is zero. Within a sequence, both bounds ascend.
    Ranges {
        /// i32 `[tokens]`: the first key that a row sees; the sequence's first one without it.
        from: Option<View>,
        /// i32 `[tokens]`: one past the last key that a row sees.
        to: View,
    },
}

impl Seen {
    /// Whether later keys are hidden, and the window; for [`AttentionSpec`].
    fn causal(&self) -> (bool, usize) {
        match *self {
            Self::Causal { window } => (true, window),
            Self::All | Self::Ranges { .. } => (false, 0),
        }
    }
}

/// Errors where a bound of ranges descends within a sequence, whose rows begin at `starts`.
fn ascending<T>(what: &str, bounds: &[T], starts: &[T]) -> Result<(), ShapeError>
where
    T: Copy + PartialOrd + std::fmt::Display + TryInto<usize>,
{
    let place = |start: T| start.try_into().unwrap_or(0).min(bounds.len());
    for of_seq in starts.windows(2) {
        let (first, end) = (place(of_seq[0]), place(of_seq[1]));
        let rows = bounds.get(first..end).unwrap_or_default();
        if let Some(pair) = rows.windows(2).find(|pair| pair[1] < pair[0]) {
            let expected = format!("{} or more after a row of {0} in the same sequence", pair[0]);
            return Err(ShapeError::mismatch(what, expected, pair[1]));
        }
    }
    Ok(())
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
    pub seen: Seen,
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
    /// Pairs of a query and a key that it sees, over all sequences and one head: for [`Op::cost`] only.
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
    /// Whether each row has a range of its own.
    pub ranges: bool,
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

/// Inputs whose shapes and types fit together.
struct Inputs<'a> {
    k: &'a View,
    v: &'a View,
    /// Slots of a page; 0 where keys are packed.
    page: usize,
    heads_kv: usize,
}

impl<'a> Inputs<'a> {
    fn check(
        q: &View,
        kv: &'a AttentionKv,
        q_starts: &View,
        seen: &Seen,
        max_kv: usize,
    ) -> Result<Self, ShapeError> {
        check::rank("q", q, 3)?;
        check::float("q", q)?;
        check::rank("q_starts", q_starts, 1)?;
        check::dtype("q_starts", q_starts, DType::I32)?;
        if q_starts.is_empty() {
            return Err(ShapeError::mismatch("q_starts", "at least one element", 0));
        }
        let (heads_q, head_dim, seqs) = (q.size(1), q.size(2), q_starts.size(0) - 1);
        let (k, v, page) = match kv {
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
                if max_kv > block_table.size(1) * page {
                    return Err(ShapeError::mismatch(
                        "block_table axis 1",
                        format!("pages of {page} for {max_kv} keys"),
                        block_table.size(1),
                    ));
                }
                (k, v, page)
            }
        };
        if page == 0 {
            check::float("k", k)?;
        }
        check::dtype("v", v, k.dtype())?;
        kept::heads("k", k, head_dim)?;
        kept::heads("v", v, head_dim)?;
        let last = k.layout().rank() - 1;
        let heads_kv = k.size(last - 1);
        if heads_kv == 0 || !heads_q.is_multiple_of(heads_kv) {
            return Err(ShapeError::mismatch("q axis heads", format!("a multiple of {heads_kv}"), heads_q));
        }
        if let Seen::Ranges { from, to } = seen {
            for (what, bounds) in [("seen from", from.as_ref()), ("seen to", Some(to))] {
                let Some(bounds) = bounds else { continue };
                check::shape(what, bounds, &[q.size(0)])?;
                check::dtype(what, bounds, DType::I32)?;
            }
        }
        Ok(Self { k, v, page, heads_kv })
    }
}

impl Op for Attention {
    const NAME: &'static str = "attention";
    type Spec = AttentionSpec;

    fn spec(&self) -> Result<AttentionSpec, ShapeError> {
        let Self { q, out, .. } = self;
        let Inputs { k, v, page, heads_kv } =
            Inputs::check(q, &self.kv, &self.q_starts, &self.seen, self.max_kv)?;
        let (causal, window) = self.seen.causal();
        check::dtype("out", out, q.dtype())?;
        check::shape("out", out, q.shape())?;
        check::output("out", out, [("q", q), ("k", k), ("v", v)])?;
        Ok(AttentionSpec {
            seqs: bucket(self.seqs()),
            q: bucket(self.max_q),
            kv: bucket(self.max_kv),
            heads_q: q.size(1) as u32,
            heads_kv: heads_kv as u32,
            head_dim: q.size(2) as u32,
            x: q.dtype(),
            kv_dtype: k.dtype(),
            page: page as u32,
            causal,
            window: window as u32,
            ranges: matches!(self.seen, Seen::Ranges { .. }),
            softcap: self.softcap > 0.0,
        })
    }

    fn extremes(spec: &Self::Spec) -> [Self::Spec; 2] {
        [(1, 1, 16), (16, MANY, 4 * MANY)].map(|(seqs, q, kv)| Self::Spec { seqs, q, kv, ..*spec })
    }

    fn cost(&self) -> Cost {
        let (heads_q, head_dim) = (self.q.size(1) as u64, self.q.size(2) as u64);
        let (k, keys) = match &self.kv {
            AttentionKv::Packed { k, .. } => (k, k.size(0) as u64),
            AttentionKv::Paged { k, kv_lens, .. } => (k, (kv_lens.size(0) * self.max_kv) as u64),
        };
        let last = k.layout().rank() - 1;
        let key = (k.size(last - 1) * k.size(last) * k.dtype().size()) as u64;
        Cost {
            flops: 4 * self.pairs * heads_q * head_dim,
            read: self.q.bytes() + 2 * keys * key,
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
        if let Seen::Ranges { from, to } = &mut self.seen {
            from.iter_mut().for_each(|from| visit(Access::In, from));
            visit(Access::In, to);
        }
        visit(Access::Out, &mut self.out);
    }

    fn of_spec(spec: &AttentionSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        of_spec::attention(spec, operands)
    }

    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError> {
        reference::reference(self, io)
    }

    #[cfg(feature = "conformance")]
    fn cases(cx: &mut crate::conformance::CaseCx) -> Vec<crate::conformance::Case<Self>> {
        cases::cases(cx)
    }
}
