//! `gemv.cu`: few rows of x, bound by the weights.

use std::borrow::Cow;

use bytemuck::{Pod, Zeroable};

use super::super::{Matmul, MatmulSpec};
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
/// Bytes of x that a block has in shared memory at most: four blocks find room on every device.
const STAGE: usize = 20 << 10;

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
    group_shift: i32,
    x_type: u32,
    x_aligned: u32,
}

/// Weights in 16 bytes.
fn in_load(format: Format) -> usize {
    match format {
        Format::Dense(dtype) => 16 / dtype.size(),
        Format::Grouped(Grouped { code, .. }) | Format::KMajor(Grouped { code, .. }, _) => 128 / code.bits(),
    }
}

/// Microseconds that a launch of its own for the norm would take.
const LAUNCH_US: f32 = 3.0;

fn reject(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    if let Some(why) = spec.w.reject_k_major() {
        return Some(why);
    }
    if spec.norm {
        if spec.k == 0 {
            return Some("for k of 1 or more".into());
        }
        let plain = MatmulSpec { norm: false, ..*spec };
        let other = (quant::MMA.reject)(&plain, caps).is_none().then(|| (quant::MMA.est_us)(&plain, caps));
        if other.is_some_and(|us| us + LAUNCH_US < est_us(spec, caps)) {
            return Some("a norm and a product on tensor cores take less time".into());
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
    // Bytes and words become floats by some instructions each, whatever the rows of x are.
    let decode = if spec.w.dense().is_some() { 1 } else { 3 };
    let flops = (2 * (m + decode) * n * k) as f64;
    caps.cuda.estimate_us(spec.w.bytes(n, k) as f64 / 0.85, flops, 0.6 * caps.cuda.f32_tflops)
}

fn launch(op: &Matmul, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    // Loads of 16 bytes want rows that begin at a multiple of that.
    let kernel = cx.kernel("ops/matmul/gemv.cu");
    for part in op.w.parts() {
        if !rows_aligned(kernel.address(&part.planes[0])?, &part.planes[0]) {
            return (gemm::F32.launch)(&*normalized(op, cx)?, cx);
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
    let columns = if op.gated || columns_of(2) >= cx.caps().units { 2 } else { 1 };
    // Loads under way: as many as a row has, and as x has room.
    let room = STAGE / (4 * rows * lanes * load);
    let depth = k.div_ceil(lanes * load).min(room).clamp(1, 4);
    let depth = if depth == 3 { 2 } else { depth };

    let mut kernel = cx.kernel("ops/matmul/gemv.cu");
    let fractions =
        format.grouped().is_some_and(|grouped| matches!(grouped.zero, Zero::Float | Zero::Offset));
    // Of a lane's 16 bytes.
    let groups = if format.dense().is_none() && format.group_len(k) < load.min(k) { 2 } else { 1 };
    kernel
        .codes(format)
        .define("SUBS", groups)
        .define("FRACTIONS", fractions)
        .define("W", w)
        .define("GATED", op.gated);
    kernel.define("M", rows).define("LANES", lanes).define("COLUMNS", columns).define("DEPTH", depth);
    // x, and a factor for each row.
    kernel.define("NORM", op.norm.is_some()).shared(4 * rows * (depth * lanes * load + 1)).dependent();
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
        group_shift: format.group_len(k).next_power_of_two().trailing_zeros() as i32,
        x_type: value_type(Some(x)),
        x_aligned: u32::from(rows_aligned(address, x)),
    };
    let groups = THREADS / lanes * if op.gated { 1 } else { columns };
    kernel.launch([segment.cols.div_ceil(groups) as u32, 1, 1], THREADS as u32, &params)
}
