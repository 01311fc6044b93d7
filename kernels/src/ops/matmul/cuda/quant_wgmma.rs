//! `quant_wgmma.cu`: products with weights that are codes in groups on the tensor cores of Hopper.

use bytemuck::{Pod, Zeroable};

use super::super::{Matmul, MatmulSpec};
use super::params::{Epilogue, Row, Rows, WeightRows, segments};
use super::quant::{self, Operands, XParams, operands_spec};
use super::wgmma::{map, map_boxes};
use crate::buffer::View;
use crate::cuda::{CudaCx, TensorMap};
use crate::select::Reject;
use crate::spec::{Arch, Caps, DType, KernelError};

pub(super) const ROW: Row = Row { name: "quant-wgmma", reject, est_us, launch };

/// Columns of k in a stage.
const STEP: usize = 128;
/// Rows of weights of a tile, and of a box of them.
const TILE_M: usize = 128;
const BOX_ROWS: usize = 64;
/// Columns of a box of either operand.
const BOX_COLS: usize = 64;
/// Warpgroups that multiply.
const CONSUMERS: usize = 2;
/// Shared memory beside the ring: 32 rows of 68 results of each consumer, and room for barriers.
const ASIDE: usize = CONSUMERS * 32 * 68 * 4 + 256;
/// Stages that a ring has at most, and that a slice of k has at least.
const MOST_STAGES: usize = 6;
const LEAST_STEPS: usize = 4;

fn operands(spec: &MatmulSpec) -> Result<Operands, Reject> {
    let operands = Operands::in_steps(spec, STEP as u32)?;
    match operands.are_plain() {
        true => Ok(operands),
        false => Err("for groups of 32 or more of codes that 16-bit floats hold, with zero points that are codes or none".into()),
    }
}

fn reject(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    if caps.cuda.arch != Arch::Sm90a {
        return Some("for sm_90a".into());
    }
    if !spec.w.grouped().is_some_and(|grouped| grouped.scale.is_float()) {
        return Some("for codes in groups with scales of 16 or 32 bits".into());
    }
    operands(spec).err()
}

/// How a product is cut.
#[derive(Clone, Copy)]
struct Plan {
    /// Rows of x in a tile.
    tile_n: usize,
    /// Tiles, each of a block for itself or of a cluster.
    tiles: usize,
    /// Blocks of a cluster, which have neighbouring rows of weights.
    cluster: usize,
    /// Slices of k, and stages along k in each.
    slices: usize,
    steps: usize,
    /// Of the ring, and bytes of shared memory.
    stages: usize,
    shared: usize,
    us: f32,
}

impl Plan {
    /// For `m` rows of x and `n` rows of weights. Tiles of so few rows of x as there are; summands of x take the room of
    /// rows. k is cut where tiles leave multiprocessors idle and it pays by a simple model: tiles reach a share of the
    /// rate, their ends cost what two stages do, and sums of slices travel through the second-level cache.
    fn of(operands: Operands, m: usize, n: usize, k: usize, caps: &Caps) -> Self {
        let (units, all) = (caps.units.max(1), k.div_ceil(STEP));
        let rows = caps.rows(m);
        let tile_n = if rows <= 64 || operands.parts > 1 { 64 } else { 128 };
        let tiles = rows.div_ceil(tile_n) * n.div_ceil(TILE_M);
        let stage = STEP * (2 * tile_n * operands.parts + TILE_M * operands.code.bits() / 8);
        let stages = ((caps.cuda.shared_memory as usize).saturating_sub(ASIDE) / stage).clamp(2, MOST_STAGES);
        let shared = stages * stage + ASIDE;
        // Each weight is decoded once for the rows of x of a tile, and sums of groups are added to those of a tile.
        let share = if tile_n > 64 { 0.65 } else { 0.50 };
        let cut = |slices: usize| {
            let steps = all.div_ceil(slices);
            let slices = all.div_ceil(steps.max(1)).max(1);
            let turns = (tiles * slices).div_ceil(units);
            let flops = (2 * tile_n * operands.parts * TILE_M * STEP * turns * (steps + 2)) as f32;
            let joined = ((slices - 1) * tiles * tile_n * TILE_M * 8) as f32 / (caps.cuda.read_gbps * 2e3);
            let us = flops * units as f32 / (caps.cuda.tensor_tflops * share * 1e6) + joined;
            let us = us + if slices > 1 { 2.0 } else { 0.0 };
            Self { tile_n, tiles, cluster: 1, slices, steps, stages, shared, us }
        };
        let most = (units / tiles.max(1)).min(all / LEAST_STEPS).max(1);
        let least = |best: Self, slices| {
            let other = cut(slices);
            if other.us < best.us { other } else { best }
        };
        let best = (2..=most).fold(cut(1), least);
        // Two where that leaves no block without weights, or one among many.
        let across = n.div_ceil(TILE_M);
        if best.slices > 1 || !(across.is_multiple_of(2) || across > 16) {
            return Self { tiles: m.div_ceil(tile_n) * across, ..best };
        }
        Self { cluster: 2, tiles: m.div_ceil(tile_n) * across.div_ceil(2), ..best }
    }
}

