//! `gemm_mma.cu`: products on the tensor cores of every architecture.

use bytemuck::{Pod, Zeroable};

use super::super::{Matmul, MatmulSpec};
use super::params::{Epilogue, Row, WeightRows, rows_aligned, segments};
use super::{fp8, halves, quant};
use crate::cuda::CudaCx;
use crate::spec::{Arch, Caps, DType, KernelError};

pub(super) const MMA: Row = Row { name: "gemm-mma", reject: |spec, _| halves::reject(spec), est_us, launch };
pub(super) const FP8: Row =
    Row { name: "gemm-fp8-mma", reject: fp8::reject, est_us: est_us_fp8, launch: launch_fp8 };

const PATH: &str = "ops/matmul/gemm_mma.cu";

/// `Params` of `gemm_mma.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    x_stride: i64,
    x_scales: u64,
    x_scale_stride: i64,
    w: WeightRows,
    up: WeightRows,
    e: Epilogue,
    sums: u64,
    counters: u64,
    k: i32,
    slice: i32,
    slices: i32,
    pad: u32,
}

/// A tile of products and the warps that make it.
#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    cols: usize,
    warps: [usize; 2],
    /// Elements of k in a stage, bytes of one, and stages in the ring.
    step: usize,
    size: usize,
    stages: usize,
    /// Share of the tensor cores' rate that it reaches, with two blocks on a multiprocessor.
    share: f32,
}

const LARGE: Tile = Tile { rows: 128, cols: 128, warps: [2, 2], step: 32, size: 2, stages: 4, share: 0.80 };
const MIDDLE: Tile = Tile { rows: 64, cols: 128, warps: [2, 2], step: 32, size: 2, stages: 4, share: 0.65 };
const SMALL: Tile = Tile { rows: 64, cols: 64, warps: [2, 2], step: 64, size: 2, stages: 3, share: 0.50 };

/// Those of 8-bit floats: a stage as long as neighbours share a scale, and registers for its sums beside those of the tile.
const FP8_LARGE: Tile =
    Tile { rows: 128, cols: 128, warps: [2, 4], step: 128, size: 1, stages: 3, share: 0.60 };
const FP8_MIDDLE: Tile =
    Tile { rows: 64, cols: 128, warps: [2, 4], step: 128, size: 1, stages: 3, share: 0.45 };

impl Tile {
    fn threads(self) -> usize {
        32 * self.warps[0] * self.warps[1]
    }

    /// Bytes of the ring, with the scales of 8-bit floats, or of the products that pass through it on their way out.
    fn shared(self) -> usize {
        let scale = if self.size == 1 { 4 } else { 0 };
        let ring = self.stages * (self.rows + self.cols) * (self.step * self.size + scale);
        let passing = self.warps[0] * self.warps[1] * 16 * (self.cols / self.warps[1] + 8) * 4;
        ring.max(passing)
    }

    fn count(self, m: usize, n: usize) -> usize {
        m.div_ceil(self.rows) * n.div_ceil(self.cols)
    }
}

/// How a product of m x n x k is cut.
struct Plan {
    tile: Tile,
    /// Columns of k in a slice, and slices.
    slice: usize,
    slices: usize,
    us: f32,
}

/// Most slices of k.
const MOST_SLICES: usize = 16;

/// The fastest cut by a simple model: a multiprocessor makes its blocks at the rate of the tile, a lone one at a bit more than half
/// of that; sums of slices travel through the second-level cache.
///
fn plan(tiles: &[Tile], m: usize, n: usize, k: usize, caps: &Caps) -> Plan {
    let cuda = &caps.cuda;
    let (units, m) = (caps.units.max(1), caps.rows(m));
    // On Hopper these instructions reach little more than half of the rate that those of warpgroups do.
    let gain = if tiles[0].size == 1 { fp8::RATE } else { 1.0 };
    let rate = cuda.tensor_tflops * gain * if cuda.arch == Arch::Sm90a { 0.6 } else { 1.0 };
    let cut = |tile: Tile, slices: usize| {
        let slice = k.div_ceil(tile.step).div_ceil(slices).max(1) * tile.step;
        let slices = k.div_ceil(slice).max(1);
        let blocks = tile.count(m, n) * slices;
        let busy = (blocks.div_ceil(units) as f32).max(1.7);
        // 64 columns more for the way in and out.
        let flops = (2 * tile.rows * tile.cols * (slice + 64)) as f32;
        let joining =
            if slices == 1 { 0.0 } else { 1.0 + (slices * m * n * 8) as f32 / (cuda.read_gbps * 2e3) };
        let us = busy * flops * units as f32 / (rate * tile.share * 1e6) + joining;
        Plan { tile, slice, slices, us }
    };
    let mut best = cut(tiles[0], 1);
    for &tile in tiles {
        for slices in 1..=MOST_SLICES.min(k / (4 * tile.step)).max(1) {
            let other = cut(tile, slices);
            if other.us < best.us {
                best = other;
            }
        }
    }
    // Two rings must fit into what a multiprocessor has, some 1 KiB for each block aside; of 8-bit floats one.
    if best.tile.size > 1 && best.tile.shared() * 2 + 4096 > cuda.shared_memory as usize {
        best.tile.stages = 3;
    }
    best
}

