//! Operands and parameters that all attention kernels share.

use bytemuck::{Pod, Zeroable};

use crate::buffer::View;
use crate::ops::attention::{Attention, AttentionKv, Seen};
use crate::spec::{DType, KernelError};
use crate::wgpu::{Kernel, WgpuCx};

/// `Params` of `params.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct Params {
    tokens: u32,
    group: u32,
    q: u32,
    q_token: u32,
    q_head: u32,
    k: u32,
    k_page: u32,
    k_slot: u32,
    k_head: u32,
    v: u32,
    v_page: u32,
    v_slot: u32,
    v_head: u32,
    out: u32,
    out_token: u32,
    out_head: u32,
    q_starts: u32,
    kv_lens: u32,
    block_table: u32,
    table_width: u32,
    page: u32,
    kv_rows: u32,
    ranges_to: u32,
    ranges_from: u32,
    causal: u32,
    window: u32,
    scale: f32,
    softcap: f32,
    /// Parts of the keys of a sequence, and where their results lie; 0 where keys are not split.
    pub splits: u32,
    pub partial: u32,
    heads_q: u32,
}

/// Key heads of an op.
pub(super) fn heads_kv(op: &Attention) -> usize {
    match &op.kv {
        AttentionKv::Packed { k, .. } => k.size(1),
        AttentionKv::Paged { k, .. } => k.size(2),
    }
}

/// Keys and values.
fn pools(op: &Attention) -> (&View, &View) {
    match &op.kv {
        AttentionKv::Packed { k, v, .. } | AttentionKv::Paged { k, v, .. } => (k, v),
    }
}

/// `Params` of `ranges.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RangeParams {
    tokens: u32,
    ends: u32,
    firsts: u32,
    both: u32,
}

/// The bounds of ranges in one view, ends first. They are put together in a launch of their own where there are two of them.
pub(super) fn ranges(op: &Attention, cx: &mut WgpuCx<'_>) -> Result<Option<View>, KernelError> {
    let Seen::Ranges { from, to } = &op.seen else { return Ok(None) };
    let Some(from) = from else { return Ok(Some(to.clone())) };
    let both = cx.scratch(1, 2 * to.len(), DType::I32)?;
    let mut kernel = cx.kernel("ops/attention/ranges.wgsl");
    let params = RangeParams {
        tokens: to.len() as u32,
        ends: kernel.bind(0, to)?,
        firsts: kernel.bind(1, from)?,
        both: kernel.bind(2, &both)?,
    };
    kernel.params(&params);
    kernel.dispatch_linear(to.len().div_ceil(64))?;
    Ok(Some(both))
}

impl Params {
    /// Binds queries, keys, values, lengths and [`ranges`] where `rows4.wgsl`, `keys.wgsl` and `mask.wgsl` expect them, and gives
    /// the source their types.
    pub fn bind(
        op: &Attention,
        ranges: Option<&View>,
        kernel: &mut Kernel<'_, '_>,
    ) -> Result<Self, KernelError> {
        let (k, v) = pools(op);
        let mut p = Self::sizes(op);
        p.q = kernel.bind(0, &op.q)?;
        p.k = kernel.bind(1, k)?;
        p.v = kernel.bind(2, v)?;
        p.q_starts = kernel.bind(4, &op.q_starts)?;
        match &op.kv {
            AttentionKv::Packed { kv_starts, .. } => {
                p.kv_lens = kernel.bind(5, kv_starts)?;
                p.kv_rows = k.size(0) as u32;
            }
            AttentionKv::Paged { block_table, kv_lens, .. } => {
                p.kv_lens = kernel.bind(5, kv_lens)?;
                p.block_table = kernel.bind(6, block_table)?;
                // Without a slot there are no keys.
                p.table_width = if k.is_empty() { 0 } else { block_table.size(1) as u32 };
                p.page = k.size(1).max(1) as u32;
                p.kv_rows = k.size(0) as u32;
            }
        }
        if let Some(ranges) = ranges {
            p.ranges_to = kernel.bind(7, ranges)?;
            p.ranges_from = p.ranges_to + p.tokens;
        }
        // Four elements at once, where every head begins at a multiple of four.
        let strides = [p.q_token, p.q_head, p.k_page, p.k_slot, p.k_head, p.v_page, p.v_slot, p.v_head];
        let vec4 = op.q.size(2).is_multiple_of(4)
            && [p.q, p.k, p.v].iter().chain(&strides).all(|at| at.is_multiple_of(4));
        kernel
            .define("X", op.q.dtype())
            .define("KV", k.dtype())
            .define("HEAD_DIM", op.q.size(2))
            .define("VEC4", u8::from(vec4))
            .define("PAGED", u8::from(matches!(op.kv, AttentionKv::Paged { .. })))
            .define("RANGES", u8::from(ranges.is_some()))
            .define("FROM", u8::from(matches!(op.seen, Seen::Ranges { from: Some(_), .. })));
        Ok(p)
    }

    /// Binds the result where `result.wgsl` expects it.
    pub fn bind_out(&mut self, op: &Attention, kernel: &mut Kernel<'_, '_>) -> Result<(), KernelError> {
        self.out = kernel.bind(3, &op.out)?;
        Ok(())
    }

    /// Everything but bindings.
    pub fn sizes(op: &Attention) -> Self {
        let (k, v) = pools(op);
        let last = k.layout().rank() - 1;
        let (causal, window) = op.seen.causal();
        let stride = |view: &View, axis: usize| view.stride(axis) as u32;
        let slot = |view: &View| if last == 3 { stride(view, 1) } else { 0 };
        Self {
            tokens: op.q.size(0) as u32,
            group: (op.q.size(1) / heads_kv(op).max(1)) as u32,
            q_token: stride(&op.q, 0),
            q_head: stride(&op.q, 1),
            k_page: stride(k, 0),
            k_slot: slot(k),
            k_head: stride(k, last - 1),
            v_page: stride(v, 0),
            v_slot: slot(v),
            v_head: stride(v, last - 1),
            out_token: stride(&op.out, 0),
            out_head: stride(&op.out, 1),
            causal: u32::from(causal),
            window: window.min(i32::MAX as usize) as u32,
            scale: op.scale,
            softcap: op.softcap.max(0.0),
            heads_q: op.q.size(1) as u32,
            ..Self::default()
        }
    }
}
