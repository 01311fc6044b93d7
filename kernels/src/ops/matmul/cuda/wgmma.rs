//! `gemm_wgmma.cu`: products on the tensor cores of Hopper, with operands and results moved by the copy engine.

use bytemuck::{Pod, Zeroable};

use super::super::{Activation, Matmul, MatmulSpec};
use super::params::{Epilogue, Row, Segment, WeightRows, segments};
use super::{fp8, halves, mma};
use crate::buffer::View;
use crate::cuda::{CudaCx, Kernel, TensorMap, TensorTile};
use crate::select::Reject;
use crate::spec::{Arch, Caps, DType, KernelError};

pub(super) const LARGE: Row = Row {
    name: "gemm-wgmma-128x256",
    reject,
    est_us: |spec, caps| est_us(&TILE_128X256, spec, caps),
    launch: |op, cx| launch(&TILE_128X256, op, cx),
};
pub(super) const TALL: Row = Row {
    name: "gemm-wgmma-256x128",
    reject,
    est_us: |spec, caps| est_us(&TILE_256X128, spec, caps),
    launch: |op, cx| launch(&TILE_256X128, op, cx),
};
pub(super) const MIDDLE: Row = Row {
    name: "gemm-wgmma-128x128",
    reject,
    est_us: |spec, caps| est_us(&TILE_128X128, spec, caps),
    launch: |op, cx| launch(&TILE_128X128, op, cx),
};
pub(super) const SMALL: Row = Row {
    name: "gemm-wgmma-64x128",
    reject,
    est_us: |spec, caps| est_us(&TILE_64X128, spec, caps),
    launch: |op, cx| launch(&TILE_64X128, op, cx),
};

pub(super) const FP8: Row =
    Row { name: "gemm-fp8-wgmma", reject: reject_fp8, est_us: est_us_fp8, launch: launch_fp8 };

/// A tile of products and how its block is organized.
struct Tile {
    rows: usize,
    cols: usize,
    /// Whether consumers take turns with tiles instead of sharing each.
    pingpong: bool,
    /// Stages in the ring, and buffers of a consumer for results.
    stages: usize,
    buffers: usize,
    /// Share of the tensor cores' rate that it reaches: smaller tiles wait for memory.
    share: f32,
}

const TILE_128X256: Tile = Tile { rows: 128, cols: 256, pingpong: false, stages: 4, buffers: 2, share: 0.80 };
const TILE_256X128: Tile = Tile { rows: 256, cols: 128, pingpong: false, stages: 4, buffers: 2, share: 0.78 };
const TILE_128X128: Tile = Tile { rows: 128, cols: 128, pingpong: true, stages: 6, buffers: 2, share: 0.70 };
const TILE_64X128: Tile = Tile { rows: 64, cols: 128, pingpong: true, stages: 8, buffers: 2, share: 0.50 };

/// That of 8-bit floats: half the registers of a consumer are for the sums of a stage.
const TILE_FP8: Tile = Tile { rows: 128, cols: 128, pingpong: false, stages: 5, buffers: 2, share: 0.55 };

/// Warpgroups that multiply.
const CONSUMERS: usize = 2;
/// Rows of a buffer, and of a product of a warpgroup.
const BAND: usize = 64;
/// Bytes of a row of a stage or of a buffer: what the swizzle spans.
const ROW_BYTES: usize = 128;

impl Tile {
    fn shared(&self, scaled: bool) -> usize {
        let ring = self.stages * (self.rows + self.cols) * ROW_BYTES;
        let buffers = CONSUMERS * self.buffers;
        let barriers = 2 * (self.stages + buffers) * 8;
        // Biases, and scales of two stages.
        let columns = if scaled { 3 } else { 1 };
        ring + buffers * BAND * ROW_BYTES + columns * CONSUMERS * self.cols * 4 + barriers
    }

    /// Tiles along the rows and the columns of a result that takes m x n products.
    fn grid(&self, m: usize, n: usize) -> [usize; 2] {
        [m.div_ceil(self.rows), n.div_ceil(self.cols)]
    }

    /// Blocks of a cluster: two where tiles that lie one below the other are even in number, or so many that one more is
    /// little.
    fn cluster(&self, m: usize) -> usize {
        let down = m.div_ceil(self.rows);
        if down.is_multiple_of(2) || down > 8 { 2 } else { 1 }
    }
}

fn reject(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    if caps.cuda.arch != Arch::Sm90a {
        return Some("for sm_90a".into());
    }
    halves::reject(spec)
}

fn reject_fp8(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    if caps.cuda.arch != Arch::Sm90a {
        return Some("for sm_90a".into());
    }
    fp8::reject(spec, caps)
}

/// How k is cut for a tile.
#[derive(Clone, Copy)]
struct Plan {
    /// Slices, and stages along k in each.
    slices: usize,
    steps: usize,
    us: f32,
}

/// Stages that a slice has at least.
const LEAST_STEPS: usize = 6;