/// The tiles that serve operands of 16 bits. Those that are read one by one are slow with any tile: one serves them all.
const fn tiles(aligned: bool) -> &'static [Tile] {
    if aligned { &[LARGE, MIDDLE, SMALL] } else { &[MIDDLE] }
}
const FP8_TILES: &[Tile] = &[FP8_LARGE, FP8_MIDDLE];

fn est_us(spec: &MatmulSpec, caps: &Caps) -> f32 {
    let (m, n, k) = (spec.m as usize, spec.n as usize, spec.k as usize);
    let memory = caps.cuda.estimate_us(spec.w.bytes(n, k) as f64, 0.0, 1.0);
    (1.0 + memory).max(3.0 + plan(tiles(true), m, n, k, caps).us) + halves::est_us(spec, caps)
}

fn est_us_fp8(spec: &MatmulSpec, caps: &Caps) -> f32 {
    let (m, n, k) = (spec.m as usize, spec.n as usize, spec.k as usize);
    let memory = caps.cuda.estimate_us(spec.w.bytes(n, k) as f64, 0.0, 1.0);
    (1.0 + memory).max(3.0 + plan(FP8_TILES, m, n, k, caps).us) + fp8::est_us(spec, caps)
}

pub(super) fn launch(op: &Matmul, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let op = &*halves::halved(op, cx)?;
    multiply(op, None, cx)
}

/// As above for weights of 8-bit floats, x rounded to them.
pub(super) fn launch_fp8(op: &Matmul, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    if op.out.is_empty() {
        return Ok(());
    }
    let kernel = cx.kernel(PATH);
    if op.w.k() == 0 || !kernel.all_aligned(op.w.parts().iter().map(|part| &part.planes[0]))? {
        return quant::launch(op, cx);
    }
    let rounded = fp8::rounded(&op.x, cx)?;
    multiply(op, Some(&rounded), cx)
}

/// The product of x and weights of one type: x as it is in `op`, or rounded to 8-bit floats.
fn multiply(op: &Matmul, rounded: Option<&fp8::Rounded>, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (m, k) = (op.x.size(0), op.w.k());
    for segment in segments(op) {
        let kernel = cx.kernel(PATH);
        let [w, up] = segment.weights(&kernel)?;
        let x = rounded.map_or(&op.x, |rounded| &rounded.codes);
        let address = kernel.address(x)?;
        let aligned = rows_aligned(address, x) && w.aligned != 0 && (!op.gated || up.aligned != 0);
        let products = if op.gated { 2 * segment.cols } else { segment.cols };
        let all = if rounded.is_some() { FP8_TILES } else { tiles(aligned) };
        let Plan { tile, slice, slices, .. } = plan(all, m, products, k, cx.caps());
        let tiles = tile.count(m, products);
        let (mut sums, mut counters) = (None, None);
        if slices > 1 {
            sums = Some(cx.scratch(1, tiles * slices * tile.rows * tile.cols, DType::F32)?);
            counters = Some(cx.counters(tiles)?);
        }
        let mut kernel = cx.kernel(PATH);
        let params = Params {
            x: address,
            // Codes lie in words.
            x_stride: (x.stride(0) * x.dtype().size() / tile.size) as i64,
            x_scales: kernel.address_or_null(rounded.map(|rounded| &rounded.scales))?,
            x_scale_stride: rounded.map_or(0, |rounded| rounded.scales.stride(0) as i64),
            w,
            up,
            e: segment.epilogue(&kernel)?,
            sums: kernel.address_or_null(sums.as_ref())?,
            counters: kernel.address_or_null(counters.as_ref())?,
            k: k as i32,
            slice: slice as i32,
            slices: slices as i32,
            pad: 0,
        };
        let dtype = halves::dtype(op).name();
        kernel
            .define("X", if rounded.is_some() { "e4m3" } else { dtype })
            .define("GATED", op.gated)
            .define("VEC", if aligned { 8 } else { 1 });
        kernel.define("TILE_M", tile.rows).define("TILE_N", tile.cols);
        kernel.define("WARPS_DOWN", tile.warps[0]).define("WARPS_ACROSS", tile.warps[1]);
        kernel.define("STEP", tile.step).define("STAGES", tile.stages);
        kernel.shared(tile.shared()).dependent();
        kernel.launch([tiles as u32, slices as u32, 1], tile.threads() as u32, &params)?;
    }
    Ok(())
}
