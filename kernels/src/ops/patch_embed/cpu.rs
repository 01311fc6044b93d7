//! CPU kernels.
//!
//! A matrix product whose left side does not exist: a chunk of patches is cut out of the pixels into f32 rows, normalized
//! on the way through a table of the 256 grey levels, and multiplied from the second-level cache. Filters are decoded a
//! few rows at a time, once per chunk. Bias and position embedding are added before the result is stored.

use std::ops::Range;

use super::{PatchEmbed, PatchEmbedSpec};
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRow, InRows, OutRow, OutRows, copy_row};
use crate::cpu::simd::MAX_LANES;
use crate::cpu::table::Table;
use crate::op::{CpuLaunch, CpuOp, Op};
use crate::ops::index::Indices;
use crate::select::Variant;
use crate::spec::{DType, KernelError};

impl CpuOp for PatchEmbed {
    fn cpu_variants() -> &'static [Variant<PatchEmbedSpec, CpuLaunch<Self>>] {
        &[Variant { name: "dot-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

/// Patches of a chunk: their rows stay in the second-level cache.
const CHUNK: usize = 32;
/// Patches and filters of a tile, whose products are accumulated in registers.
const TILE: (usize, usize) = (4, 4);

#[derive(Clone, Copy)]
enum Pixels {
    Bytes(*const u8),
    Floats(*const f32),
}

/// Cuts patches out of pictures.
struct Cutter {
    pixels: Pixels,
    /// Normalized value of each grey level of each channel.
    levels: [[f32; 256]; 3],
    height: usize,
    width: usize,
    patch: usize,
}

// SAFETY: a pointer into memory that the op's view keeps alive and that is only read.
unsafe impl Sync for Cutter {}

impl Cutter {
    fn new(op: &PatchEmbed, cx: &CpuCx) -> Result<Self, KernelError> {
        let pixels = match op.pixels.dtype() {
            DType::U8 => Pixels::Bytes(cx.input(&op.pixels)?),
            _ => Pixels::Floats(cx.input(&op.pixels)?),
        };
        let levels =
            std::array::from_fn(|c| std::array::from_fn(|level| (level as f32 - op.mean[c]) / op.std[c]));
        let (_, height, width) = op.size();
        Ok(Self { pixels, levels, height, width, patch: op.patch })
    }

    /// Writes the normalized pixels of a patch, channel outermost, then row.
    ///
    /// # Safety
    /// The picture exists; the patch that begins at row `top` and column `left` lies within it.
    unsafe fn cut(&self, image: usize, top: usize, left: usize, to: &mut [f32]) {
        let patch = self.patch;
        for (line, to) in to.chunks_exact_mut(patch).enumerate() {
            let (c, y) = (line / patch, top + line % patch);
            // SAFETY: rows and columns of the patch are within the picture.
            unsafe {
                match self.pixels {
                    Pixels::Bytes(base) => {
                        let from = base.add(((image * self.height + y) * self.width + left) * 3 + c);
                        for (x, to) in to.iter_mut().enumerate() {
                            *to = self.levels[c][usize::from(*from.add(3 * x))];
                        }
                    }
                    Pixels::Floats(base) => {
                        let from = base.add(((image * 3 + c) * self.height + y) * self.width + left);
                        from.copy_to_nonoverlapping(to.as_mut_ptr(), patch);
                    }
                }
            }
        }
    }
}

/// What is added to the products of a patch.
#[derive(Clone, Copy)]
struct Positions<'a> {
    table: InRows<'a>,
    ids: Option<Indices<'a>>,
    per_image: usize,
}

impl<'a> Positions<'a> {
    /// The embedding of a patch.
    fn of(&self, patch: usize) -> InRow<'a> {
        let id = self.ids.map_or(patch % self.per_image, |ids| ids.get(patch) as usize);
        // SAFETY: `spec` or `launch` checked the range, and `out` does not overlap the table.
        unsafe { self.table.row(id) }
    }
}

fn positions<'a>(op: &'a PatchEmbed, cx: &CpuCx) -> Result<Option<Positions<'a>>, KernelError> {
    let Some(table) = &op.pos else { return Ok(None) };
    let (limit, ids) = (table.size(0), op.pos_ids.as_ref().map(|ids| Indices::new(cx, ids)).transpose()?);
    for index in ids.iter().flat_map(Indices::iter) {
        if index < 0 || index as usize >= limit {
            let (what, index) = ("pos_ids", index.into());
            return Err(KernelError::Index { op: PatchEmbed::NAME, what, index, limit });
        }
    }
    Ok(Some(Positions { table: InRows::new(cx, table)?, ids, per_image: op.patches_per_image() }))
}

