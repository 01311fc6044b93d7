//! Tensor cores by mma: `flash_mma.cu`, for many queries and for few, on keys and values of 16 bits or codes of 8 bits.

use super::operands::{Operands, heads_kv, is_empty, most_rows, page, pools};
use super::{bytes, flash, keys_seen, rows, splits};
use crate::cuda::CudaLaunch;
use crate::cuda::{CudaCx, Kernel};
use crate::op::Op;
use crate::ops::attention::{Attention, AttentionSpec};
use crate::select::{Reject, Variant};
use crate::spec::{Caps, DType, KernelError};

type Row = Variant<AttentionSpec, CudaLaunch<Attention>>;

pub(super) const FLASH: Row = Variant { name: "flash-mma", reject, est_us: estimate_flash, launch };

pub(super) const SPLIT: Row =
    Variant { name: "split-mma", reject: reject_split, est_us: estimate_split, launch: launch_split };

const THREADS: u32 = 128;
/// The largest head whose sums fit the registers of a warp.
const MOST_HEAD_DIM: u32 = 256;
/// Most query rows of a key head whose keys are split.
const MOST_SPLIT_ROWS: u32 = 64;

/// Sizes of `flash_mma.cu`, which explains them.
#[derive(Clone, Copy, Debug)]
struct Tiles {
    blocks: u32,
    warps_k: u32,
    tile_k: u32,
    slots: u32,
    codes: bool,
}

impl Tiles {
    /// Each warp has its own rows: two blocks of them where registers allow and the tensor cores are so fast that keys in
    /// shared memory must be used twice.
    fn flash(head_dim: u32, rows: u32, codes: bool, caps: &Caps) -> Self {
        // Codes pass through registers.
        let fast = caps.cuda.shared_memory >= 160 << 10 && !codes;
        let blocks = if rows > 64 && (head_dim <= 64 || (head_dim <= 128 && fast)) { 2 } else { 1 };
        let tile_k = if head_dim > 128 || (blocks == 2 && head_dim > 64) { 32 } else { 64 };
        Self { blocks, warps_k: 1, tile_k, slots: 0, codes }.fill(head_dim, caps)
    }

    /// All warps have the same rows.
    fn split(head_dim: u32, codes: bool, caps: &Caps) -> Self {
        Self { blocks: 1, warps_k: 4, tile_k: 64, slots: 0, codes }.fill(head_dim, caps)
    }

    /// As many slots as leave room for two blocks in a multiprocessor, whose shared memory is a KiB more than a block's; of codes two.
    fn fill(self, head_dim: u32, caps: &Caps) -> Self {
        if self.codes {
            return Self { slots: 2, ..self };
        }
        let half = (caps.cuda.shared_memory as usize - 1024) / 2;
        let fits = |slots: &u32| Self { slots: *slots, ..self }.bytes(head_dim) <= half;
        Self { slots: (2..=4).rev().find(fits).unwrap_or(2), ..self }
    }

    /// Query rows of a block.
    fn tile_q(&self) -> u32 {
        16 * self.blocks * 4 / self.warps_k
    }

    /// Shared memory: queries, the ring and scales of codes in it; later the sums of four warps.
    fn bytes(&self, head_dim: u32) -> usize {
        let dim = head_dim.div_ceil(16) * 16;
        let parts = dim / 8;
        let row = 16 * if parts.is_multiple_of(8) { parts } else { parts | 1 };
        let scales = if self.codes { self.slots * self.tile_k * 4 } else { 0 };
        let staged = (self.tile_q() + self.slots * self.tile_k) * row + scales;
        let sums = if self.warps_k > 1 { 4 * 16 * (dim + 2) * 4 } else { 0 };
        staged.max(sums) as usize
    }
}

pub(super) fn reject(spec: &AttentionSpec, _: &Caps) -> Option<Reject> {
    // Powers times scales of values have the range of bf16.
    if !matches!((spec.x, spec.kv_dtype), (DType::BF16, DType::BF16 | DType::I8) | (DType::F16, DType::F16)) {
        let found = format!("found {} on {}", spec.x, spec.kv_dtype);
        return Some(format!("bf16 or f16 throughout, or bf16 on i8 is needed, {found}").into());
    }
    (spec.head_dim > MOST_HEAD_DIM)
        .then(|| format!("head_dim of at most {MOST_HEAD_DIM}, found {}", spec.head_dim).into())
}

fn reject_split(spec: &AttentionSpec, caps: &Caps) -> Option<Reject> {
    let rows = rows(spec);
    reject(spec, caps).or_else(|| {
        (rows > MOST_SPLIT_ROWS)
            .then(|| format!("at most {MOST_SPLIT_ROWS} query rows of a key head, found up to {rows}").into())
    })
}