impl Plan {
    /// The fastest cut by a simple model: blocks reach the tile's share of the rate; the way in and out of a tile costs what two
    /// stages do, where no other tile hides it; sums of slices travel through the second-level cache. Slices are for
    /// products whose tiles leave multiprocessors idle: each block has one of them. Elements of operands have `size` bytes.
    fn of(tile: &Tile, m: usize, n: usize, k: usize, size: usize, caps: &Caps) -> Self {
        let step = ROW_BYTES / size;
        let rate = caps.cuda.tensor_tflops * tile.share * if size == 1 { fp8::RATE } else { 1.0 };
        let (units, all) = (caps.units.max(1), k.div_ceil(step));
        let m = caps.rows(m);
        let [down, across] = tile.grid(m, n);
        let tiles = down * across;
        let turns = tiles.div_ceil(units);
        let cut = |slices: usize| {
            let steps = all.div_ceil(slices);
            let slices = all.div_ceil(steps.max(1)).max(1);
            let ends = if tile.pingpong { 1 } else { turns };
            let flops = (2 * tile.rows * tile.cols * step * (turns * steps + 2 * ends)) as f32;
            let joined = ((slices - 1) * m * n * 8) as f32 / (caps.cuda.read_gbps * 2e3);
            let us = flops * units as f32 / (rate * 1e6) + joined;
            Self { slices, steps, us: us + if slices > 1 { 2.0 } else { 0.0 } }
        };
        let most = (units / tiles.max(1)).min(all / LEAST_STEPS).max(1);
        let least = |best: Self, slices| {
            let other = cut(slices);
            if other.us < best.us { other } else { best }
        };
        (2..=most).fold(cut(1), least)
    }
}

fn est_us(tile: &Tile, spec: &MatmulSpec, caps: &Caps) -> f32 {
    let (m, n, k) = (spec.m as usize, spec.n as usize, spec.k as usize);
    let memory = caps.cuda.estimate_us(spec.w.bytes(n, k) as f64, 0.0, 1.0);
    (1.0 + memory).max(3.5 + Plan::of(tile, m, n, k, 2, caps).us) + halves::est_us(spec, caps)
}

fn est_us_fp8(spec: &MatmulSpec, caps: &Caps) -> f32 {
    let (m, n, k) = (spec.m as usize, spec.n as usize, spec.k as usize);
    let memory = caps.cuda.estimate_us(spec.w.bytes(n, k) as f64, 0.0, 1.0);
    (1.0 + memory).max(3.5 + Plan::of(&TILE_FP8, m, n, k, 1, caps).us) + fp8::est_us(spec, caps)
}

/// `Params` of `gemm_wgmma.cu`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: TensorMap,
    w: TensorMap,
    up: TensorMap,
    out: TensorMap,
    residual: TensorMap,
    e: Epilogue,
    w_rows: WeightRows,
    up_rows: WeightRows,
    x_scales: u64,
    x_scale_stride: i64,
    sums: u64,
    counters: u64,
    k: i32,
    slices: i32,
    slice_steps: i32,
    pad: [i32; 13],
}

/// What the copy engine moves for one segment.
struct Operands {
    x: View,
    w: View,
    up: Option<View>,
    out: View,
    residual: Option<View>,
}

impl Operands {
    fn of(segment: &Segment<'_>, x: &View) -> Result<Self, KernelError> {
        let op = segment.op;
        let columns = |view: &View| view.narrow(1, segment.col, segment.cols);
        let rows = |rows: super::params::Rows<'_>| rows.part.planes[0].narrow(0, rows.first, segment.cols);
        Ok(Self {
            x: x.clone(),
            w: rows(segment.w)?,
            up: segment.up.map(rows).transpose()?,
            out: columns(&op.out)?,
            residual: op.residual.as_ref().map(columns).transpose()?,
        })
    }

    /// Whether the copy engine can move all of it: rows at multiples of 16 bytes, a residual of the result's type.
    fn fit(&self, kernel: &Kernel<'_, '_>) -> Result<bool, KernelError> {
        let views = [&self.x, &self.w, &self.out].into_iter().chain(&self.up).chain(&self.residual);
        let types = self.residual.as_ref().is_none_or(|residual| residual.dtype() == self.out.dtype());
        Ok(types && self.x.size(1) > 0 && kernel.all_aligned(views)?)
    }
}

/// A map of `[rows, cols]` in boxes of `rows` rows of 128 bytes.
pub(super) fn map(kernel: &Kernel<'_, '_>, view: &View, rows: usize) -> Result<TensorMap, KernelError> {
    map_boxes(kernel, view, rows, ROW_BYTES)
}

/// A map of `[rows, cols]` in boxes of `rows` rows of `row_bytes`, swizzled where those are 128.
pub(super) fn map_boxes(
    kernel: &Kernel<'_, '_>,
    view: &View,
    rows: usize,
    row_bytes: usize,
) -> Result<TensorMap, KernelError> {
    let size = view.dtype().size();
    // A lone row has any stride: one that the copy engine takes.
    let pitch = if view.size(0) > 1 { view.stride(0) } else { view.size(1) } * size;
    kernel.tensor_map(&TensorTile {
        view,
        shape: &[view.size(1) as u64, view.size(0) as u64],
        strides_bytes: &[pitch.next_multiple_of(16) as u64],
        tile: &[(row_bytes / size) as u32, rows as u32],
        swizzle128: row_bytes == ROW_BYTES,
    })
}