fn launch(op: &PatchEmbed, cx: &CpuCx) -> Result<(), KernelError> {
    let (n, k) = (op.w.n(), op.w.k());
    let (table, out, cutter) = (Table::new(cx, &op.w)?, OutRows::new(cx, &op.out)?, Cutter::new(op, cx)?);
    let (pos, biases) = (positions(op, cx)?, biases(op, cx)?);
    let (patches, per_image, across) = (op.out.size(0), op.patches_per_image(), cutter.width / op.patch);
    let chunk = CHUNK.min(patches.div_ceil(cx.pool.threads()).next_multiple_of(TILE.0)).max(TILE.0);
    cx.pool.run_ranges(patches, chunk, |range, worker| {
        let scratch = worker.scratch.slice::<f32>((chunk + TILE.1) * k);
        let (cut, filters) = scratch.split_at_mut(chunk * k);
        for (patch, to) in range.clone().zip(cut.chunks_exact_mut(k)) {
            let (image, place) = (patch / per_image, patch % per_image);
            // SAFETY: `per_image` counts whole patches.
            unsafe {
                cutter.cut(image, place / across * op.patch, place % across * op.patch, to);
            }
        }
        for first in (0..n).step_by(TILE.1) {
            let count = TILE.1.min(n - first);
            for (row, to) in (first..first + count).zip(filters.chunks_exact_mut(k)) {
                // SAFETY: the matrix has the row.
                unsafe { table.decode(cx.isa, row, 1.0, OutRow::of(to)) };
            }
            let bias = biases.as_ref().map_or(&[][..], |all| &all[first..first + count]);
            let bias = std::array::from_fn(|column| bias.get(column).copied().unwrap_or(0.0));
            let tiles = Tiles { cut, filters, first, count, bias, pos, out };
            multiply(cx.isa, &tiles, range.clone());
        }
    });
    Ok(())
}

/// The bias of each filter in f32, where any has one.
fn biases(op: &PatchEmbed, cx: &CpuCx) -> Result<Option<Vec<f32>>, KernelError> {
    if !op.w.has_bias() {
        return Ok(None);
    }
    let mut all = vec![0.0; op.w.n()];
    let mut rest = &mut all[..];
    for part in op.w.parts() {
        let (these, others) = rest.split_at_mut(part.rows);
        if let Some(bias) = &part.bias {
            // SAFETY: a vector is one row; `out` does not overlap it.
            copy_row(cx.isa, unsafe { InRows::new(cx, bias)?.row(0) }, OutRow::of(these), 1.0);
        }
        rest = others;
    }
    Ok(Some(all))
}

/// A chunk of patches and a few filters.
struct Tiles<'a> {
    /// Patches `[range][k]`.
    cut: &'a [f32],
    /// Filters `[TILE.1][k]`, of which `count` are real.
    filters: &'a [f32],
    /// The first filter's column of the result.
    first: usize,
    count: usize,
    bias: [f32; TILE.1],
    pos: Option<Positions<'a>>,
    out: OutRows<'a>,
}

crate::simd_fn! {
    /// Multiplies all patches of the range with the filters.
    fn multiply<S>(s: S, t: &Tiles<'_>, range: Range<usize>) {
        let k = t.filters.len() / TILE.1;
        for patch in range.clone().step_by(TILE.0) {
            let cut = &t.cut[(patch - range.start) * k..][..TILE.0 * k];
            let mut sums = [[s.zero(); TILE.1]; TILE.0];
            for at in (0..k).step_by(S::LANES) {
                let n = S::LANES.min(k - at);
                // SAFETY: `at + n <= k`; both sides hold whole tiles of rows of `k` values.
                unsafe {
                    let w: [S::V; TILE.1] = [
                        s.load_n(t.filters.as_ptr().add(at), n),
                        s.load_n(t.filters.as_ptr().add(k + at), n),
                        s.load_n(t.filters.as_ptr().add(2 * k + at), n),
                        s.load_n(t.filters.as_ptr().add(3 * k + at), n),
                    ];
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let x = s.load_n(cut.as_ptr().add(row * k + at), n);
                        for (sum, w) in sums.iter_mut().zip(w) {
                            *sum = s.fma(x, w, *sum);
                        }
                    }
                }
            }
            for (row, sums) in sums.into_iter().enumerate().take(range.end - patch) {
                // SAFETY: the patch is this thread's alone; the columns exist.
                unsafe {
                    let out = t.out.row(patch + row).part(t.first, t.count);
                    let mut values = [0.0; MAX_LANES];
                    for ((value, sum), bias) in values.iter_mut().zip(sums).zip(t.bias) {
                        *value = s.sum(sum) + bias;
                    }
                    for at in (0..t.count).step_by(S::LANES) {
                        let n = S::LANES.min(t.count - at);
                        let mut v = s.load_n(values.as_ptr().add(at), n);
                        if let Some(pos) = &t.pos {
                            v = s.add(v, pos.of(patch + row).load(s, t.first + at, n));
                        }
                        out.store(s, at, v, n);
                    }
                }
            }
        }
    }
}
