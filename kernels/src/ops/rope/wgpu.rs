//! WGSL kernels: one launch for queries, keys and values where the device binds enough buffers, else one for each.

use bytemuck::{Pod, Zeroable};

use super::{KvWrite, Rope, RopeSpec, RopeStyle};
use crate::buffer::View;
use crate::select::{Reject, Variant};
use crate::spec::{Caps, DType, KernelError};
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for Rope {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[
            Variant { name: "fused", reject: fused_reject, est_us: |_, _| 1.0, launch: fused },
            Variant { name: "parts", reject: |_, _| None, est_us: |_, _| 2.0, launch: parts },
        ])
    }
}

/// Which tensors a launch works on.
#[derive(Clone, Copy, Default)]
struct Parts {
    q: bool,
    k: bool,
    v: bool,
}

/// `Params` of `rope.wgsl`. Offsets and strides are in elements; `k_page`, `k_slot` and `k_page_head` are strides of the pages
/// of keys.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Params {
    tokens: u32,
    /// Query heads, and key heads from bit 16 on.
    heads: u32,
    /// Elements of a head, and pairs from bit 16 on.
    head_pairs: u32,
    /// Slots of all pages.
    limit: u32,
    q: u32,
    q_token: u32,
    q_head: u32,
    k: u32,
    k_token: u32,
    k_head: u32,
    v: u32,
    v_token: u32,
    v_head: u32,
    positions: u32,
    axis: u32,
    axes: u32,
    inv_freq: u32,
    pair_axis: u32,
    q_norm: u32,
    k_norm: u32,
    slots: u32,
    k_pages: u32,
    k_page: u32,
    k_slot: u32,
    k_page_head: u32,
    v_pages: u32,
    v_page: u32,
    v_slot: u32,
    v_page_head: u32,
    scaling: f32,
    weight_offset: f32,
    eps: f32,
}

fn fused_reject(spec: &RopeSpec, caps: &Caps) -> Option<Reject> {
    // Queries, keys, positions, frequencies; then axes of pairs, scales, slots with values and both pages.
    let most = 4 + u32::from(spec.axes > 1) + 2 * u32::from(spec.norm) + 4 * u32::from(spec.page > 0);
    let have = caps.wgpu.storage_buffers;
    (most > have).then(|| format!("{most} storage buffers are needed, the device binds {have}").into())
}

fn fused(op: &Rope, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    if let Some(kv) = codes(op) {
        return coded(op, kv, cx, &[Parts { q: true, k: true, v: false }]);
    }
    launch(op, cx, Parts { q: true, k: true, v: op.kv.is_some() })
}

fn parts(op: &Rope, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    if let Some(kv) = codes(op) {
        let (q, k) = (Parts { q: true, ..Parts::default() }, Parts { k: true, ..Parts::default() });
        return coded(op, kv, cx, &[q, k]);
    }
    launch(op, cx, Parts { q: true, ..Parts::default() })?;
    launch(op, cx, Parts { k: true, ..Parts::default() })?;
    launch(op, cx, Parts { v: op.kv.is_some(), ..Parts::default() })
}

/// Pages of codes that keys and values go to.
fn codes(op: &Rope) -> Option<&KvWrite> {
    op.kv.as_ref().filter(|kv| kv.k_pages.dtype() == DType::I8)
}

/// `Params` of `codes.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct CodeParams {
    tokens: u32,
    heads: u32,
    head_dim: u32,
    limit: u32,
    x: u32,
    x_token: u32,
    x_head: u32,
    slots: u32,
    pages: u32,
    page: u32,
    slot: u32,
    page_head: u32,
}

/// Turned keys go to memory of this launch, and from there, as values from theirs, into pages of codes: a launch each.
fn coded(op: &Rope, kv: &KvWrite, cx: &mut WgpuCx<'_>, turns: &[Parts]) -> Result<(), KernelError> {
    let (tokens, heads, head_dim) = (op.k.size(0), op.k.size(1), op.k.size(2));
    let turned = cx.scratch(0, tokens * heads * head_dim, DType::F32)?.reshape(&[tokens, heads, head_dim])?;
    // The first slots are those of the tokens in order.
    let pages = turned.reshape(&[tokens, 1, heads, head_dim])?;
    for &parts in turns {
        launch_to(op, cx, parts, parts.k.then_some(&pages))?;
    }
    if kv.k_pages.is_empty() || turned.is_empty() {
        return Ok(());
    }
    for (x, pages) in [(&turned, &kv.k_pages), (&kv.v, &kv.v_pages)] {
        let mut kernel = cx.kernel("ops/rope/codes.wgsl");
        let params = CodeParams {
            tokens: tokens as u32,
            heads: heads as u32,
            head_dim: head_dim as u32,
            limit: (pages.size(0) * pages.size(1)) as u32,
            x: kernel.bind(0, x)?,
            x_token: x.stride(0) as u32,
            x_head: x.stride(1) as u32,
            slots: kernel.bind(1, &kv.slots)?,
            pages: kernel.bind(2, pages)?,
            page: pages.stride(0) as u32,
            slot: pages.stride(1) as u32,
            page_head: pages.stride(2) as u32,
        };
        kernel.define("X", x.dtype()).define("PAGE", pages.size(1)).params(&params);
        kernel.dispatch_linear((tokens * heads).div_ceil(8))?;
    }
    Ok(())
}

