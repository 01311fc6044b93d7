//! Gemma 3's connector: blocks of patches are averaged, normalized and projected.
//!
//! After `Gemma3MultiModalProjector` of transformers.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::ops::{Pool, PoolKind, PoolOver};

use crate::layers::{Linear, Norm};
use crate::vision::Connect;

/// Average of blocks, norm and projection.
pub struct Pooled {
    path: String,
    /// Side of a block, in patches.
    block: usize,
    norm: Norm,
    proj: Linear,
}

impl Pooled {
    /// Loads norm and projection, which is stored as `[d_vision, d_text]`.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        block: usize,
        (d_vision, d_text): (usize, usize),
        eps: f32,
    ) -> Result<Self> {
        let scope = scope.role(Role::Connector);
        Ok(Self {
            path: scope.prefix().to_owned(),
            block,
            norm: Norm::rms_offset(cx, &scope.at("mm_soft_emb_norm"), d_vision, eps, 1.0)?,
            proj: Linear::transposed(cx, &scope, "mm_input_projection_weight", d_text, d_vision)?,
        })
    }
}

impl Connect for Pooled {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        super::blocks(grid, self.block)
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        let mean = cx.alloc(&[out.size(0), x.size(1)], cx.dtype())?;
        let (grid_h, grid_w) = grid;
        let over = PoolOver::Grid { grid_h, grid_w, block_h: self.block, block_w: self.block };
        let op = Pool { x: cx.view(x)?, over, kind: PoolKind::Mean, out: cx.view(&mean)? };
        cx.exec(&self.path, &op)?;
        self.norm.write_to(cx, &mean, &mean)?;
        self.proj.write_to(cx, &mean, out)
    }
}
