//! Joins blocks of `factor x factor` patches into one token of `factor^2` times the features (pixel shuffle).
//!
//! Patch `(r, c)` of a picture goes to token `(r / factor, c / factor)`, block `order(r % factor, c % factor)`.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod grad;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

pub use self::grad::{MergePatchesGrad, MergePatchesGradSpec};
use super::check;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// Which place within a token's features a patch of the block takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeOrder {
    /// `dy * factor + dx` (Idefics3, SmolVLM, LLaVA-type unfold).
    #[default]
    RowFirst,
    /// `dx * factor + dy` (InternVL).
    ColumnFirst,
}

/// `x: [images * grid_h * grid_w, d]  ->  out: [images * (grid_h / factor) * (grid_w / factor), factor^2 * d]`.
#[derive(Clone, Debug)]
pub struct MergePatches {
    /// Patches `[images * grid_h * grid_w, d]`, row by row within a picture.
    pub x: View,
    /// Rows of patches in a picture, a multiple of `factor`.
    pub grid_h: usize,
    /// Columns of patches in a picture, a multiple of `factor`.
    pub grid_w: usize,
    /// Height and width of a block.
    pub factor: usize,
    /// Order within the block.
    pub order: MergeOrder,
    /// Result.
    pub out: View,
}

/// The key of a [`MergePatches`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct MergePatchesSpec {
    /// Pictures, bucketed.
    pub images: u32,
    /// Rows of patches.
    pub grid_h: u32,
    /// Columns of patches.
    pub grid_w: u32,
    /// Height and width of a block.
    pub factor: u32,
    /// Features of a patch.
    pub d: u32,
    /// Order within the block.
    pub order: MergeOrder,
    /// Type of the patches.
    pub x: DType,
    /// Type of the result.
    pub out: DType,
}

/// Checks that patches `[patches, d]` are whole pictures of whole blocks, and counts the pictures.
fn check_grid(
    name: &str,
    patches: &View,
    grid_h: usize,
    grid_w: usize,
    factor: usize,
) -> Result<usize, ShapeError> {
    let grid = grid_h * grid_w;
    if grid == 0 || factor == 0 || !grid_h.is_multiple_of(factor) || !grid_w.is_multiple_of(factor) {
        return Err(ShapeError::mismatch(
            "grid",
            format!("multiples of {factor}"),
            format!("{grid_h} x {grid_w}"),
        ));
    }
    if !patches.size(0).is_multiple_of(grid) {
        return Err(ShapeError::mismatch(
            &format!("{name} axis 0"),
            format!("a multiple of {grid_h} * {grid_w}"),
            patches.size(0),
        ));
    }
    Ok(patches.size(0) / grid)
}

impl Op for MergePatches {
    const NAME: &'static str = "merge_patches";
    type Spec = MergePatchesSpec;

    fn spec(&self) -> Result<MergePatchesSpec, ShapeError> {
        let Self { x, grid_h, grid_w, factor, out, .. } = self;
        check::rank("x", x, 2)?;
        check::float("x", x)?;
        check::float("out", out)?;
        let images = check_grid("x", x, *grid_h, *grid_w, *factor)?;
        let block = factor * factor;
        check::shape("out", out, &[x.size(0) / block, x.size(1) * block])?;
        check::output("out", out, [("x", x)])?;
        Ok(MergePatchesSpec {
            images: bucket(images),
            grid_h: *grid_h as u32,
            grid_w: *grid_w as u32,
            factor: *factor as u32,
            d: x.size(1) as u32,
            order: self.order,
            x: x.dtype(),
            out: out.dtype(),
        })
    }

    fn cost(&self) -> Cost {
        Cost { flops: 0, read: self.x.bytes(), written: self.out.bytes() }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        visit(Access::Out, &mut self.out);
    }

    fn of_spec(spec: &MergePatchesSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (images, d, factor) = (spec.images as usize, spec.d as usize, spec.factor as usize);
        let patches = images * (spec.grid_h * spec.grid_w) as usize;
        Ok(MergePatches {
            x: operands.activations(&[patches, d], spec.x)?,
            grid_h: spec.grid_h as usize,
            grid_w: spec.grid_w as usize,
            factor,
            order: spec.order,
            out: operands.output(&[patches / (factor * factor).max(1), factor * factor * d], spec.out)?,
        })
    }

    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError> {
        reference::reference(self, io)
    }

    #[cfg(feature = "conformance")]
    fn cases(cx: &mut crate::conformance::CaseCx) -> Vec<crate::conformance::Case<Self>> {
        cases::cases(cx)
    }
}
