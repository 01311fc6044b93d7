//! CPU kernels.
//!
//! A matrix product whose left side does not exist: patches are cut out of the pixels where the product packs a block of
//! rows, and normalized on the way through a table of the 256 grey levels. Bias and position embedding are added while the
//! results are in cache.

use super::{PatchEmbed, patches_of_image, size_of};
use crate::buffer::View;
use crate::cpu::CpuCx;
use crate::cpu::gemm::{GemmArgs, Operand, ResidualRow, RowSource, gemm_exact};
use crate::cpu::{CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::Activation;
use crate::ops::index::Indices;
use crate::ops::matmul::cpu::args::{input, output, with_parts};
use crate::ops::matmul::cpu::reject_tiles;
use crate::select::Variant;
use crate::spec::{DType, KernelError};

impl CpuOp for PatchEmbed {
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

#[derive(Clone, Copy)]
enum Pixels {
    Bytes(*const u8),
    Floats(*const f32),
}

/// Cuts patches out of pictures: row `p` is patch `p`, channel outermost, then line.
pub(super) struct Cutter {
    pixels: Pixels,
    /// Normalized value of each grey level of each channel.
    levels: [[f32; 256]; 3],
    height: usize,
    width: usize,
    patch: usize,
    per_image: usize,
}

// SAFETY: a pointer into memory that the op's view keeps alive and that is only read.
unsafe impl Sync for Cutter {}

impl Cutter {
    /// Of pictures, which the view is to keep alive; bytes are normalized with the mean and standard deviation of their channel.
    pub(super) fn new(
        cx: &CpuCx,
        view: &View,
        mean: [f32; 3],
        std: [f32; 3],
        patch: usize,
    ) -> Result<Self, KernelError> {
        let pixels = match view.dtype() {
            DType::U8 => Pixels::Bytes(cx.input(view)?),
            _ => Pixels::Floats(cx.input(view)?),
        };
        let levels = std::array::from_fn(|c| std::array::from_fn(|level| (level as f32 - mean[c]) / std[c]));
        let (_, height, width) = size_of(view);
        Ok(Self { pixels, levels, height, width, patch, per_image: patches_of_image(view, patch) })
    }

    /// Writes part of one line of a patch: channel `c`, row `y`, columns from `x` on of picture `image`.
    ///
    /// # Safety
    /// They are within the picture.
    #[inline]
    unsafe fn line(&self, image: usize, c: usize, y: usize, x: usize, to: &mut [f32]) {
        // SAFETY: as the caller vouches; pixels are dense.
        unsafe {
            match self.pixels {
                Pixels::Bytes(base) => {
                    let from = base.add(((image * self.height + y) * self.width + x) * 3 + c);
                    let levels = &self.levels[c];
                    for (i, to) in to.iter_mut().enumerate() {
                        *to = levels[usize::from(*from.add(3 * i))];
                    }
                }
                Pixels::Floats(base) => {
                    let from = base.add(((image * 3 + c) * self.height + y) * self.width + x);
                    from.copy_to_nonoverlapping(to.as_mut_ptr(), to.len());
                }
            }
        }
    }
}

impl RowSource for Cutter {
    unsafe fn pack(&self, row: usize, rows: usize, col: usize, n: usize, to: *mut f32, stride: usize) {
        let (patch, across) = (self.patch, self.width / self.patch);
        for i in 0..rows {
            let (image, place) = ((row + i) / self.per_image, (row + i) % self.per_image);
            let (top, left) = (place / across * patch, place % across * patch);
            // SAFETY: the row of `to` is writable for `n` values, as the caller vouches.
            let to = unsafe { std::slice::from_raw_parts_mut(to.add(i * stride), n) };
            let mut done = 0;
            while done < n {
                let (line, x) = ((col + done) / patch, (col + done) % patch);
                let len = (patch - x).min(n - done);
                let (c, y) = (line / patch, line % patch);
                // SAFETY: `per_image` counts whole patches, and `col + n` is within one.
                unsafe { self.line(image, c, top + y, left + x, &mut to[done..done + len]) };
                done += len;
            }
        }
    }
}

/// The position embeddings as a residual, and which of its rows each patch takes.
fn positions(op: &PatchEmbed, cx: &CpuCx) -> Result<(Option<Operand>, ResidualRow), KernelError> {
    let Some(table) = &op.pos else { return Ok((None, ResidualRow::Same)) };
    let row = match &op.pos_ids {
        None => ResidualRow::Repeat(op.patches_per_image().max(1)),
        Some(ids) => {
            let limit = table.size(0);
            for index in Indices::new(cx, ids)?.iter() {
                if index < 0 || index as usize >= limit {
                    let (what, index) = ("pos_ids", index.into());
                    return Err(KernelError::Index { op: PatchEmbed::NAME, what, index, limit });
                }
            }
            ResidualRow::At(cx.input(ids)?)
        }
    };
    Ok((Some(input(table, cx)?), row))
}

fn launch<const TILES: bool>(op: &PatchEmbed, cx: &CpuCx) -> Result<(), KernelError> {
    let cutter = Cutter::new(cx, &op.pixels, op.mean, op.std, op.patch)?;
    let (residual, residual_row) = positions(op, cx)?;
    with_parts(&op.w, cx, |parts, _| {
        let args = GemmArgs {
            m: op.out.size(0),
            k: op.w.k(),
            // Not read: the cutter makes the rows.
            x: Operand { ptr: op.pixels.read_bytes_ptr(cx.id)?, dtype: DType::F32, stride: 0 },
            rows: Some(&cutter),
            parts,
            act: Activation::None,
            gated: false,
            residual,
            residual_row,
            out: output(&op.out, cx)?,
        };
        // SAFETY: `spec` checked the sizes of all operands and that `out` overlaps none of them; ids were checked.
        unsafe { gemm_exact(cx.isa, &cx.pool, &args, TILES) }
        Ok(())
    })
}
