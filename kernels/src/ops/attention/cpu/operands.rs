//! What kernels read of the index buffers, checked once before any thread starts.

use crate::cpu::CpuCx;
use crate::op::Op;
use crate::ops::attention::{Attention, AttentionKv, Seen, ascending as ranges_ascend};
use crate::spec::KernelError;

/// Strides of keys or values, or of what has their shape, in elements.
#[derive(Clone, Copy)]
pub(in crate::ops::attention) struct Strides {
    page: usize,
    slot: usize,
    head: usize,
}

impl Strides {
    pub(in crate::ops::attention) fn of(view: &crate::View) -> Self {
        let last = view.layout().rank() - 2;
        Self { page: view.stride(0), slot: view.stride(last - 1), head: view.stride(last) }
    }
}

#[derive(Clone, Copy)]
enum Place<'a> {
    Packed { starts: &'a [i32] },
    Paged { table: &'a [i32], width: usize, page: usize, lens: &'a [i32] },
}

/// [`Seen`], read.
#[derive(Clone, Copy)]
enum Limits<'a> {
    All,
    Causal { window: usize },
    Ranges { from: Option<&'a [i32]>, to: &'a [i32] },
}

/// Sequences, heads and strides of an op.
#[derive(Clone, Copy)]
pub(in crate::ops::attention) struct Operands<'a> {
    q_starts: &'a [i32],
    limits: Limits<'a>,
    place: Place<'a>,
    k: Strides,
    v: Strides,
    /// Token and head strides of the queries.
    pub(in crate::ops::attention) q: (usize, usize),
    /// Token and head strides of the result.
    pub(in crate::ops::attention) out: (usize, usize),
    pub(in crate::ops::attention) heads_kv: usize,
    /// Query heads of one key head.
    pub(in crate::ops::attention) group: usize,
    pub(in crate::ops::attention) head_dim: usize,
}

/// One sequence.
#[derive(Clone, Copy)]
pub(in crate::ops::attention) struct Seq {
    pub(in crate::ops::attention) index: usize,
    /// First row of its queries.
    pub(in crate::ops::attention) row: usize,
    pub(in crate::ops::attention) q_len: usize,
    pub(in crate::ops::attention) kv_len: usize,
}

/// The i32 elements of a view whose last axis is contiguous.
fn ints<'a>(cx: &CpuCx, view: &'a crate::View) -> Result<&'a [i32], KernelError> {
    let base = cx.input::<i32>(view)?;
    // SAFETY: the pointer is valid for the extent of the layout, and nothing writes the buffer while the op runs.
    Ok(unsafe { std::slice::from_raw_parts(base, view.layout().extent()) })
}

fn bad(what: &'static str, index: i32, limit: usize) -> KernelError {
    KernelError::Index { op: Attention::NAME, what, index: i64::from(index), limit }
}

/// `starts` ascends within `0..=limit`.
fn ascending(what: &'static str, starts: &[i32], limit: usize) -> Result<(), KernelError> {
    let mut least = 0;
    for &start in starts {
        if start < least || start as usize > limit {
            return Err(bad(what, start, limit + 1));
        }
        least = start;
    }
    Ok(())
}

impl<'a> Operands<'a> {
    /// Errors if a value of an index buffer is out of range, ranges descend, or rows of `q` belong to no sequence.
    pub(in crate::ops::attention) fn new(op: &'a Attention, cx: &CpuCx) -> Result<Self, KernelError> {
        let tokens = op.q.size(0);
        let q_starts = ints(cx, &op.q_starts)?;
        ascending("q_starts", q_starts, tokens)?;
        let (first, last) = (q_starts[0], q_starts[q_starts.len() - 1]);
        if first != 0 || last as usize != tokens {
            let (index, limit) = if first != 0 { (0, 0) } else { (last, last as usize) };
            return Err(bad("row of q", index, limit));
        }
        let (k, v, place) = match &op.kv {
            AttentionKv::Packed { k, v, kv_starts } => {
                let starts = ints(cx, kv_starts)?;
                ascending("kv_starts", starts, k.size(0))?;
                (k, v, Place::Packed { starts })
            }
            AttentionKv::Paged { k, v, block_table, kv_lens } => {
                let (table, lens) = (ints(cx, block_table)?, ints(cx, kv_lens)?);
                let (pages, page, width) = (k.size(0), k.size(1), block_table.stride(0));
                let most = block_table.size(1) * page;
                for (seq, &len) in lens.iter().enumerate() {
                    if len < 0 || len as usize > most {
                        return Err(bad("kv_lens", len, most + 1));
                    }
                    let used = &table[seq * width..][..(len as usize).div_ceil(page.max(1))];
                    if let Some(&block) = used.iter().find(|&&block| block < 0 || block as usize >= pages) {
                        return Err(bad("page", block, pages));
                    }
                }
                (k, v, Place::Paged { table, width, page, lens })
            }
        };
        let limits = match &op.seen {
            Seen::All => Limits::All,
            Seen::Causal { window } => Limits::Causal { window: *window },
            Seen::Ranges { from, to } => {
                let (from, to) = (from.as_ref().map(|from| ints(cx, from)).transpose()?, ints(cx, to)?);
                ranges_ascend("seen from", from.unwrap_or_default(), q_starts)?;
                ranges_ascend("seen to", to, q_starts)?;
                Limits::Ranges { from, to }
            }
        };
        let (heads_q, heads_kv) = (op.q.size(1), k.size(k.layout().rank() - 2));
        Ok(Self {
            q_starts,
            limits,
            place,
            k: Strides::of(k),
            v: Strides::of(v),
            q: (op.q.stride(0), op.q.stride(1)),
            out: (op.out.stride(0), op.out.stride(1)),
            heads_kv,
            group: heads_q / heads_kv,
            head_dim: op.q.size(2),
        })
    }

