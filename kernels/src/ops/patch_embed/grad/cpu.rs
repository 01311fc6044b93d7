//! CPU kernels.
//!
//! The gradient of the filters is a matrix product neither side of which exists: the gradient of the result is turned, and patches are cut
//! out of the pixels, where the product packs blocks of them.

use std::ops::Range;

use super::super::cpu::Cutter;
use super::PatchEmbedGrad;
use crate::cpu::CpuCx;
use crate::cpu::gemm::{Dense, GemmArgs, Operand, PanelSource, Part, ResidualRow, RowSource, gemm_exact};
use crate::cpu::isa::Isa;
use crate::cpu::rows::InRows;
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{Kernel, Simd};
use crate::cpu::{CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::Activation;
use crate::ops::index::Indices;
use crate::ops::matmul::cpu::args::{input, output};
use crate::ops::matmul::cpu::reject_tiles;
use crate::ops::sums::{Blocks, GradRows, add_rows, store};
use crate::select::Variant;
use crate::spec::{DType, KernelError};

impl CpuOp for PatchEmbedGrad {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[
            Variant {
                name: "gemm-amx-f32",
                reject: |_, caps| reject_tiles(caps),
                est_us: |_, _| 0.5,
                launch: launch::<true>,
            },
            Variant { name: "gemm-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch: launch::<false> },
        ]
    }
}

/// The rows of a matrix as columns.
struct Turned {
    isa: Isa,
    lanes: usize,
    matrix: Dense,
}

impl RowSource for Turned {
    unsafe fn pack(&self, row: usize, rows: usize, col: usize, n: usize, to: *mut f32, stride: usize) {
        for done in (0..n).step_by(self.lanes) {
            // SAFETY: rows `col..col + n` of the matrix have columns `row..row + rows`, and `to` is writable, as the caller vouches.
            unsafe {
                let lanes = self.lanes.min(n - done);
                self.matrix.pack(self.isa, col + done, lanes, row, rows, to.add(done), stride);
            }
        }
    }
}

/// The pixels of all patches, in the order of the filters, as rows: those of one patch are a column.
struct Columns<'a>(&'a Cutter);

impl PanelSource for Columns<'_> {
    unsafe fn pack(
        &self,
        _: Isa,
        row: usize,
        rows: usize,
        col: usize,
        k: usize,
        to: *mut f32,
        stride: usize,
    ) {
        // SAFETY: the places are those of the same part of the other matrix by rows.
        unsafe { RowSource::pack(self.0, col, k, row, rows, to, stride) }
    }
}

struct Lanes;
impl Kernel for Lanes {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

fn launch<const TILES: bool>(op: &PatchEmbedGrad, cx: &CpuCx) -> Result<(), KernelError> {
    let (patches, d) = (op.d_out.size(0), op.d_out.size(1));
    // Ids are checked before anything is written.
    let ids = op.pos_ids.as_ref().map(|ids| Indices::new(cx, ids)).transpose()?;
    if let (Some(ids), Some(d_pos)) = (&ids, &op.d_pos) {
        let limit = d_pos.size(0);
        if let Some(index) = ids.iter().find(|&id| id < 0 || id as usize >= limit) {
            let (what, index) = ("pos_ids", index.into());
            return Err(KernelError::Index { op: PatchEmbedGrad::NAME, what, index, limit });
        }
    }
    if patches == 0 || d == 0 {
        return Ok(());
    }
    if let Some(d_w) = &op.d_w {
        let cutter = Cutter::new(cx, &op.pixels, op.mean, op.std, op.patch)?;
        let d_out = input(&op.d_out, cx)?;
        // SAFETY: the view of the gradient lives as long as the op.
        let matrix = unsafe { Dense::new(d_out) };
        let turned = Turned { isa: cx.isa, lanes: cx.isa.run(Lanes), matrix };
        let before = input(d_w, cx)?;
        let args = GemmArgs {
            m: d,
            k: patches,
            // Not read: `turned` makes the rows.
            x: Operand { dtype: DType::F32, ..d_out },
            rows: Some(&turned),
            parts: &[Part { rows: d_w.size(1), source: &Columns(&cutter), bias: None }],
            act: Activation::None,
            gated: false,
            residual: Some(before),
            residual_row: ResidualRow::Same,
            out: output(d_w, cx)?,
        };
        // SAFETY: `spec` checked the sizes of all operands and that `d_w` overlaps none of them but itself.
        unsafe { gemm_exact(cx.isa, &cx.pool, &args, TILES) };
    }
    let d_out = InRows::new(cx, &op.d_out)?;
    if let Some(d_bias) = &op.d_bias {
        let mut scratch = Scratch::new();
        let sums = Blocks::new(&mut scratch, patches, d);
        cx.pool.run_ranges(patches, sums.rows, |range, _| sum_rows(cx.isa, &d_out, d, range, sums));
        // SAFETY: a vector is one row, and no thread is at work.
        sums.add_up(cx, 0, d, unsafe { GradRows::new(cx, d_bias, &op.d_out)?.row(0) });
    }
    if let Some(d_pos) = &op.d_pos {
        let (to, per_image) = (GradRows::new(cx, d_pos, &op.d_out)?, op.patches_per_image());
        let place = |patch: usize| ids.as_ref().map_or(patch % per_image, |ids| ids.get(patch) as usize);
        // SAFETY: `spec` checked the shapes and that the gradient shares no memory with the rest; all places are below its rows.
        unsafe { add_rows(cx, d_out, patches, d, 1.0, to, place) };
    }
    Ok(())
}

crate::simd_fn! {
    /// Sums over a block of rows of `d` elements.
    fn sum_rows<S>(s: S, from: &InRows<'_>, d: usize, rows: Range<usize>, sums: Blocks) {
        let to = sums.of(rows.start / sums.rows);
        for at in (0..d).step_by(4 * S::LANES) {
            let lanes = |i: usize| S::LANES.min(d.saturating_sub(at + i * S::LANES));
            let mut all = [s.zero(); 4];
            for row in rows.clone() {
                // SAFETY: the caller vouches for the rows; no lane lies beyond them.
                unsafe {
                    let row = from.row(row);
                    for (i, sum) in all.iter_mut().enumerate() {
                        *sum = s.add(*sum, row.load(s, at + i * S::LANES, lanes(i)));
                    }
                }
            }
            for (i, &sum) in all.iter().enumerate() {
                // SAFETY: blocks have room for `d` sums.
                unsafe { store(s, to.wrapping_add(at + i * S::LANES), sum, lanes(i)) };
            }
        }
    }
}
