//! Products for many rows of x: tiles, whole or with k cut into slices.

use super::super::{Matmul, MatmulSpec};
use super::product::{Product, products};
use crate::select::Reject;
use crate::spec::{Caps, DType, Format, KernelError};
use crate::wgpu::{Kernel, WgpuCx};

/// Workgroups that keep a large device busy.
const BUSY: usize = 128;
/// Columns of k that a slice has at least.
const LEAST_SLICE: usize = 256;

/// The tile of a workgroup, see `gemm.wgsl`.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    rows: usize,
    cols: usize,
    depth: usize,
    across: usize,
}

const FLAT: Tile = Tile { rows: 32, cols: 128, depth: 16, across: 32 };
const SMALL: Tile = Tile { rows: 64, cols: 64, depth: 32, across: 16 };
const LARGE: Tile = Tile { rows: 128, cols: 128, depth: 16, across: 16 };

/// Type of the elements of a tile in workgroup memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Element {
    F32,
    F16,
}

impl Tile {
    /// The tile for `m` rows of x and `n` of w.
    fn of(m: usize, n: usize) -> Self {
        match () {
            () if m <= FLAT.rows => FLAT,
            () if LARGE.count(m, n) >= BUSY => LARGE,
            () => SMALL,
        }
    }

    fn count(self, m: usize, n: usize) -> usize {
        m.div_ceil(self.rows) * n.div_ceil(self.cols)
    }
}

/// Time of `slices` slices of each tile, at `rate` multiply-adds a microsecond of the whole device.
fn est_tiles(spec: &MatmulSpec, slices: usize, rate: f32) -> f32 {
    let (m, n, k) = (spec.m as usize, spec.n as usize, spec.k as usize);
    let tile = Tile::of(m, n);
    let groups = (tile.count(m, n) * slices).max(BUSY);
    let macs = (groups * tile.rows * tile.cols) as f32 * k as f32 / slices as f32;
    let bytes = spec.w.bytes(n, k) as f32;
    4.0 + (macs / rate).max(bytes / 800_000.0)
}

pub(super) fn reject(spec: &MatmulSpec, _: &Caps) -> Option<Reject> {
    spec.reject_fused().or_else(|| spec.w.reject_k_major())
}

pub(super) fn est(spec: &MatmulSpec, _: &Caps) -> f32 {
    est_tiles(spec, 1, 6e6)
}

/// Slices of k that keep the device busy.
fn slices(m: usize, n: usize, k: usize) -> usize {
    let tiles = Tile::of(m, n).count(m, n).max(1);
    (2 * BUSY / tiles).min(k / LEAST_SLICE).clamp(1, 32)
}

pub(super) fn reject_split(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    let (m, n, k) = (spec.m as usize, spec.n as usize, spec.k as usize);
    if k < 2 * LEAST_SLICE {
        return Some(format!("for k of {} or more", 2 * LEAST_SLICE).into());
    }
    reject(spec, caps).or_else(|| (slices(m, n, k) < 2).then(|| "there are tiles enough".into()))
}

pub(super) fn est_split(spec: &MatmulSpec, caps: &Caps) -> f32 {
    let (m, n) = (spec.m as usize, spec.n as usize);
    let slices = slices(m, n, spec.k as usize);
    let sums = (slices * m * n * 4) as f32;
    // Software devices have no idle units to fill.
    let idle = if caps.wgpu.software { 1e3 } else { 4.0 };
    est_tiles(spec, slices, 6e6) + idle + 2.0 * sums / 1e6
}

pub(super) fn tile(op: &Matmul, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    products(op, cx, 1, |product, cx| launch(product, cx, Element::F32))
}

pub(super) fn split(op: &Matmul, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let slices = slices(op.x.size(0), op.w.n(), op.w.k()).max(2);
    products(op, cx, slices, |product, cx| launch(product, cx, Element::F32))
}

/// Why x and w may not be multiplied as f16, if so.
///
/// x must be f16 already: other types reach beyond its range. Weights of bf16 from 2^-17 to 65504 are exact in f16, and
/// what smaller ones lose, 2^-25 at most, is far below the rounding of a sum unless a whole row is that small. Others
/// are rounded to 11 bits, which stays within what bf16 math rounds, and within what x loses to 8 bits.
fn reject_half(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    if !caps.wgpu.f16 {
        return Some("the device has no f16".into());
    }
    if spec.x != DType::F16 {
        return Some("for x of f16".into());
    }
    if let Some(why) = reject(spec, caps) {
        return Some(why);
    }
    let exact = matches!(spec.w, Format::Dense(DType::F16 | DType::BF16));
    (!exact && !spec.math.takes_bf16())
        .then(|| "rounds these weights to f16, which math=bf16 and math=int8 allow".into())
}

