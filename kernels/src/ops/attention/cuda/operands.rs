//! Operands that all attention kernels share.

use bytemuck::{Pod, Zeroable};

use crate::buffer::View;
use crate::cuda::{Kernel, value_type};
use crate::ops::attention::{Attention, AttentionKv, Seen};
use crate::spec::KernelError;

/// `Operands` of `sequence.cuh`, which explains them.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct Operands {
    q: u64,
    k: u64,
    v: u64,
    out: u64,
    q_starts: u64,
    kv_lens: u64,
    block_table: u64,
    from: u64,
    to: u64,
    pub partial: u64,
    pub counters: u64,
    q_token: i64,
    q_head: i64,
    k_page: i64,
    k_slot: i64,
    k_head: i64,
    v_page: i64,
    v_slot: i64,
    v_head: i64,
    out_token: i64,
    out_head: i64,
    table_row: i64,
    tokens: i32,
    kv_rows: i32,
    table_width: i32,
    page: i32,
    pub heads_kv: i32,
    group: i32,
    head_dim: i32,
    causal: i32,
    window: i32,
    pub splits: i32,
    scale: f32,
    softcap: f32,
    x_type: u32,
    kv_type: u32,
    pub aligned: u32,
    reserved: u32,
}

/// Keys and values.
pub(super) fn pools(op: &Attention) -> (&View, &View) {
    match &op.kv {
        AttentionKv::Packed { k, v, .. } | AttentionKv::Paged { k, v, .. } => (k, v),
    }
}

/// Key heads.
pub(super) fn heads_kv(op: &Attention) -> usize {
    let (k, _) = pools(op);
    k.size(k.layout().rank() - 2)
}

/// Slots of a page; 0 where keys are packed.
pub(super) fn page(op: &Attention) -> usize {
    match &op.kv {
        AttentionKv::Packed { .. } => 0,
        AttentionKv::Paged { k, .. } => k.size(1),
    }
}

/// Elements from one page, slot and head of a pool to the next. Packed keys are slots of a single page.
pub(super) fn strides(pool: &View) -> [usize; 3] {
    match pool.layout().rank() {
        3 => [0, pool.stride(0), pool.stride(1)],
        _ => [pool.stride(0), pool.stride(1), pool.stride(2)],
    }
}

/// Whether there is nothing to compute.
pub(super) fn is_empty(op: &Attention) -> bool {
    op.q.is_empty() || op.seqs() == 0 || op.max_q == 0
}

/// Query rows of the longest sequence, see `sequence.cuh`.
pub(super) fn most_rows(op: &Attention) -> usize {
    op.max_q * (op.q.size(1) / heads_kv(op).max(1))
}

impl Operands {
    /// The operands; gives the source what `sequence.cuh` asks for.
    pub fn of(op: &Attention, kernel: &mut Kernel<'_, '_>) -> Result<Self, KernelError> {
        kernel.define("RANGES", matches!(op.seen, Seen::Ranges { .. }));
        let (k, v) = pools(op);
        let heads_kv = heads_kv(op);
        let [k_page, k_slot, k_head] = strides(k).map(|stride| stride as i64);
        let [v_page, v_slot, v_head] = strides(v).map(|stride| stride as i64);
        let (kv_lens, table) = match &op.kv {
            AttentionKv::Packed { kv_starts, .. } => (kv_starts, None),
            AttentionKv::Paged { block_table, kv_lens, .. } => (kv_lens, Some(block_table)),
        };
        let (from, to) = match &op.seen {
            Seen::Ranges { from, to } => (from.as_ref(), Some(to)),
            Seen::All | Seen::Causal { .. } => (None, None),
        };
        let (causal, window) = op.seen.causal();
        let four = |view: &View| kernel.aligned(view, 4 * view.dtype().size());
        let aligned = op.q.size(2).is_multiple_of(4) && four(&op.q)? && four(k)? && four(v)?;
        Ok(Self {
            q: kernel.address(&op.q)?,
            k: kernel.address(k)?,
            v: kernel.address(v)?,
            out: kernel.address(&op.out)?,
            q_starts: kernel.address(&op.q_starts)?,
            kv_lens: kernel.address(kv_lens)?,
            block_table: kernel.address_or_null(table)?,
            from: kernel.address_or_null(from)?,
            to: kernel.address_or_null(to)?,
            q_token: op.q.stride(0) as i64,
            q_head: op.q.stride(1) as i64,
            k_page,
            k_slot,
            k_head,
            v_page,
            v_slot,
            v_head,
            out_token: op.out.stride(0) as i64,
            out_head: op.out.stride(1) as i64,
            table_row: table.map_or(0, |table| table.stride(0) as i64),
            tokens: op.q.size(0) as i32,
            kv_rows: if k.is_empty() { 0 } else { k.size(0) as i32 },
            table_width: table.map_or(0, |table| table.size(1) as i32),
            page: page(op) as i32,
            heads_kv: heads_kv as i32,
            group: (op.q.size(1) / heads_kv.max(1)) as i32,
            head_dim: op.q.size(2) as i32,
            causal: i32::from(causal),
            window: window.min(i32::MAX as usize) as i32,
            splits: 1,
            scale: op.scale,
            softcap: op.softcap.max(0.0),
            x_type: value_type(Some(&op.q)),
            kv_type: value_type(Some(k)),
            aligned: u32::from(aligned),
            ..Self::default()
        })
    }
}
