//! `gemm_mma.cu`: products on the tensor cores of every architecture.

use bytemuck::{Pod, Zeroable};

use super::super::{Matmul, MatmulSpec};
use super::halves;
use super::params::{Epilogue, Row, WeightRows, rows_aligned, segments};
use crate::cuda::CudaCx;
use crate::spec::{Arch, Caps, DType, KernelError};

pub(super) const MMA: Row = Row { name: "gemm-mma", reject: |spec, _| halves::reject(spec), est_us, launch };

const PATH: &str = "ops/matmul/gemm_mma.cu";

/// `Params` of `gemm_mma.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    x_stride: i64,
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
    /// Elements of k in a stage, and stages in the ring.
    step: usize,
    stages: usize,
    /// Share of the tensor cores' rate that it reaches, with two blocks on a multiprocessor.
    share: f32,
}

const LARGE: Tile = Tile { rows: 128, cols: 128, warps: [2, 2], step: 32, stages: 4, share: 0.80 };
const MIDDLE: Tile = Tile { rows: 64, cols: 128, warps: [2, 2], step: 32, stages: 4, share: 0.65 };
const SMALL: Tile = Tile { rows: 64, cols: 64, warps: [2, 2], step: 64, stages: 3, share: 0.50 };

impl Tile {
    fn threads(self) -> usize {
        32 * self.warps[0] * self.warps[1]
    }

    /// Bytes of the ring, or of the products that pass through it on their way out.
    fn shared(self) -> usize {
        let ring = self.stages * (self.rows + self.cols) * self.step * 2;
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
/// Operands that are read one by one are slow with any tile: one serves them all.
fn plan(m: usize, n: usize, k: usize, aligned: bool, caps: &Caps) -> Plan {
    let cuda = &caps.cuda;
    let units = caps.units.max(1);
    // On Hopper these instructions reach little more than half of the rate that those of warpgroups do.
    let rate = cuda.tensor_tflops * if cuda.arch == Arch::Sm90a { 0.6 } else { 1.0 };
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
    let tiles = if aligned { &[LARGE, MIDDLE, SMALL][..] } else { &[MIDDLE] };
    let mut best = cut(tiles[0], 1);
    for &tile in tiles {
        for slices in 1..=MOST_SLICES.min(k / (4 * tile.step)).max(1) {
            let other = cut(tile, slices);
            if other.us < best.us {
                best = other;
            }
        }
    }
    // Two rings must fit into what a multiprocessor has, some 1 KiB for each block aside.
    if best.tile.shared() * 2 + 4096 > cuda.shared_memory as usize {
        best.tile.stages = 3;
    }
    best
}

fn est_us(spec: &MatmulSpec, caps: &Caps) -> f32 {
    let (m, n, k) = (spec.m as usize, spec.n as usize, spec.k as usize);
    let memory = caps.cuda.estimate_us(spec.w.bytes(n, k) as f64, 0.0, 1.0);
    (1.0 + memory).max(3.0 + plan(m, n, k, true, caps).us) + halves::est_us(spec, caps)
}

pub(super) fn launch(op: &Matmul, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let op = &*halves::halved(op, cx)?;
    let (x, k) = (&op.x, op.w.k());
    for segment in segments(op) {
        let kernel = cx.kernel(PATH);
        let [w, up] = segment.weights(&kernel)?;
        let address = kernel.address(x)?;
        let aligned = rows_aligned(address, x) && w.aligned != 0 && (!op.gated || up.aligned != 0);
        let products = if op.gated { 2 * segment.cols } else { segment.cols };
        let Plan { tile, slice, slices, .. } = plan(x.size(0), products, k, aligned, cx.caps());
        let tiles = tile.count(x.size(0), products);
        let (mut sums, mut counters) = (None, None);
        if slices > 1 {
            sums = Some(cx.scratch(1, tiles * slices * tile.rows * tile.cols, DType::F32)?);
            counters = Some(cx.counters(tiles)?);
        }
        let mut kernel = cx.kernel(PATH);
        let params = Params {
            x: address,
            x_stride: x.stride(0) as i64,
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
        kernel
            .define("X", halves::dtype(op))
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
