//! Hopper's tensor cores: `flash_wgmma.cu`.

use bytemuck::{Pod, Zeroable};

use super::operands::{Operands, heads_kv, is_empty, most_rows, page, pools, strides};
use super::{bytes, keys_seen, mma, rows};
use crate::buffer::View;
use crate::cuda::CudaLaunch;
use crate::cuda::{CudaCx, Kernel, TensorMap, TensorTile};
use crate::op::Op;
use crate::ops::attention::{Attention, AttentionSpec};
use crate::select::{Reject, Variant};
use crate::spec::{Arch, Caps, DType, KernelError};

pub(super) const FLASH: Variant<AttentionSpec, CudaLaunch<Attention>> =
    Variant { name: "flash-wgmma", reject, est_us: estimate, launch };

/// Heads whose padded sizes wgmma has.
const HEAD_DIMS: [u32; 6] = [64, 72, 80, 96, 128, 256];

/// Sizes of `flash_wgmma.cu`, which explains them.
#[derive(Clone, Copy, Debug)]
struct Tiles {
    consumers: u32,
    tile_k: u32,
    stages: u32,
    /// Rows that the copy engine brings at once.
    box_rows: u32,
}

impl Tiles {
    /// For `units` key heads of `rows` query rows each.
    fn of(spec: &AttentionSpec, rows: u32, units: u32, caps: &Caps) -> Self {
        // What registers hold of scores, powers and sums of 64 rows: three consumers have 160 a thread, two have 240. A
        // hyperbolic tangent and the places of pages take more.
        let most = match (spec.head_dim, spec.softcap) {
            (0..=64, false) if spec.page == 0 => 3,
            (0..=128, _) | (_, false) => 2,
            _ => 1,
        };
        let tile_k = match spec.head_dim {
            0..=64 => 128,
            65..=128 if spec.causal || spec.ranges => 128,
            65..=128 => 176,
            _ => 80,
        };
        let consumers = (1..=most).rev().min_by_key(|&consumers| Self::work(consumers, rows, units, caps));
        let consumers = consumers.unwrap_or(most);
        let box_rows = if spec.page == 0 { tile_k } else { gcd(spec.page, tile_k) };
        let with = |stages| Self { consumers, tile_k, stages, box_rows };
        let fits = |stages: &u32| with(*stages).bytes(spec.head_dim) <= caps.cuda.shared_memory as usize;
        with((2..=3).rev().find(fits).unwrap_or(2))
    }

    /// Time with so many consumers a block: rows that a multiprocessor takes one after another, a quarter more for those of a
    /// consumer that takes turns with nobody.
    fn work(consumers: u32, rows: u32, units: u32, caps: &Caps) -> u32 {
        let tiles = rows.div_ceil(64 * consumers) * units;
        let rounds = tiles.div_ceil(caps.units.max(1) as u32);
        rounds * if consumers == 1 { 80 } else { 64 * consumers }
    }

    fn tile_q(&self) -> u32 {
        64 * self.consumers
    }

    /// Queries, the ring of keys and values, and four barriers a stage.
    fn bytes(&self, head_dim: u32) -> usize {
        let blocks = head_dim.div_ceil(64);
        let rows = self.tile_q() + 2 * self.stages * self.tile_k;
        (blocks * rows * 128 + 4 * 8 * self.stages) as usize
    }
}

const fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// `Params` of `flash_wgmma.cu`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    k: TensorMap,
    v: TensorMap,
    operands: Operands,
    row_tiles: i32,
    units: i32,
    together: i32,
    reserved: i32,
}

fn reject(spec: &AttentionSpec, caps: &Caps) -> Option<Reject> {
    if spec.kv_dtype == DType::I8 {
        return Some("for keys and values of 16 bits".into());
    }
    if caps.cuda.arch != Arch::Sm90a {
        return Some(format!("sm_90a is needed, the device is {}", caps.cuda.arch).into());
    }
    if !HEAD_DIMS.contains(&spec.head_dim) {
        return Some(format!("a head_dim of {HEAD_DIMS:?} is needed, found {}", spec.head_dim).into());
    }
    let tiles = Tiles::of(spec, rows(spec), spec.seqs * spec.heads_kv, caps);
    if !tiles.box_rows.is_multiple_of(8) {
        return Some(format!("pages of a multiple of 8 slots are needed, found {}", spec.page).into());
    }
    let (need, have) = (tiles.bytes(spec.head_dim), caps.cuda.shared_memory as usize);
    if need > have {
        return Some(format!("{need} bytes of shared memory are needed, the device has {have}").into());
    }
    mma::reject(spec, caps)
}