/// Time of blocks of these tiles, their keys in `splits` parts.
fn estimate(spec: &AttentionSpec, caps: &Caps, tiles: Tiles, splits: u32) -> f32 {
    let row_tiles = f64::from(rows(spec).div_ceil(tiles.tile_q()).max(1));
    let units = row_tiles * f64::from(spec.seqs.max(1) * spec.heads_kv.max(1));
    let width = f64::from(spec.head_dim.next_multiple_of(16));
    let flops = 4.0 * units * f64::from(tiles.tile_q()) * keys_seen(spec) * width;
    // Two blocks fill a multiprocessor. Hopper gives mma a good part of its rate only.
    let busy = (units * f64::from(splits) / (2 * caps.units.max(1)) as f64).clamp(1e-3, 1.0);
    let rate = if caps.cuda.arch.number() == 900 { 0.35 } else { 0.6 };
    caps.cuda.estimate_us(bytes(spec) / busy.sqrt(), flops / busy, caps.cuda.tensor_tflops * rate)
}

fn estimate_flash(spec: &AttentionSpec, caps: &Caps) -> f32 {
    estimate(spec, caps, Tiles::flash(spec.head_dim, rows(spec), spec.kv_dtype == DType::I8, caps), 1)
}

fn estimate_split(spec: &AttentionSpec, caps: &Caps) -> f32 {
    let tiles = Tiles::split(spec.head_dim, spec.kv_dtype == DType::I8, caps);
    estimate(spec, caps, tiles, split_parts(spec, caps))
}

fn split_parts(spec: &AttentionSpec, caps: &Caps) -> u32 {
    let tiles = Tiles::split(spec.head_dim, spec.kv_dtype == DType::I8, caps);
    splits(spec, caps.units, tiles.tile_q(), tiles.tile_k, 4)
}

pub(super) fn launch(op: &Attention, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let tiles = Tiles::flash(op.q.size(2) as u32, most_rows(op) as u32, has_codes(op), cx.caps());
    run(op, cx, tiles, 1)
}

fn launch_split(op: &Attention, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let tiles = Tiles::split(op.q.size(2) as u32, has_codes(op), cx.caps());
    let parts = split_parts(&op.spec()?, cx.caps());
    run(op, cx, tiles, parts)
}

/// Whether keys and values are codes.
fn has_codes(op: &Attention) -> bool {
    pools(op).0.dtype() == DType::I8
}

/// Whether the copies of 16 bytes may be made, and words of the result be written.
pub(super) fn aligned(op: &Attention, kernel: &Kernel<'_, '_>) -> Result<bool, KernelError> {
    let (k, v) = pools(op);
    let whole = op.q.size(2).is_multiple_of(8) && kernel.aligned(&op.out, 4)?;
    // Codes are read in words.
    let rows = if has_codes(op) { &[&op.q][..] } else { &[&op.q, k, v][..] };
    Ok(whole && kernel.all_aligned(rows.iter().copied())?)
}

fn run(op: &Attention, cx: &mut CudaCx<'_>, tiles: Tiles, splits: u32) -> Result<(), KernelError> {
    if is_empty(op) {
        return Ok(());
    }
    // The largest product is the largest score only where the scale is positive.
    if op.scale <= 0.0 {
        return flash::launch(op, cx);
    }
    let (heads_kv, head_dim) = (heads_kv(op), op.q.size(2));
    let tile_q = tiles.tile_q() as usize;
    let row_tiles = most_rows(op).div_ceil(tile_q);
    let units = row_tiles * heads_kv * op.seqs();
    let scratch = match splits {
        1 => None,
        _ => {
            let words = units * splits as usize * tile_q * (head_dim + 2);
            Some((cx.scratch(0, words, DType::F32)?, cx.counters(units)?))
        }
    };

    let mut kernel = cx.kernel("ops/attention/flash_mma.cu");
    let mut operands = Operands::of(op, &mut kernel)?;
    operands.splits = splits as i32;
    if let Some((partial, counters)) = &scratch {
        operands.partial = kernel.address(partial)?;
        operands.counters = kernel.address(counters)?;
    }
    let aligned = aligned(op, &kernel)?;
    kernel.define("X", op.q.dtype()).define("HEAD_DIM", head_dim).define("PAGE", page(op));
    kernel.define("ALIGNED", aligned).define("SOFTCAP", op.softcap > 0.0).define("CODES", tiles.codes);
    kernel.define("BLOCKS", tiles.blocks).define("WARPS_K", tiles.warps_k);
    kernel.define("TILE_K", tiles.tile_k).define("SLOTS", tiles.slots);
    kernel.shared(tiles.bytes(head_dim as u32)).dependent();
    let grid = [row_tiles as u32 * splits, heads_kv as u32, op.seqs() as u32];
    kernel.launch(grid, THREADS, &operands)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Arch;

    #[test]
    fn every_head_fits_shared_memory() {
        for arch in Arch::ALL {
            let caps = Caps::of_arch(arch);
            for head_dim in 1..=MOST_HEAD_DIM {
                for codes in [false, true] {
                    for tiles in [
                        Tiles::flash(head_dim, 16, codes, &caps),
                        Tiles::flash(head_dim, 4096, codes, &caps),
                        Tiles::split(head_dim, codes, &caps),
                    ] {
                        let bytes = tiles.bytes(head_dim);
                        assert!(bytes <= caps.cuda.shared_memory as usize, "{arch}, {head_dim}: {tiles:?}");
                    }
                }
            }
        }
    }
}
