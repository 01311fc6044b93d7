//! Multiply-adds in f32: `flash.cu`, and the same kernel with keys split among blocks.

use super::operands::{Operands, heads_kv, is_empty, most_rows};
use super::{bytes, keys_seen, rows, splits};
use crate::cuda::CudaCx;
use crate::cuda::CudaLaunch;
use crate::op::Op;
use crate::ops::attention::{Attention, AttentionSpec};
use crate::select::{Reject, Variant};
use crate::spec::{Caps, DType, KernelError};

type Row = Variant<AttentionSpec, CudaLaunch<Attention>>;

pub(super) const FLASH: Row = Variant { name: "flash", reject: |_, _| None, est_us: estimate_flash, launch };

pub(super) const SPLIT: Row =
    Variant { name: "split", reject: reject_split, est_us: estimate_split, launch: launch_split };

const THREADS: u32 = 256;
/// Keys of a tile.
const TILE_K: u32 = 64;
/// Elements of a row in chunks for the scores, rows of values, and padding of rows in shared memory, see `flash.cu`.
const CHUNK: usize = 32;
const V_ROWS: usize = 32;
const PAD: usize = 4;
/// Query rows of a tile whose keys are split, and of a key head in all.
const SPLIT_TILE_Q: u32 = 16;
const MOST_SPLIT_ROWS: u32 = 64;

/// Columns of the result that a block gives: what its registers hold at most.
fn columns(head_dim: u32) -> u32 {
    [32, 64, 96, 128].into_iter().find(|&columns| head_dim <= columns).unwrap_or(256)
}

/// Rows of a thread.
fn thread_rows(rows: u32) -> u32 {
    if rows <= 16 { 1 } else { 4 }
}

fn reject_split(spec: &AttentionSpec, _: &Caps) -> Option<Reject> {
    let rows = rows(spec);
    if spec.head_dim > 256 {
        return Some(format!("head_dim of at most 256, found {}", spec.head_dim).into());
    }
    (rows > MOST_SPLIT_ROWS)
        .then(|| format!("at most {MOST_SPLIT_ROWS} query rows of a key head, found up to {rows}").into())
}

/// Time of blocks that take tiles of `tile_q` rows with their keys in `splits` parts.
fn estimate(spec: &AttentionSpec, caps: &Caps, tile_q: u32, splits: u32) -> f32 {
    let tiles = f64::from(rows(spec).div_ceil(tile_q).max(1));
    let units = tiles * f64::from(spec.seqs.max(1) * spec.heads_kv.max(1));
    let width = f64::from(columns(spec.head_dim).max(spec.head_dim));
    let flops = 4.0 * units * f64::from(tile_q) * keys_seen(spec) * width;
    // A third of the multiply-adds of the multiprocessors that have a block.
    let busy = (units * f64::from(splits) / caps.units.max(1) as f64).clamp(1e-3, 1.0);
    caps.cuda.estimate_us(bytes(spec) / busy.sqrt(), flops / busy, caps.cuda.f32_tflops / 3.0)
}

fn estimate_flash(spec: &AttentionSpec, caps: &Caps) -> f32 {
    estimate(spec, caps, 16 * thread_rows(rows(spec)), 1)
}

fn estimate_split(spec: &AttentionSpec, caps: &Caps) -> f32 {
    estimate(spec, caps, SPLIT_TILE_Q, split_parts(spec, caps))
}

fn split_parts(spec: &AttentionSpec, caps: &Caps) -> u32 {
    splits(spec, caps.units, SPLIT_TILE_Q, TILE_K, 2)
}

pub(super) fn launch(op: &Attention, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let rows = thread_rows(most_rows(op) as u32);
    run(op, cx, rows, 1)
}

fn launch_split(op: &Attention, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let parts = split_parts(&op.spec()?, cx.caps());
    run(op, cx, SPLIT_TILE_Q / 16, parts)
}

fn run(op: &Attention, cx: &mut CudaCx<'_>, thread_rows: u32, splits: u32) -> Result<(), KernelError> {
    if is_empty(op) {
        return Ok(());
    }
    let (heads_kv, head_dim) = (heads_kv(op), op.q.size(2));
    let tile_q = 16 * thread_rows as usize;
    let row_tiles = most_rows(op).div_ceil(tile_q);
    let units = row_tiles * heads_kv * op.seqs();
    let columns = columns(head_dim as u32) as usize;
    let parts = units * splits as usize;
    let scratch = match splits {
        1 => None,
        _ => Some((cx.scratch(0, parts * tile_q * (head_dim + 2), DType::F32)?, cx.counters(units)?)),
    };

    let mut kernel = cx.kernel("ops/attention/flash.cu");
    let mut operands = Operands::of(op, &mut kernel)?;
    operands.splits = splits as i32;
    if let Some((partial, counters)) = &scratch {
        operands.partial = kernel.address(partial)?;
        operands.counters = kernel.address(counters)?;
    }
    let chunks = (tile_q + TILE_K as usize) * (CHUNK + PAD);
    let words = chunks + tile_q * (TILE_K as usize + PAD) + V_ROWS * columns;
    kernel.define("ROWS", thread_rows).define("COLUMNS", columns).shared(4 * words).dependent();
    let slabs = head_dim.div_ceil(columns);
    kernel.launch(
        [(row_tiles * slabs) as u32 * splits, heads_kv as u32, op.seqs() as u32],
        THREADS,
        &operands,
    )
}
