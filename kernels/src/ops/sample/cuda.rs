//! CUDA kernels: keys of the logits, then tokens from the keys, by several blocks a row each. Settings are read on the device, so greedy
//! and drawing rows are one batch.

use bytemuck::{Pod, Zeroable};

use super::{Sample, SampleSpec, params};
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::{Caps, DType, KernelError};

impl CudaOp for Sample {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[Variant { name: "chunks", reject: |_, _| None, est_us, launch }])
    }
}

/// Tokens of a block, and chunks of a row at most.
const CHUNK: usize = 4096;
const CHUNKS: usize = 1024;
/// Threads of a block.
const THREADS: usize = 1024;
/// Bytes of shared memory of a block that picks.
const MEMORY: usize = 16 << 10;
/// Bytes of a chunk's histogram.
const HISTOGRAM: usize = 256 * 12 + 8;
/// Bytes that one block reads in a microsecond.
const BLOCK_BYTES: f32 = 60e3;

/// Two launches, and the time to read all logits.
fn est_us(spec: &SampleSpec, caps: &Caps) -> f32 {
    let blocks = spec.rows as usize * (spec.vocab as usize).div_ceil(CHUNK);
    let waves = blocks.div_ceil(2 * caps.units.max(1));
    4.0 + (waves * CHUNK * spec.x.size()) as f32 / BLOCK_BYTES
}

// `Settings` of `settings.cuh` names the columns in this order.
const _: () = {
    use params::{COUNT, MASK, MIN_P, REPETITION_PENALTY, TEMPERATURE, TOP_K, TOP_P, UNIFORM};
    assert!(TEMPERATURE == 0 && TOP_K == 1 && TOP_P == 2 && MIN_P == 3);
    assert!(REPETITION_PENALTY == 4 && UNIFORM == 5 && MASK == 6 && COUNT == 7);
};

/// `Params` of `keys.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Keys {
    logits: u64,
    settings: u64,
    history: u64,
    mask: u64,
    keys: u64,
    best: u64,
    logits_stride: u64,
    settings_stride: u64,
    history_stride: u64,
    mask_stride: u64,
    vocab: u32,
    width: u32,
    masks: u32,
    reserved: u32,
}

/// `Params` of `pick.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Pick {
    keys: u64,
    best: u64,
    settings: u64,
    histograms: u64,
    counters: u64,
    out: u64,
    settings_stride: u64,
    out_stride: u64,
    vocab: u32,
    reserved: u32,
}

fn launch(op: &Sample, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    op.batches()?.iter().try_for_each(|batch| launch_rows(batch, cx))
}

fn launch_rows(op: &Sample, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (rows, vocab) = (op.logits.size(0), op.logits.size(1));
    let chunk = CHUNK.max(vocab.div_ceil(CHUNKS).next_power_of_two());
    let blocks = vocab.div_ceil(chunk);
    let grid = [blocks as u32, rows as u32, 1];
    let keys = cx.scratch(0, rows * vocab.next_multiple_of(4), DType::I32)?;
    let best = cx.scratch(1, rows * blocks * 2, DType::I32)?;
    let several = blocks > 1;
    let histograms = several.then(|| cx.scratch(2, rows * blocks * HISTOGRAM / 4, DType::I32)).transpose()?;
    let counters = several.then(|| cx.counters(rows)).transpose()?;
    let history = op.history.as_ref().filter(|history| !history.is_empty());
    let mask = op.mask.as_ref().filter(|mask| !mask.is_empty());

    let mut kernel = cx.kernel("ops/sample/keys.cu");
    let fours = vocab.is_multiple_of(4) && kernel.aligned(&op.logits, 4 * op.logits.dtype().size())?;
    kernel.define("X", op.logits.dtype()).define("VEC", if fours { 4 } else { 1 });
    kernel.define("THREADS", THREADS).define("CHUNK", chunk);
    kernel.shared(chunk / 8 + THREADS / 32 * 8).dependent();
    let params = Keys {
        logits: kernel.address(&op.logits)?,
        settings: kernel.address(&op.params)?,
        history: kernel.address_or_null(history)?,
        mask: kernel.address_or_null(mask)?,
        keys: kernel.address(&keys)?,
        best: kernel.address(&best)?,
        logits_stride: op.logits.stride(0) as u64,
        settings_stride: op.params.stride(0) as u64,
        history_stride: history.map_or(0, |history| history.stride(0) as u64),
        mask_stride: mask.map_or(0, |mask| mask.stride(0) as u64),
        vocab: vocab as u32,
        width: history.map_or(0, |history| history.size(1) as u32),
        masks: mask.map_or(0, |mask| mask.size(0) as u32),
        reserved: 0,
    };
    kernel.launch(grid, THREADS as u32, &params)?;

    let mut kernel = cx.kernel("ops/sample/pick.cu");
    kernel.define("THREADS", THREADS).define("CHUNK", chunk).define("MEMORY", MEMORY);
    kernel.shared(MEMORY).dependent();
    let params = Pick {
        keys: kernel.address(&keys)?,
        best: kernel.address(&best)?,
        settings: kernel.address(&op.params)?,
        histograms: kernel.address_or_null(histograms.as_ref())?,
        counters: kernel.address_or_null(counters.as_ref())?,
        out: kernel.address(&op.out)?,
        settings_stride: op.params.stride(0) as u64,
        out_stride: op.out.stride(0) as u64,
        vocab: vocab as u32,
        reserved: 0,
    };
    kernel.launch(grid, THREADS as u32, &params)
}
