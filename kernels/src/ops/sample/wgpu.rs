//! WGSL kernels.
//!
//! Two launches: `keys.wgsl` spreads the rows over the whole device, finds the best token of each chunk and writes what is
//! to be ranked; `pick.wgsl` takes a workgroup a row from there. Settings are read on the device, so greedy and sampled
//! rows are one batch, and a greedy row costs the first launch and a glance at the chunks.

use bytemuck::{Pod, Zeroable};

use super::{Sample, params};
use crate::select::Variant;
use crate::spec::{DType, KernelError};
use crate::wgpu::WgpuCx;
use crate::wgpu::{WgpuOp, WgpuRows};

impl WgpuOp for Sample {
    fn wgpu_variants() -> WgpuRows<Self> {
        Ok(&[Variant { name: "argmax-split", reject: |_, _| None, est_us: |_, _| 1.0, launch }])
    }
}

/// Tokens of a workgroup of `keys.wgsl`: a multiple of 32.
const CHUNK: usize = 2048;
/// Invocations of `pick.wgsl`, where a device allows as many: one workgroup has to keep a row's reads in flight.
const PICK: u32 = 1024;

/// `Params` of `keys.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct KeyParams {
    vocab: u32,
    logits: u32,
    logits_stride: u32,
    settings: u32,
    settings_stride: u32,
    history: u32,
    history_stride: u32,
    /// Tokens of a row's history.
    width: u32,
    mask: u32,
    mask_stride: u32,
    masks: u32,
}

/// `Params` of `pick.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PickParams {
    vocab: u32,
    /// Chunks of a row.
    chunks: u32,
    settings: u32,
    settings_stride: u32,
    out: u32,
    out_stride: u32,
}

fn launch(op: &Sample, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    op.batches()?.iter().try_for_each(|batch| launch_rows(batch, cx))
}

fn launch_rows(op: &Sample, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let (rows, vocab) = (op.logits.size(0), op.logits.size(1));
    let chunks = vocab.div_ceil(CHUNK);
    let keys = cx.scratch(0, rows * vocab.next_multiple_of(4), DType::I32)?;
    let best = cx.scratch(1, rows * chunks * 2, DType::I32)?;
    let settings_stride = op.params.stride(0) as u32;
    let history = op.history.as_ref().filter(|history| !history.is_empty());

    let mut kernel = cx.kernel("ops/sample/keys.wgsl");
    let mut key_params = KeyParams {
        vocab: vocab as u32,
        logits: kernel.bind(0, &op.logits)?,
        logits_stride: op.logits.stride(0) as u32,
        settings: kernel.bind(1, &op.params)?,
        settings_stride,
        history: 0,
        history_stride: 0,
        width: 0,
        mask: 0,
        mask_stride: 0,
        masks: 0,
    };
    if let Some(history) = history {
        kernel.define("HISTORY", true);
        key_params.history = kernel.bind(2, history)?;
        (key_params.history_stride, key_params.width) = (history.stride(0) as u32, history.size(1) as u32);
    }
    if let Some(mask) = op.mask.as_ref().filter(|mask| !mask.is_empty()) {
        kernel.define("MASK", true);
        key_params.mask = kernel.bind(5, mask)?;
        (key_params.mask_stride, key_params.masks) = (mask.stride(0) as u32, mask.size(0) as u32);
    }
    kernel.bind(3, &keys)?;
    kernel.bind(4, &best)?;
    let fours = [key_params.vocab, key_params.logits, key_params.logits_stride];
    kernel.define("VEC", fours.iter().all(|value| value.is_multiple_of(4)));
    kernel.define("X", op.logits.dtype()).define("CHUNK", CHUNK);
    kernel.define("TEMPERATURE", params::TEMPERATURE);
    kernel.define("REPETITION_PENALTY", params::REPETITION_PENALTY).define("MASK_COLUMN", params::MASK);
    kernel.params(&key_params);
    kernel.dispatch([chunks as u32, rows as u32, 1])?;

    let invocations = if cx.caps().wgpu.invocations >= PICK { PICK } else { 256 };
    let mut kernel = cx.kernel("ops/sample/pick.wgsl");
    kernel.bind(0, &keys)?;
    kernel.bind(1, &best)?;
    let pick_params = PickParams {
        vocab: vocab as u32,
        chunks: chunks as u32,
        settings: kernel.bind(2, &op.params)?,
        settings_stride,
        out: kernel.bind(3, &op.out)?,
        out_stride: op.out.stride(0) as u32,
    };
    kernel.define("WG", invocations).define("SETTINGS", params::COUNT);
    kernel.define("TEMPERATURE", params::TEMPERATURE).define("TOP_K_COLUMN", params::TOP_K);
    kernel.define("TOP_P_COLUMN", params::TOP_P).define("MIN_P", params::MIN_P);
    kernel.define("UNIFORM", params::UNIFORM);
    kernel.params(&pick_params);
    kernel.dispatch([rows as u32, 1, 1])
}