fn estimate(spec: &AttentionSpec, caps: &Caps) -> f32 {
    let units = spec.seqs.max(1) * spec.heads_kv.max(1);
    let tiles = Tiles::of(spec, rows(spec), units, caps);
    let rounds = f64::from(Tiles::work(tiles.consumers, rows(spec), units, caps));
    let width = f64::from(spec.head_dim.next_multiple_of(16));
    // As if every multiprocessor had work until the last has.
    let flops = 4.0 * rounds * caps.units.max(1) as f64 * keys_seen(spec) * width;
    caps.cuda.estimate_us(bytes(spec), flops, caps.cuda.tensor_tflops * 0.65)
}

/// Keys or values as the copy engine sees them, `[tokens, heads, head_dim]`: slots of pages follow one another.
fn tensor_map(
    kernel: &Kernel<'_, '_>,
    pool: &View,
    page: usize,
    tiles: &Tiles,
) -> Result<TensorMap, KernelError> {
    let [_, slot, head] = strides(pool);
    let rank = pool.layout().rank();
    let (head_dim, heads) = (pool.size(rank - 1), pool.size(rank - 2));
    let (tokens, size) = (pool.size(0) * page.max(1), pool.dtype().size());
    // A lone head, or token, has any stride: one that the copy engine takes.
    let head = if heads > 1 { head * size } else { (head_dim * size).next_multiple_of(16) };
    let slot = if tokens > 1 { slot * size } else { heads * head };
    kernel.tensor_map(&TensorTile {
        view: pool,
        shape: &[head_dim as u64, heads as u64, tokens as u64],
        strides_bytes: &[head as u64, slot as u64],
        tile: &[64, 1, tiles.box_rows],
        swizzle128: true,
    })
}

/// Whether the copy engine can read the operands.
fn regular(op: &Attention, kernel: &Kernel<'_, '_>) -> Result<bool, KernelError> {
    let (k, v) = pools(op);
    let page = page(op);
    let dense = |pool: &View| {
        let [of_page, slot, _] = strides(pool);
        page == 0 || pool.size(0) <= 1 || of_page == page * slot
    };
    Ok(!k.is_empty() && dense(k) && dense(v) && mma::aligned(op, kernel)?)
}

fn launch(op: &Attention, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    if is_empty(op) {
        return Ok(());
    }
    let (heads_kv, head_dim, page) = (heads_kv(op), op.q.size(2), page(op));
    let (multiprocessors, l2) = (cx.caps().units.max(1), cx.caps().cuda.l2 as usize);
    let heads = heads_kv * op.seqs();
    let tiles = Tiles::of(&op.spec()?, most_rows(op) as u32, heads as u32, cx.caps());
    let mut kernel = cx.kernel("ops/attention/flash_wgmma.cu");
    if op.scale <= 0.0 || !regular(op, &kernel)? {
        return mma::launch(op, cx);
    }
    let (k, v) = pools(op);
    let row_tiles = most_rows(op).div_ceil(tiles.tile_q() as usize);
    // Keys and values of the heads that are worked on together fill half of the cache at most.
    let keys = 2 * op.max_kv.max(1) * head_dim * k.dtype().size();
    let params = Params {
        k: tensor_map(&kernel, k, page, &tiles)?,
        v: tensor_map(&kernel, v, page, &tiles)?,
        operands: Operands::of(op, &mut kernel)?,
        row_tiles: row_tiles as i32,
        units: heads as i32,
        together: (l2 / 2 / keys).clamp(1, heads) as i32,
        reserved: 0,
    };
    kernel.define("X", op.q.dtype()).define("HEAD_DIM", head_dim).define("PAGE", page);
    kernel.define("SOFTCAP", op.softcap > 0.0).define("CONSUMERS", tiles.consumers);
    kernel.define("TILE_K", tiles.tile_k).define("STAGES", tiles.stages).define("BOX", tiles.box_rows);
    kernel.shared(tiles.bytes(head_dim as u32)).dependent();
    let blocks = (row_tiles * heads).min(multiprocessors) as u32;
    kernel.launch([blocks, 1, 1], 128 * (tiles.consumers + 1), &params)
}
