//! Idefics3's connector: blocks of patches become one token, which is projected to the decoder's width.
//!
//! After `Idefics3Connector` of transformers.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::ops::{MergeOrder, MergePatches};

use crate::layers::Linear;
use crate::vision::Connect;

/// Pixel shuffle and projection.
pub struct PixelShuffle {
    path: String,
    factor: usize,
    proj: Linear,
}

impl PixelShuffle {
    /// Loads the projection `[d_text, factor^2 * d_vision]`.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        factor: usize,
        d_vision: usize,
        d_text: usize,
    ) -> Result<Self> {
        let scope = scope.role(Role::Connector);
        let proj = scope.at("modality_projection.proj");
        let proj = Linear::load(cx, &proj, d_text, factor * factor * d_vision, false)?;
        Ok(Self { path: scope.prefix().to_owned(), factor, proj })
    }
}

impl Connect for PixelShuffle {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        super::blocks(grid, self.factor)
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        let block = self.factor * self.factor;
        let merged = cx.alloc(&[x.size(0) / block, x.size(1) * block], cx.dtype())?;
        let op = MergePatches {
            x: cx.view(x)?,
            grid_h: grid.0,
            grid_w: grid.1,
            factor: self.factor,
            order: MergeOrder::RowFirst,
            out: cx.view(&merged)?,
        };
        cx.exec(&self.path, &op)?;
        self.proj.write_to(cx, &merged, out)
    }
}
