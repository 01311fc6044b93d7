//! `gemv.cu`: few rows of x, bound by the weights.

use std::borrow::Cow;

use bytemuck::{Pod, Zeroable};

use super::super::{HeadsSpec, Matmul, MatmulSpec};
use super::heads::{self, HeadsParams};
use super::params::{Epilogue, Row, Segment, WeightRows, rows_aligned, segments};
use super::{gemm, quant};
use crate::cuda::{CudaCx, value_type};
use crate::ops::norm::{self, Norm, NormKind};
use crate::select::Reject;
use crate::spec::{Caps, DType, Format, Grouped, KernelError, Zero};

pub(super) const GEMV: Row = Row { name: "gemv", reject, est_us, launch };

/// Most rows of x.
const MOST_ROWS: u32 = 8;
/// Threads of a block.
const THREADS: usize = 128;
/// Bytes of x that the loads of a block cover at most: four blocks find room for as much on every device.
const STAGE: usize = 20 << 10;
/// Registers of a thread for loads that are under way: what is left where four blocks share a multiprocessor.
const LOAD_REGISTERS: usize = 40;

/// `Params` of `gemv.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    x_stride: i64,
    w: WeightRows,
    up: WeightRows,
    e: Epilogue,
    norm_weight: u64,
    norm_type: u32,
    norm_aligned: u32,
    norm_offset: f32,
    norm_eps: f32,
    k: i32,
    span: i32,
    group_shift: i32,
    x_type: u32,
    x_aligned: u32,
    reserved: u32,
}

/// `Params` of `gemv.cu` with HEADS.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ParamsOfHeads {
    all: Params,
    heads: HeadsParams,
}

/// Weights in 16 bytes.
fn in_load(format: Format) -> usize {
    match format {
        Format::Dense(dtype) => 16 / dtype.size(),
        Format::Grouped(Grouped { code, .. }) | Format::KMajor(Grouped { code, .. }, _) => 128 / code.bits(),
    }
}

/// Microseconds that a launch of its own, for the norm or for the rotation, would take.
const LAUNCH_US: f32 = 3.0;

fn reject(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    if let Some(why) = spec.w.reject_k_major() {
        return Some(why);
    }
    if let Some(why) = heads::reject(spec) {
        return Some(why);
    }
    // Launches that it saves.
    let saved = u8::from(spec.norm) + u8::from(spec.heads.is_some());
    if saved > 0 {
        if spec.k == 0 {
            return Some("for k of 1 or more".into());
        }
        let plain = MatmulSpec { norm: false, heads: HeadsSpec::default(), ..*spec };
        let other = (quant::MMA.reject)(&plain, caps).is_none().then(|| (quant::MMA.est_us)(&plain, caps));
        if other.is_some_and(|us| us + f32::from(saved) * LAUNCH_US < est_us(spec, caps)) {
            return Some("what it saves and a product on tensor cores take less time".into());
        }
    }
    if spec.m > MOST_ROWS {
        return Some(format!("{} rows are more than {MOST_ROWS}", spec.m).into());
    }
    let load = in_load(spec.w) as u32;
    if !spec.k.is_multiple_of(load) {
        return Some(format!("k is not a multiple of the {load} weights in 16 bytes").into());
    }
    match spec.w {
        Format::Grouped(Grouped { group, .. })
            if group != 0 && (2 * group < load || !group.is_power_of_two()) =>
        {
            Some(format!("groups of {group} weights are not a power of two of {} or more", load / 2).into())
        }
        _ => None,
    }
}

fn est_us(spec: &MatmulSpec, caps: &Caps) -> f32 {
    let (m, n, k) = (spec.m as usize, spec.n as usize, spec.k as usize);
    // Bytes and words become floats by some instructions each, whatever the rows of x are. A row of x costs each weight a multiply-add,
    // and two bytes of shared memory: 16 bytes of x meet four weights of two columns. A multiprocessor that starts 128 multiply-adds
    // a clock reads 128 bytes, so these two bytes take the time of two multiply-adds. Of int4 on a device of 67 TFLOP/s and 3.35 TB/s
    // (arithmetic: 0.6 of 33.5e12 multiply-adds a second, 0.85 of 6.7e12 weights) one row takes 4 of the 3.5 multiply-adds a weight
    // that memory leaves time for, two take 5, four 8; of int8 there is time for 7, which three rows take 6 of and four 8.
    let decode = if spec.w.dense().is_some() { 1 } else { 3 };
    let flops = (2 * (m + decode).max(2 * m) * n * k) as f64;
    caps.cuda.estimate_us(spec.w.bytes(n, k) as f64 / 0.85, flops, 0.6 * caps.cuda.f32_tflops)
}

fn launch(op: &Matmul, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    // Loads of 16 bytes want rows that begin at a multiple of that.
    let kernel = cx.kernel("ops/matmul/gemv.cu");
    for part in op.w.parts() {
        if !rows_aligned(kernel.address(&part.planes[0])?, &part.planes[0]) {
            return heads::apart(&*normalized(op, cx)?, cx, gemm::F32.launch);
        }
    }
    segments(op).iter().try_for_each(|segment| launch_segment(segment, cx))
}

