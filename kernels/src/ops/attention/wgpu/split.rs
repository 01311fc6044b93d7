//! Few queries, their keys split among workgroups: `split.wgsl` and `combine.wgsl`.

use super::params::{self, Params, heads_kv};
use super::{MOST_HEAD_DIM, columns, rows};
use crate::op::Op;
use crate::ops::attention::{Attention, AttentionSpec};
use crate::select::Reject;
use crate::spec::{Caps, DType, KernelError};
use crate::wgpu::WgpuCx;

/// Query rows of a key head: beyond, tiles of queries are better.
const MOST_ROWS: u32 = 64;
/// Workgroups that keep a device busy, about.
const WORKGROUPS: u32 = 1024;
/// Keys of a tile.
const TILE_K: u32 = 64;

/// Rows that a workgroup takes together.
fn tile_rows(spec: &AttentionSpec) -> u32 {
    // What is left of 16 KiB bounds the rows of wide heads.
    let most = if spec.head_dim > 128 { 4 } else { 8 };
    rows(spec).next_power_of_two().clamp(1, most)
}

/// Parts of the keys, from bounds that stay the same from step to step.
fn splits(spec: &AttentionSpec) -> u32 {
    let seen = if spec.window > 0 {
        // The window of the first query up to the last, from the beginning of a tile on.
        spec.kv.min(spec.window.saturating_add(spec.q + TILE_K))
    } else {
        spec.kv
    };
    let others = spec.seqs.max(1) * spec.heads_kv * rows(spec).div_ceil(tile_rows(spec)).max(1);
    seen.div_ceil(TILE_K).min(WORKGROUPS.div_ceil(others.max(1))).max(1)
}

pub(super) fn reject(spec: &AttentionSpec, _: &Caps) -> Option<Reject> {
    let rows = rows(spec);
    if spec.head_dim > MOST_HEAD_DIM {
        return Some(format!("head_dim of at most {MOST_HEAD_DIM}, found {}", spec.head_dim).into());
    }
    (rows > MOST_ROWS)
        .then(|| format!("at most {MOST_ROWS} query rows of a key head, found up to {rows}").into())
}

pub(super) fn reject_subgroups(spec: &AttentionSpec, caps: &Caps) -> Option<Reject> {
    let (least, most) = caps.wgpu.subgroup;
    if least < 4 || most > 128 {
        return Some(format!("subgroups of 4 to 128 are needed, the device has {least} to {most}").into());
    }
    reject(spec, caps)
}

pub(super) fn estimate(spec: &AttentionSpec, _: &Caps) -> f32 {
    let (row_tiles, splits) = (rows(spec).div_ceil(tile_rows(spec)), splits(spec));
    let groups = (spec.seqs * spec.heads_kv * row_tiles * splits) as f32;
    // Keys and values from memory, against what one workgroup can take in and multiply.
    let keys = (spec.seqs * spec.heads_kv * row_tiles) as f32 * spec.kv as f32;
    let bytes = 2.0 * keys * (spec.head_dim as usize * spec.kv_dtype.size()) as f32;
    let products = 2.0 * keys * (tile_rows(spec) * spec.head_dim) as f32;
    let launches = if splits > 1 { 8.0 } else { 4.0 };
    launches + (bytes / 1e6 + products / 5e6) * (256.0 / groups.max(1.0)).max(1.0)
}

pub(super) fn estimate_subgroups(spec: &AttentionSpec, caps: &Caps) -> f32 {
    0.9 * estimate(spec, caps)
}

pub(super) fn launch(op: &Attention, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    run(op, cx, false)
}

pub(super) fn launch_subgroups(op: &Attention, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    run(op, cx, true)
}

fn run(op: &Attention, cx: &mut WgpuCx<'_>, subgroups: bool) -> Result<(), KernelError> {
    if op.q.is_empty() || op.seqs() == 0 || op.max_q == 0 {
        return Ok(());
    }
    let spec = op.spec()?;
    let (splits, tile_rows, heads_kv) = (splits(&spec), tile_rows(&spec), heads_kv(op));
    let (heads, head_dim) = (op.q.size(0) * op.q.size(1), op.q.size(2));
    let stride = 4 * (columns(spec.head_dim) as usize + 1);
    let partial =
        if splits > 1 { Some(cx.scratch(0, heads * splits as usize * stride, DType::F32)?) } else { None };

    let ranges = params::ranges(op, cx)?;
    let mut kernel = cx.kernel("ops/attention/split.wgsl");
    let mut params = Params::bind(op, ranges.as_ref(), &mut kernel)?;
    params.splits = splits;
    match &partial {
        None => params.bind_out(op, &mut kernel)?,
        Some(partial) => params.partial = kernel.bind(3, partial)?,
    }
    kernel
        .define("ROWS", tile_rows)
        .define("DIRECT", u8::from(partial.is_none()))
        .define("SUBGROUPS", u8::from(subgroups))
        .params(&params);
    let rows = op.max_q * (op.q.size(1) / heads_kv);
    let blocks = rows.div_ceil(tile_rows as usize) * heads_kv;
    kernel.dispatch([splits, blocks as u32, op.seqs() as u32])?;

    let Some(partial) = &partial else { return Ok(()) };
    let mut kernel = cx.kernel("ops/attention/combine.wgsl");
    let mut params = Params::sizes(op);
    params.splits = splits;
    params.partial = kernel.bind(0, partial)?;
    params.bind_out(op, &mut kernel)?;
    kernel.define("X", op.q.dtype()).define("HEAD_DIM", head_dim).params(&params);
    kernel.dispatch_linear((heads * columns(spec.head_dim) as usize).div_ceil(64))
}
