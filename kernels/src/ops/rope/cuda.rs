//! CUDA kernels: one source, with heads in vectors where they are aligned.

use bytemuck::{Pod, Zeroable};

use super::{Rope, RopeSpec, RopeStyle};
use crate::buffer::View;
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::{Caps, DType, KernelError};

impl CudaOp for Rope {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "heads", reject: |_, _| None, est_us, launch }])
    }
}

/// A launch, and the traffic.
fn est_us(spec: &RopeSpec, caps: &Caps) -> f32 {
    let kept = if spec.page > 0 { 2 * spec.heads_kv } else { spec.heads_kv };
    let read = (spec.heads_q + kept) as f32 * spec.x.size() as f32;
    let written = spec.heads_q as f32 * spec.x.size() as f32 + kept as f32 * spec.kv_dtype.size() as f32;
    2.0 + spec.tokens as f32 * spec.head_dim as f32 * (read + written) / (caps.cuda.read_gbps * 1e3)
}

/// Threads of a block at most.
const THREADS: usize = 128;
/// Pairs of a unit where everything is aligned.
const VEC: usize = 8;

/// How a head is shared out among lanes.
struct Shape {
    /// Pairs of a unit.
    vec: usize,
    /// Lanes of a head.
    team: usize,
    /// Units of a lane.
    units: usize,
}

impl Shape {
    fn of(head_dim: usize, pairs: usize, aligned: bool) -> Self {
        let whole = pairs.is_multiple_of(VEC) && head_dim.is_multiple_of(2 * VEC);
        let vec = if aligned && whole { VEC } else { 1 };
        let all = head_dim.div_ceil(2 * vec);
        // Without vectors one shape serves all heads of usual size.
        let team = if vec == 1 { 32 } else { all.next_power_of_two().min(32) };
        let units = all.div_ceil(team);
        Self { vec, team, units: if vec == 1 { units.next_power_of_two().max(4) } else { units } }
    }
}

/// Strides of heads: of tokens, and of the heads of one.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Heads {
    token: u64,
    head: u64,
}

impl Heads {
    fn of(view: &View) -> Self {
        Self { token: view.stride(0) as u64, head: view.stride(1) as u64 }
    }
}

/// Strides of pages: of pages, of the slots of one, of the heads of a slot.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Pages {
    page: u64,
    slot: u64,
    head: u64,
}

impl Pages {
    fn of(view: &View) -> Self {
        Self { page: view.stride(0) as u64, slot: view.stride(1) as u64, head: view.stride(2) as u64 }
    }
}

/// `Params` of `rope.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Params {
    q: u64,
    k: u64,
    v: u64,
    k_pages: u64,
    v_pages: u64,
    slots: u64,
    positions: u64,
    inv_freq: u64,
    pair_axis: u64,
    q_norm: u64,
    k_norm: u64,
    of_q: Heads,
    of_k: Heads,
    of_v: Heads,
    of_k_pages: Pages,
    of_v_pages: Pages,
    axis: u64,
    axes: u32,
    heads_q: u32,
    heads_kv: u32,
    head_dim: u32,
    pairs: u32,
    interleaved: u32,
    paged: u32,
    page_size: u32,
    limit: u32,
    scaling: f32,
    /// `1 / head_dim`.
    share: f32,
    weight_offset: f32,
    eps: f32,
    padding: u32,
}

fn launch(op: &Rope, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (tokens, head_dim, pairs) = (op.q.size(0), op.q.size(2), op.inv_freq.size(0));
    let (heads_q, heads_kv) = (op.q.size(1), op.k.size(1));
    let items = heads_q + heads_kv * if op.kv.is_some() { 2 } else { 1 };
    if tokens == 0 || items == 0 || head_dim == 0 {
        return Ok(());
    }
    let mut kernel = cx.kernel("ops/rope/rope.cu");
    let mut views = vec![&op.q, &op.k];
    views.extend(op.norm.iter().flat_map(|norm| [&norm.q, &norm.k]));
    // Heads of codes are written in words, at multiples of which they begin.
    views.extend(op.kv.iter().map(|kv| &kv.v));
    let floats = op.kv.iter().filter(|kv| kv.k_pages.dtype() != DType::I8);
    views.extend(floats.flat_map(|kv| [&kv.k_pages, &kv.v_pages]));
    let shape = Shape::of(head_dim, pairs, kernel.all_aligned(views)?);
    kernel.define("X", op.q.dtype());
    kernel.define("VEC", shape.vec).define("TEAM", shape.team).define("UNITS", shape.units);
    kernel.shared(pairs * 8).dependent();

    let mut params = Params {
        q: kernel.address(&op.q)?,
        k: kernel.address(&op.k)?,
        positions: kernel.address(&op.positions)?,
        inv_freq: kernel.address(&op.inv_freq)?,
        pair_axis: kernel.address_or_null(op.pair_axis.as_ref())?,
        of_q: Heads::of(&op.q),
        of_k: Heads::of(&op.k),
        axis: op.positions.stride(0) as u64,
        axes: op.positions.size(0) as u32,
        heads_q: heads_q as u32,
        heads_kv: heads_kv as u32,
        head_dim: head_dim as u32,
        pairs: pairs as u32,
        interleaved: (op.style == RopeStyle::Interleaved).into(),
        paged: op.kv.is_some().into(),
        page_size: 1,
        scaling: op.attention_scaling,
        share: 1.0 / head_dim as f32,
        ..Params::default()
    };
    kernel.define("Q_NORM", op.norm.as_ref().map_or(op.q.dtype(), |norm| norm.q.dtype()));
    kernel.define("K_NORM", op.norm.as_ref().map_or(op.q.dtype(), |norm| norm.k.dtype()));
    if let Some(norm) = &op.norm {
        (params.q_norm, params.k_norm) = (kernel.address(&norm.q)?, kernel.address(&norm.k)?);
        (params.weight_offset, params.eps) = (norm.weight_offset, norm.eps);
    }
    kernel.define("KV", op.kv.as_ref().map_or(op.q.dtype(), |kv| kv.k_pages.dtype()));
    if let Some(kv) = &op.kv {
        params.v = kernel.address(&kv.v)?;
        (params.k_pages, params.v_pages) = (kernel.address(&kv.k_pages)?, kernel.address(&kv.v_pages)?);
        params.slots = kernel.address(&kv.slots)?;
        params.of_v = Heads::of(&kv.v);
        (params.of_k_pages, params.of_v_pages) = (Pages::of(&kv.k_pages), Pages::of(&kv.v_pages));
        params.page_size = kv.k_pages.size(1).max(1) as u32;
        params.limit = (kv.k_pages.size(0) * kv.k_pages.size(1)) as u32;
    }
    let threads = (items * shape.team).next_multiple_of(32).min(THREADS);
    let blocks = items.div_ceil(threads / shape.team) as u32;
    kernel.launch([tokens as u32, blocks, 1], threads as u32, &params)
}