/// Two numbers in one word.
fn halves(what: &str, low: usize, high: usize) -> Result<u32, KernelError> {
    match (u16::try_from(low), u16::try_from(high)) {
        (Ok(low), Ok(high)) => Ok(u32::from(low) | u32::from(high) << 16),
        _ => Err(KernelError::Device(format!("rope: {what}: {low} and {high}, at most {}", u16::MAX))),
    }
}

fn launch(op: &Rope, cx: &mut WgpuCx<'_>, parts: Parts) -> Result<(), KernelError> {
    launch_to(op, cx, parts, None)
}

/// With `turned`, f32 `[tokens, 1, heads_kv, head_dim]`, keys go there in place of their pages.
fn launch_to(
    op: &Rope,
    cx: &mut WgpuCx<'_>,
    mut parts: Parts,
    turned: Option<&View>,
) -> Result<(), KernelError> {
    let (tokens, head_dim, pairs) = (op.q.size(0), op.q.size(2), op.inv_freq.size(0));
    if op.kv.as_ref().is_some_and(|kv| kv.k_pages.is_empty()) {
        (parts.k, parts.v) = (false, false);
    }
    let (heads_q, heads_kv) = (op.q.size(1), op.k.size(1));
    let count = |part: bool, heads: usize| if part { heads } else { 0 };
    let heads = tokens * (count(parts.q, heads_q) + count(parts.k, heads_kv) + count(parts.v, heads_kv));
    if heads == 0 || head_dim == 0 {
        return Ok(());
    }
    let turns = parts.q || parts.k;
    // Without turns there is nothing to normalize; a single axis needs no choice.
    let norm = op.norm.as_ref().filter(|_| turns);
    let pair_axis = op.pair_axis.as_ref().filter(|_| turns && op.positions.size(0) > 1);
    let kv = op.kv.as_ref().filter(|_| (parts.k || parts.v) && turned.is_none());

    let mut p = Params {
        tokens: tokens as u32,
        heads: halves("heads", heads_q, heads_kv)?,
        head_pairs: halves("head_dim", head_dim, pairs)?,
        scaling: op.attention_scaling,
        ..Params::default()
    };
    let mut kernel = cx.kernel("ops/rope/rope.wgsl");
    kernel
        .define("WITH_Q", u8::from(parts.q))
        .define("WITH_K", u8::from(parts.k))
        .define("WITH_V", u8::from(parts.v))
        .define("PAGED", u8::from(kv.is_some() || turned.is_some()))
        .define("SLOTS", u8::from(kv.is_some()))
        .define("NORM", u8::from(norm.is_some()))
        .define("PAIR_AXIS", u8::from(pair_axis.is_some()))
        .define("STYLE", if op.style == RopeStyle::Half { "half" } else { "interleaved" })
        .define("X", op.q.dtype())
        .define("PAGE", kv.map_or(1, |kv| kv.k_pages.size(1)));
    if parts.q {
        p.q = kernel.bind(0, &op.q)?;
        (p.q_token, p.q_head) = (op.q.stride(0) as u32, op.q.stride(1) as u32);
    }
    if parts.k {
        p.k = kernel.bind(1, &op.k)?;
        (p.k_token, p.k_head) = (op.k.stride(0) as u32, op.k.stride(1) as u32);
    }
    if let Some(turned) = turned {
        kernel.define("KV", turned.dtype());
        p.k_pages = kernel.bind(2, turned)?;
        (p.k_page, p.k_page_head) = (turned.stride(0) as u32, turned.stride(2) as u32);
    }
    if let Some(kv) = kv {
        kernel.define("KV", kv.k_pages.dtype());
        p.limit = (kv.k_pages.size(0) * kv.k_pages.size(1)) as u32;
        p.slots = kernel.bind(5, &kv.slots)?;
        let strides = |axis| (kv.k_pages.stride(axis) as u32, kv.v_pages.stride(axis) as u32);
        ((p.k_page, p.v_page), (p.k_slot, p.v_slot)) = (strides(0), strides(1));
        (p.k_page_head, p.v_page_head) = strides(2);
        if parts.k {
            p.k_pages = kernel.bind(2, &kv.k_pages)?;
        }
        if parts.v {
            p.v = kernel.bind(3, &kv.v)?;
            (p.v_token, p.v_head) = (kv.v.stride(0) as u32, kv.v.stride(1) as u32);
            p.v_pages = kernel.bind(4, &kv.v_pages)?;
        }
    }
    if turns {
        p.positions = kernel.bind(6, &op.positions)?;
        (p.axis, p.axes) = (op.positions.stride(0) as u32, op.positions.size(0) as u32);
        p.inv_freq = kernel.bind(7, &op.inv_freq)?;
    }
    if let Some(axis) = pair_axis {
        p.pair_axis = kernel.bind(8, axis)?;
    }
    if let Some(norm) = norm {
        (p.weight_offset, p.eps) = (norm.weight_offset, norm.eps);
        if parts.q {
            kernel.define("Q_NORM", norm.q.dtype());
            p.q_norm = kernel.read(9, &norm.q)?;
        }
        if parts.k {
            kernel.define("K_NORM", norm.k.dtype());
            p.k_norm = kernel.read(10, &norm.k)?;
        }
    }
    kernel.params(&p);
    // 128 invocations, 16 a head.
    kernel.dispatch_linear(heads.div_ceil(8))
}
