//! PaddleOCR-VL's connector: patches are normalized, those of a block joined, and two layers project them.
//!
//! After `PaddleOCRProjector` of transformers.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::ops::{Activation, MergeOrder, MergePatches};

use crate::layers::{Linear, Norm};
use crate::vision::Connect;

/// Added to variances.
const EPS: f32 = 1e-5;

/// Norm, blocks and two layers.
pub struct Joined {
    path: String,
    /// Side of a block, in patches.
    block: usize,
    norm: Norm,
    first: Linear,
    second: Linear,
}

impl Joined {
    /// Loads the norm `[d_vision]` and the layers `[block^2 d_vision, block^2 d_vision]` and `[d_text, block^2 d_vision]`.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        block: usize,
        (d_vision, d_text): (usize, usize),
    ) -> Result<Self> {
        let scope = scope.role(Role::Connector);
        let width = block * block * d_vision;
        Ok(Self {
            path: scope.prefix().to_owned(),
            block,
            norm: Norm::layer(cx, &scope.at("pre_norm"), d_vision, EPS)?,
            first: Linear::load(cx, &scope.at("linear_1"), width, width, true)?,
            second: Linear::load(cx, &scope.at("linear_2"), d_text, width, true)?,
        })
    }
}

impl Connect for Joined {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        super::blocks(grid, self.block)
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        let normed = self.norm.forward(cx, x)?;
        let per_block = self.block * self.block;
        let joined = cx.alloc(&[x.size(0) / per_block, x.size(1) * per_block], cx.dtype())?;
        let op = MergePatches {
            x: cx.view(&normed)?,
            grid_h: grid.0,
            grid_w: grid.1,
            factor: self.block,
            order: MergeOrder::RowFirst,
            out: cx.view(&joined)?,
        };
        cx.exec(&self.path, &op)?;
        let hidden = self.first.forward_act(cx, &joined, Activation::GeluErf)?;
        self.second.write_to(cx, &hidden, out)
    }
}