pub(super) fn reject_f16(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    reject_half(spec, caps)
}

pub(super) fn est_f16(spec: &MatmulSpec, caps: &Caps) -> f32 {
    // Half the traffic with workgroup memory; software converts each element.
    est_tiles(spec, 1, if caps.wgpu.software { 3e6 } else { 7.5e6 })
}

pub(super) fn f16(op: &Matmul, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    products(op, cx, 1, |product, cx| launch(product, cx, Element::F16))
}

fn launch(product: &Product<'_>, cx: &mut WgpuCx<'_>, element: Element) -> Result<(), KernelError> {
    let (m, n) = (product.op.x.size(0), product.part.rows);
    let mut tile = Tile::of(m, n);
    if element == Element::F16 {
        // The same bytes of workgroup memory hold a deeper tile, with half the barriers.
        tile.depth = 32;
    }
    let (slices, slice) = product.slices(tile.depth);
    let (mut kernel, mut params) = product.kernel(cx, "ops/matmul/gemm.wgsl", false)?;
    product.x(&mut kernel, &mut params)?;
    params.slice = slice as u32;
    kernel
        .define("TILE", if element == Element::F16 { "f16" } else { "f32" })
        .define("ROWS", tile.rows)
        .define("COLS", tile.cols)
        .define("DEPTH", tile.depth)
        .define("ACROSS", tile.across)
        .params(&params);
    let cols = if product.gated() { tile.cols / 2 } else { tile.cols };
    dispatch(kernel, [m.div_ceil(tile.rows), product.columns().div_ceil(cols), slices])
}

fn dispatch(kernel: Kernel<'_, '_>, grid: [usize; 3]) -> Result<(), KernelError> {
    kernel.dispatch(grid.map(|axis| u32::try_from(axis).unwrap_or(u32::MAX)))
}

/// Subgroups of `gemm_coop.wgsl` that hold sums.
const SUBGROUPS: u32 = 4;
/// Halves from row to row of its tiles: 32 columns of k, and eight more.
const PITCH: u32 = 40;

pub(super) fn reject_coop(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    let wgpu = &caps.wgpu;
    let side = wgpu.matrix;
    if !matches!(side, 8 | 16) || wgpu.subgroup.1 == 0 {
        return Some("the device has no cooperative matrices of 8 or 16".into());
    }
    let (lanes, memory) =
        (SUBGROUPS * wgpu.subgroup.1, 2 * 2 * 8 * side * PITCH + SUBGROUPS * side * side * 4);
    if lanes > wgpu.invocations || memory > wgpu.workgroup_memory {
        return Some(format!("needs {lanes} invocations and {memory} bytes of workgroup memory").into());
    }
    reject_half(spec, caps)
}

pub(super) fn est_coop(spec: &MatmulSpec, caps: &Caps) -> f32 {
    let side = 8 * caps.wgpu.matrix.max(1) as usize;
    let tiles = (spec.m as usize).div_ceil(side) * (spec.n as usize).div_ceil(side);
    let macs = (tiles.max(BUSY) * side * side) as f32 * spec.k as f32;
    let bytes = spec.w.bytes(spec.n as usize, spec.k as usize) as f32;
    5.0 + (macs / 30e6).max(bytes / 800_000.0)
}

pub(super) fn coop(op: &Matmul, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let (side, lanes) = (cx.caps().wgpu.matrix, SUBGROUPS * cx.caps().wgpu.subgroup.1);
    products(op, cx, 1, |product, cx| {
        let (mut kernel, mut params) = product.kernel(cx, "ops/matmul/gemm_coop.wgsl", false)?;
        product.x(&mut kernel, &mut params)?;
        kernel.define("SIDE", side).define("WG", lanes).params(&params);
        let tile = 8 * side as usize;
        let cols = if product.gated() { tile / 2 } else { tile };
        dispatch(kernel, [product.op.x.size(0).div_ceil(tile), product.columns().div_ceil(cols), 1])
    })
}
