//! CUDA kernels: tiles of queries and keys by multiply-adds (`flash`) or tensor cores (`flash-mma`, `flash-wgmma`), and few
//! queries with their keys split among blocks (`split`, `split-mma`). Keys and values of 8 bits are read by all but `flash-wgmma`.

mod flash;
mod mma;
mod operands;
mod wgmma;

use super::{Attention, AttentionSpec};
use crate::cuda::{CudaLaunch, CudaOp, CudaRows};
use crate::select::Variant;

impl CudaOp for Attention {
    fn cuda_variants() -> CudaRows<Self> {
        const ROWS: &[Variant<AttentionSpec, CudaLaunch<Attention>>] =
            &[flash::FLASH, flash::SPLIT, mma::FLASH, mma::SPLIT, wgmma::FLASH];
        Ok(ROWS)
    }
}

/// Query rows of one key head of one sequence, see `sequence.cuh`.
fn rows(spec: &AttentionSpec) -> u32 {
    spec.q.saturating_mul(spec.heads_q / spec.heads_kv.max(1))
}

/// Keys that a tile of query rows sees, about: half of them where later ones are hidden, as ranges mostly do.
fn keys_seen(spec: &AttentionSpec) -> f64 {
    let all = f64::from(spec.kv);
    let causal = if spec.causal || spec.ranges { all - f64::from(spec.q.min(spec.kv)) / 2.0 } else { all };
    if spec.window > 0 { causal.min(f64::from(spec.window)) } else { causal }
}

/// Bytes that must come from memory: keys and values once, queries and results.
fn bytes(spec: &AttentionSpec) -> f64 {
    let kv = keys_seen(spec).max(f64::from(spec.kv.min(spec.q)))
        * f64::from(spec.heads_kv)
        * spec.kv_dtype.size() as f64;
    let x = f64::from(spec.q) * f64::from(spec.heads_q) * spec.x.size() as f64;
    2.0 * (kv + x) * f64::from(spec.seqs) * f64::from(spec.head_dim)
}

/// Parts that the keys of a sequence are split into: `waves` blocks a multiprocessor, at least two tiles of keys each. It depends
/// on bounds that stay the same from step to step.
fn splits(spec: &AttentionSpec, units: usize, tile_q: u32, tile_k: u32, waves: u32) -> u32 {
    /// Parts whose sums the last block can put together in no time.
    const MOST: u32 = 64;
    // The window of the first query up to the last, from the beginning of a tile on.
    let window = spec.window.saturating_add(spec.q + tile_k);
    let seen = if spec.window > 0 { spec.kv.min(window) } else { spec.kv };
    let others = spec.seqs.max(1) * spec.heads_kv.max(1) * rows(spec).div_ceil(tile_q).max(1);
    let wanted = (units.max(1) as u32 * waves).div_ceil(others);
    wanted.min(seen.div_ceil(2 * tile_k)).clamp(1, MOST)
}