fn est_us(spec: &MatmulSpec, caps: &Caps) -> f32 {
    let Ok(operands) = operands(spec) else { return f32::MAX };
    let (m, n, k) = (spec.m as usize, spec.n as usize, spec.k as usize);
    let memory = caps.cuda.estimate_us(spec.w.bytes(n, k) as f64 / 0.8, 0.0, 1.0);
    // x is read and written once before.
    let x = m as f64 * k as f64 * (spec.x.size() + 2 * operands.parts) as f64;
    (1.0 + memory).max(3.5 + Plan::of(operands, m, n, k, caps).us) + caps.cuda.estimate_us(x, 0.0, 1.0)
}

/// `Params` of `quant_wgmma.cu`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x_map: TensorMap,
    w_map: TensorMap,
    up_map: TensorMap,
    w: WeightRows,
    up: WeightRows,
    e: Epilogue,
    sums: u64,
    counters: u64,
    steps: i32,
    groups: i32,
    slices: i32,
    slice_steps: i32,
    gated: u32,
    pad: [i32; 15],
}

fn launch(op: &Matmul, cx: &mut CudaCx<'_>) -> Result<(), KernelError> {
    let (m, k) = (op.x.size(0), op.w.k());
    if op.out.is_empty() {
        return Ok(());
    }
    let operands = operands(&operands_spec(op)).map_err(|why| KernelError::Device(why.into_owned()))?;
    // The copy engine moves rows that begin at multiples of 16 bytes.
    let segments = segments(op);
    let fields = |rows: Rows<'_>| rows.part.planes[0].clone();
    let planes: Vec<View> =
        segments.iter().flat_map(|segment| [Some(segment.w), segment.up]).flatten().map(fields).collect();
    // Scales stay as they are stored until they are used.
    let factors = op.w.parts().iter().any(|part| part.factor != 1.0);
    if factors || !cx.kernel(PATH).all_aligned(&planes)? {
        return quant::launch(op, cx);
    }
    let steps = k.div_ceil(STEP);
    let x = lay_out(&op.x, operands, steps, cx)?;
    for segment in segments {
        let products = if op.gated { 2 * segment.cols } else { segment.cols };
        let plan = Plan::of(operands, m, products, k, cx.caps());
        let (mut sums, mut counters) = (None, None);
        if plan.slices > 1 {
            sums = Some(cx.scratch(1, plan.tiles * (plan.slices - 1) * plan.tile_n * TILE_M, DType::F32)?);
            counters = Some(cx.counters(plan.tiles * CONSUMERS)?);
        }
        let clusters = (plan.tiles * plan.slices).min((cx.caps().units / plan.cluster).max(1));
        let mut kernel = cx.kernel(PATH);
        let words = |rows: Rows<'_>| {
            map_boxes(&kernel, &rows.part.planes[0], BOX_ROWS, BOX_COLS * operands.code.bits() / 8)
        };
        let [w, up] = segment.weights(&kernel)?;
        let params = Params {
            x_map: map(&kernel, &x, plan.tile_n / plan.cluster)?,
            w_map: words(segment.w)?,
            up_map: segment.up.map_or(Ok(TensorMap([0; 16])), words)?,
            w,
            up,
            e: segment.epilogue(&kernel)?,
            sums: kernel.address_or_null(sums.as_ref())?,
            counters: kernel.address_or_null(counters.as_ref())?,
            steps: steps as i32,
            groups: op.w.format().groups(k) as i32,
            slices: plan.slices as i32,
            slice_steps: plan.steps as i32,
            gated: u32::from(op.gated),
            pad: [0; 15],
        };
        operands.define(&mut kernel);
        let scales = segment.w.part.planes.get(1).map_or(DType::F32, View::dtype);
        kernel
            .define("SCALE", scales)
            .define("ZERO", operands.zero)
            .define("FRACTIONS", false)
            .define("SIXTEENS", 1)
            .define("TILE_N", plan.tile_n)
            .define("STAGES", plan.stages);
        kernel.define("CLUSTER", plan.cluster).cluster(plan.cluster as u32);
        kernel.shared(plan.shared).dependent();
        kernel.launch([(clusters * plan.cluster) as u32, 1, 1], 128 * (1 + CONSUMERS) as u32, &params)?;
    }
    Ok(())
}

const PATH: &str = "ops/matmul/quant_wgmma.cu";

/// x in working memory (slot 0) as `quant_wgmma_x.cu` lays it out: the rows of each summand, `[parts * m, STEP * steps]`.
fn lay_out(x: &View, operands: Operands, steps: usize, cx: &mut CudaCx<'_>) -> Result<View, KernelError> {
    let (rows, pitch) = (operands.parts * x.size(0), STEP * steps);
    let out = cx.scratch(0, rows * pitch, operands.dtype)?.reshape(&[rows, pitch])?;
    let mut kernel = cx.kernel("ops/matmul/quant_wgmma_x.cu");
    operands.define(&mut kernel);
    kernel.dependent();
    let params = XParams::new(&kernel, x, &out, steps, 0)?;
    // Sixteen threads have a step of a row, eight columns each.
    let blocks = (x.size(0) * steps * 16).div_ceil(128);
    kernel.launch([blocks as u32, 1, 1], 128, &params)?;
    Ok(out)
}