    pub(in crate::ops::attention) fn seqs(&self) -> usize {
        self.q_starts.len() - 1
    }

    pub(in crate::ops::attention) fn seq(&self, index: usize) -> Seq {
        let row = self.q_starts[index] as usize;
        let kv_len = match self.place {
            Place::Packed { starts } => (starts[index + 1] - starts[index]) as usize,
            Place::Paged { lens, .. } => lens[index] as usize,
        };
        Seq { index, row, q_len: self.q_starts[index + 1] as usize - row, kv_len }
    }

    /// Offset in elements of key `j` of a sequence.
    #[inline(always)]
    pub(in crate::ops::attention) fn k_at(&self, seq: &Seq, head: usize, j: usize) -> usize {
        self.at(self.k, seq, head, j)
    }

    /// Offset in elements of value `j` of a sequence.
    #[inline(always)]
    pub(in crate::ops::attention) fn v_at(&self, seq: &Seq, head: usize, j: usize) -> usize {
        self.at(self.v, seq, head, j)
    }

    /// Elements from a key of one head to that of the next.
    #[inline(always)]
    pub(in crate::ops::attention) fn k_heads_apart(&self) -> usize {
        self.k.head
    }

    /// Elements from a value of one head to that of the next.
    #[inline(always)]
    pub(in crate::ops::attention) fn v_heads_apart(&self) -> usize {
        self.v.head
    }

    /// Offset in elements of what belongs to key `j` of a sequence.
    #[inline(always)]
    pub(in crate::ops::attention) fn at(&self, strides: Strides, seq: &Seq, head: usize, j: usize) -> usize {
        debug_assert!(j < seq.kv_len);
        let row = match self.place {
            Place::Packed { starts } => (starts[seq.index] as usize + j) * strides.slot,
            Place::Paged { table, width, page, .. } => {
                let (block, slot) = (j as u32 / page as u32, j as u32 % page as u32);
                table[seq.index * width + block as usize] as usize * strides.page
                    + slot as usize * strides.slot
            }
        };
        row + head * strides.head
    }

    /// Keys that query `i` of a sequence sees; the end of an empty range may lie before its start.
    #[inline(always)]
    pub(in crate::ops::attention) fn visible(&self, seq: &Seq, i: usize) -> std::ops::Range<usize> {
        match self.limits {
            Limits::All => 0..seq.kv_len,
            Limits::Causal { window } => {
                // One past the query's own position; zero where the sequence has fewer keys than queries.
                let end = (seq.kv_len + i + 1).saturating_sub(seq.q_len);
                let start = if window == 0 { 0 } else { end.saturating_sub(window) };
                start..end
            }
            Limits::Ranges { from, to } => {
                let at = |bounds: &[i32]| (bounds[seq.row + i].max(0) as usize).min(seq.kv_len);
                from.map_or(0, at)..at(to)
            }
        }
    }

    /// Whether keys that the queries of two sequences see, or two of one sequence, may lie in one page.
    pub(in crate::ops::attention) fn shares_pages(&self) -> bool {
        let Place::Paged { table, width, page, .. } = self.place else { return false };
        let mut taken = Vec::new();
        for index in 0..self.seqs() {
            let seq = self.seq(index);
            if seq.q_len == 0 {
                continue;
            }
            let (first, end) = (self.visible(&seq, 0).start, self.visible(&seq, seq.q_len - 1).end);
            if first < end {
                taken.extend_from_slice(&table[index * width..][first / page..end.div_ceil(page)]);
            }
        }
        taken.sort_unstable();
        taken.windows(2).any(|pair| pair[0] == pair[1])
    }
}
