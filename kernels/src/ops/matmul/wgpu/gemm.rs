//! Products for many rows of x: tiles, whole or with k cut into slices.

use super::super::{Matmul, MatmulSpec};
use super::product::{Product, products};
use crate::select::Reject;
use crate::spec::{Caps, KernelError};
use crate::wgpu::WgpuCx;

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

pub(super) fn reject(_: &MatmulSpec, _: &Caps) -> Option<Reject> {
    None
}

pub(super) fn est(spec: &MatmulSpec, _: &Caps) -> f32 {
    est_tiles(spec, 1, 6e6)
}

/// Slices of k that keep the device busy.
fn slices(m: usize, n: usize, k: usize) -> usize {
    let tiles = Tile::of(m, n).count(m, n).max(1);
    (2 * BUSY / tiles).min(k / LEAST_SLICE).clamp(1, 32)
}

pub(super) fn reject_split(spec: &MatmulSpec, _: &Caps) -> Option<Reject> {
    let (m, n, k) = (spec.m as usize, spec.n as usize, spec.k as usize);
    if k < 2 * LEAST_SLICE {
        return Some(format!("for k of {} or more", 2 * LEAST_SLICE).into());
    }
    (slices(m, n, k) < 2).then(|| "there are tiles enough".into())
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
    products(op, cx, 1, |product, cx| launch(product, cx, "f32"))
}

pub(super) fn split(op: &Matmul, cx: &mut WgpuCx<'_>) -> Result<(), KernelError> {
    let slices = slices(op.x.size(0), op.w.n(), op.w.k()).max(2);
    products(op, cx, slices, |product, cx| launch(product, cx, "f32"))
}

fn launch(product: &Product<'_>, cx: &mut WgpuCx<'_>, element: &str) -> Result<(), KernelError> {
    let (m, n) = (product.op.x.size(0), product.part.rows);
    let tile = Tile::of(m, n);
    let (slices, slice) = product.slices(tile.depth);
    let (mut kernel, mut params) = product.kernel(cx, "ops/matmul/gemm.wgsl", false)?;
    product.x(&mut kernel, &mut params)?;
    params.slice = slice as u32;
    kernel
        .define("TILE", element)
        .define("ROWS", tile.rows)
        .define("COLS", tile.cols)
        .define("DEPTH", tile.depth)
        .define("ACROSS", tile.across)
        .params(&params);
    let cols = if product.gated() { tile.cols / 2 } else { tile.cols };
    let grid = [m.div_ceil(tile.rows), product.columns().div_ceil(cols), slices];
    kernel.dispatch(grid.map(|axis| u32::try_from(axis).unwrap_or(u32::MAX)))
}
