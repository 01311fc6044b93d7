//! CUDA kernels: one source, a launch with one or several blocks a row. Settings are read on the device, so greedy and drawing
//! rows are one batch.

use bytemuck::{Pod, Zeroable};

use super::{Sample, SampleSpec, params};
use crate::cuda::CudaCx;
use crate::cuda::{CudaOp, CudaRows};
use crate::select::Variant;
use crate::spec::{Caps, DType, KernelError};

impl CudaOp for Sample {
    fn cuda_variants() -> CudaRows<Self> {
        Ok(&[
            Variant {
                name: "split",
                reject: |_, _| None,
                est_us: |spec, caps| 3.0 + read_us(spec, caps, CHUNK),
                launch: |op, cx| launch(op, cx, CHUNK),
            },
            Variant {
                name: "row",
                reject: |spec, caps| {
                    let (need, have) =
                        (MEMORY + spec.vocab as usize / 8 + 32, caps.cuda.shared_memory as usize);
                    (need > have)
                        .then(|| format!("{need} bytes of shared memory, the device has {have}").into())
                },
                est_us: |spec, caps| 2.0 + read_us(spec, caps, spec.vocab as usize),
                launch: |op, cx| launch(op, cx, op.logits.size(1)),
            },
        ])
    }
}

/// Tokens of a block where several have a row.
const CHUNK: usize = 4096;
/// Threads of a block.
const THREADS: usize = 1024;
/// Bytes of a block's shared memory before its bit mask.
const MEMORY: usize = 14 << 10;
/// Bytes that one block reads in a microsecond.
const BLOCK_BYTES: f32 = 60e3;

/// Time to read all logits in blocks of `chunk` tokens.
fn read_us(spec: &SampleSpec, caps: &Caps, chunk: usize) -> f32 {
    let blocks = spec.rows as usize * (spec.vocab as usize).div_ceil(chunk.max(1));
    let waves = blocks.div_ceil(2 * caps.units.max(1));
    (waves * chunk * spec.x.size()) as f32 / BLOCK_BYTES
}

// `Settings` of `search.cuh` names the columns in this order.
const _: () = {
    use params::{COUNT, MASK, MIN_P, REPETITION_PENALTY, TEMPERATURE, TOP_K, TOP_P, UNIFORM};
    assert!(TEMPERATURE == 0 && TOP_K == 1 && TOP_P == 2 && MIN_P == 3);
    assert!(REPETITION_PENALTY == 4 && UNIFORM == 5 && MASK == 6 && COUNT == 7);
};

/// `Params` of `sample.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    logits: u64,
    settings: u64,
    history: u64,
    mask: u64,
    keys: u64,
    best: u64,
    counters: u64,
    out: u64,
    logits_stride: u64,
    settings_stride: u64,
    history_stride: u64,
    mask_stride: u64,
    out_stride: u64,
    vocab: u32,
    width: u32,
    chunk: u32,
    masks: u32,
}

fn launch(op: &Sample, cx: &mut CudaCx<'_>, chunk: usize) -> Result<(), KernelError> {
    op.batches()?.iter().try_for_each(|batch| launch_rows(batch, cx, chunk.next_multiple_of(32)))
}

fn launch_rows(op: &Sample, cx: &mut CudaCx<'_>, chunk: usize) -> Result<(), KernelError> {
    let (rows, vocab) = (op.logits.size(0), op.logits.size(1));
    let blocks = vocab.div_ceil(chunk);
    let keys = cx.scratch(0, rows * vocab.next_multiple_of(4), DType::I32)?;
    let best = cx.scratch(1, rows * blocks * 2, DType::I32)?;
    let counters = cx.counters(rows)?;
    let history = op.history.as_ref().filter(|history| !history.is_empty());
    let mask = op.mask.as_ref().filter(|mask| !mask.is_empty());
    let mut kernel = cx.kernel("ops/sample/sample.cu");
    let fours = vocab.is_multiple_of(4) && kernel.aligned(&op.logits, 4 * op.logits.dtype().size())?;
    kernel.define("X", op.logits.dtype()).define("VEC", if fours { 4 } else { 1 });
    kernel.define("THREADS", THREADS).define("MEMORY", MEMORY);
    kernel.shared(MEMORY + chunk / 8).dependent();
    let params = Params {
        logits: kernel.address(&op.logits)?,
        settings: kernel.address(&op.params)?,
        history: kernel.address_or_null(history)?,
        mask: kernel.address_or_null(mask)?,
        keys: kernel.address(&keys)?,
        best: kernel.address(&best)?,
        counters: kernel.address(&counters)?,
        out: kernel.address(&op.out)?,
        logits_stride: op.logits.stride(0) as u64,
        settings_stride: op.params.stride(0) as u64,
        history_stride: history.map_or(0, |history| history.stride(0) as u64),
        mask_stride: mask.map_or(0, |mask| mask.stride(0) as u64),
        out_stride: op.out.stride(0) as u64,
        vocab: vocab as u32,
        width: history.map_or(0, |history| history.size(1) as u32),
        chunk: chunk as u32,
        masks: mask.map_or(0, |mask| mask.size(0) as u32),
    };
    kernel.launch([blocks as u32, rows as u32, 1], THREADS as u32, &params)
}