/// The op with rows of x that are normalized already: itself, or one whose x is in working memory (slot 0).
fn normalized<'a>(op: &'a Matmul, cx: &mut CudaCx<'_>) -> Result<Cow<'a, Matmul>, KernelError> {
    let Some(norm) = &op.norm else { return Ok(Cow::Borrowed(op)) };
    let x = cx.scratch(0, op.x.len(), DType::F32)?.reshape(op.x.shape())?;
    norm::cuda::launch(
        &Norm {
            x: op.x.clone(),
            add: None,
            sum: None,
            weight: Some(norm.weight.clone()),
            bias: None,
            kind: NormKind::Rms,
            weight_offset: norm.weight_offset,
            eps: norm.eps,
            out: x.clone(),
        },
        cx,
    )?;
    Ok(Cow::Owned(Matmul { x, norm: None, ..op.clone() }))
}

fn launch_segment(segment: &Segment<'_>, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let op = segment.op;
    let (x, k, format) = (&op.x, op.w.k(), op.w.format());
    let w = format.dense().unwrap_or(DType::BF16);
    let (load, rows) = (in_load(format), x.size(0).next_power_of_two());
    // Fewer lanes a column where a pass of all of them would be longer than a row.
    let lanes = if k <= 8 * load { 8 } else { 32 };
    let columns_of = |columns: usize| segment.cols.div_ceil(THREADS / lanes * columns);
    // Two columns a group of lanes, unless that leaves multiprocessors idle.
    let columns = if op.gated || op.heads.is_some() || columns_of(2) >= cx.caps().units { 2 } else { 1 };
    // Loads under way: as many as a row has, and as x and registers have room for.
    let room = STAGE / (4 * rows * lanes * load);
    let zeros = format.grouped().is_some_and(|grouped| grouped.zero != Zero::None);
    // Parts of a lane's 16 bytes with scales of their own.
    let subs = if format.dense().is_none() && format.group_len(k) < load.min(k) { 2 } else { 1 };
    let notes = if format.dense().is_some() { 0 } else { subs * if zeros { 2 } else { 1 } };
    let registers = LOAD_REGISTERS / (columns * (4 + notes));
    let depth = k.div_ceil(lanes * load).min(room).min(registers).clamp(1, 4);
    let depth = if depth == 3 { 2 } else { depth };

    // Blocks that run at once on a multiprocessor, see the kernel's bounds.
    let blocks = if rows > 4 { 2 } else { 4 };
    let grid = columns_of(if op.gated { 1 } else { columns }).min(blocks * cx.caps().units.max(1));
    // Squares of each row and warp.
    let aside = if op.norm.is_some() { 4 * rows * THREADS / 32 } else { 0 };
    let span = span(k, depth * lanes * load, rows, aside, blocks, cx.caps());

    let mut kernel = cx.kernel("ops/matmul/gemv.cu");
    let fractions =
        format.grouped().is_some_and(|grouped| matches!(grouped.zero, Zero::Float | Zero::Offset));
    kernel
        .codes(format)
        .define("SUBS", subs)
        .define("ZEROS", zeros)
        .define("FRACTIONS", fractions)
        .define("W", w)
        .define("GATED", op.gated);
    kernel.define("M", rows).define("LANES", lanes).define("COLUMNS", columns).define("DEPTH", depth);
    kernel.define("NORM", op.norm.is_some()).define("HEADS", op.heads.is_some());
    kernel.shared(4 * rows * span + aside).dependent();
    let [w, up] = segment.weights(&kernel)?;
    let address = kernel.address(x)?;
    let norm_weight = op.norm.as_ref().map(|norm| &norm.weight);
    let norm_address = kernel.address_or_null(norm_weight)?;
    let params = Params {
        x: address,
        x_stride: x.stride(0) as i64,
        w,
        up,
        e: segment.epilogue(&kernel)?,
        norm_weight: norm_address,
        norm_type: value_type(norm_weight),
        norm_aligned: u32::from(norm_address.is_multiple_of(16)),
        norm_offset: op.norm.as_ref().map_or(0.0, |norm| norm.weight_offset),
        norm_eps: op.norm.as_ref().map_or(0.0, |norm| norm.eps),
        k: k as i32,
        span: span as i32,
        group_shift: format.group_len(k).next_power_of_two().trailing_zeros() as i32,
        x_type: value_type(Some(x)),
        x_aligned: u32::from(rows_aligned(address, x)),
        reserved: 0,
    };
    let grid = [grid as u32, 1, 1];
    match &op.heads {
        None => kernel.launch(grid, THREADS as u32, &params),
        Some(heads) => {
            let heads = HeadsParams::new(op, heads, &kernel)?;
            kernel.launch(grid, THREADS as u32, &ParamsOfHeads { all: params, heads })
        }
    }
}

/// Elements of a row of x in shared memory at a time, a multiple of `stretch`: all `k` where `blocks` blocks of a multiprocessor have room
/// for those of `rows` rows and `aside` bytes more, else equal parts.
fn span(k: usize, stretch: usize, rows: usize, aside: usize, blocks: usize, caps: &Caps) -> usize {
    // A multiprocessor has a KiB more than a block may have, and takes one for each block.
    let room = (caps.cuda.shared_memory as usize + 1024) / blocks - 1024 - aside;
    let most = (room / (4 * rows * stretch)).max(1);
    let stretches = k.div_ceil(stretch).max(1);
    stretches.div_ceil(stretches.div_ceil(most)) * stretch
}