fn launch(tile: &Tile, op: &Matmul, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let op = &*halves::halved(op, cx)?;
    if fits(op, &op.x, cx)? { multiply(tile, op, None, cx) } else { mma::launch(op, cx) }
}

/// As above for weights of 8-bit floats, x rounded to them.
fn launch_fp8(op: &Matmul, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    if op.x.is_empty() {
        return mma::launch_fp8(op, cx);
    }
    let rounded = fp8::rounded(&op.x, cx)?;
    if fits(op, &rounded.codes, cx)? {
        multiply(&TILE_FP8, op, Some(&rounded), cx)
    } else {
        mma::launch_fp8(op, cx)
    }
}

/// Whether the copy engine can move all operands, `x` in the place of the op's.
fn fits(op: &Matmul, x: &View, cx: &mut CudaCx<'_>) -> Result<bool, KernelError> {
    let kernel = cx.kernel(PATH);
    segments(op).iter().try_fold(true, |all, segment| Ok(all && Operands::of(segment, x)?.fit(&kernel)?))
}

/// The product of x and weights of one type: x as it is in `op`, or rounded to 8-bit floats.
fn multiply(
    tile: &Tile,
    op: &Matmul,
    rounded: Option<&fp8::Rounded>,
    cx: &mut CudaCx<'_>,
) -> Result<(), KernelError> {
    let units = cx.caps().units;
    let (m, k) = (op.x.size(0), op.w.k());
    let (x, size) = rounded.map_or((&op.x, 2), |rounded| (&rounded.codes, 1));
    for segment in &segments(op) {
        let operands = Operands::of(segment, x)?;
        let products = if op.gated { 2 * segment.cols } else { segment.cols };
        let [down, across] = tile.grid(m, products);
        let Plan { slices, steps, .. } = Plan::of(tile, m, products, k, size, cx.caps());
        let split = slices > 1;
        let cluster = if split { 1 } else { tile.cluster(m) };
        let clusters = (down.div_ceil(cluster) * across).min((units / cluster).max(1));
        let (mut sums, mut counters) = (None, None);
        if split {
            let len = down * across * (slices - 1) * tile.rows * tile.cols;
            sums = Some(cx.scratch(1, len, DType::F32)?);
            counters = Some(cx.counters(down * across * CONSUMERS)?);
        }
        let mut kernel = cx.kernel(PATH);
        let optional =
            |view: Option<&View>, rows| view.map_or(Ok(TensorMap([0; 16])), |view| map(&kernel, view, rows));
        let [w_rows, up_rows] = segment.weights(&kernel)?;
        let params = Params {
            x: map(&kernel, &operands.x, tile.rows)?,
            w: map(&kernel, &operands.w, tile.cols / 2)?,
            up: optional(operands.up.as_ref(), tile.cols / 2)?,
            out: map(&kernel, &operands.out, BAND)?,
            residual: optional(operands.residual.as_ref(), BAND)?,
            e: segment.epilogue(&kernel)?,
            w_rows,
            up_rows,
            x_scales: kernel.address_or_null(rounded.map(|rounded| &rounded.scales))?,
            x_scale_stride: rounded.map_or(0, |rounded| rounded.scales.stride(0) as i64),
            sums: kernel.address_or_null(sums.as_ref())?,
            counters: kernel.address_or_null(counters.as_ref())?,
            k: k as i32,
            slices: slices as i32,
            slice_steps: steps as i32,
            pad: [0; 13],
        };
        let dtype = halves::dtype(op).name();
        kernel.define("X", if rounded.is_some() { "e4m3" } else { dtype }).define("OUT", op.out.dtype());
        kernel.define("GATED", op.gated).define("RESIDUAL", op.residual.is_some());
        kernel.define("ACT", act(op.act));
        kernel.define("TILE_N", tile.cols).define("CONSUMERS", CONSUMERS);
        kernel.define("DOWN", tile.rows / BAND / if tile.pingpong { 1 } else { CONSUMERS });
        kernel.define("PINGPONG", tile.pingpong).define("CLUSTER", cluster).define("SPLIT", split);
        kernel.define("STAGES", tile.stages).define("BUFFERS", tile.buffers);
        kernel.shared(tile.shared(rounded.is_some())).cluster(cluster as u32).dependent();
        let threads = 128 * (1 + CONSUMERS);
        kernel.launch([(clusters * cluster * slices) as u32, 1, 1], threads as u32, &params)?;
    }
    Ok(())
}

const PATH: &str = "ops/matmul/gemm_wgmma.cu";

/// `Act` of `epilogue.cuh`.
fn act(act: Activation) -> &'static str {
    match act {
        Activation::None => "ACT_NONE",
        Activation::GeluTanh => "ACT_GELU_TANH",
        Activation::GeluErf => "ACT_GELU_ERF",
        Activation::QuickGelu => "ACT_QUICK_GELU",
        Activation::Relu => "ACT_RELU",
        Activation::Silu => "ACT_SILU",
    }
}
