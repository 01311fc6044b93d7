//! Mistral 3's connector: norm, blocks of patches merged into one of the same width, two layers.
//!
//! After `Mistral3MultiModalProjector` of transformers.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::ops::{MergeOrder, MergePatches};

use super::{Projector, ProjectorPlan};
use crate::layers::{Linear, Norm};
use crate::vision::Connect;

/// Norm, merge and projector.
pub struct Unfold {
    path: String,
    /// Side of a block, in patches.
    block: usize,
    norm: Norm,
    merge: Linear,
    project: Projector,
}

impl Unfold {
    /// Loads norm, merging layer `[d, d block^2]` and the projector of `plan`. Within a merged row of the file features come before
    /// places of a block; here it is the other way around, as rows of patches lie side by side.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        block: usize,
        eps: f32,
        plan: ProjectorPlan,
    ) -> Result<Self> {
        let scope = scope.role(Role::Connector);
        let (d, area) = (plan.d_vision, block * block);
        let from = |at: usize| at % d * area + at / d;
        Ok(Self {
            path: scope.prefix().to_owned(),
            block,
            norm: Norm::rms(cx, &scope.at("norm"), d, eps)?,
            merge: Linear::reordered(cx, &scope.at("patch_merger.merging_layer"), d, d * area, from)?,
            project: Projector::load(cx, &scope, plan)?,
        })
    }
}

impl Connect for Unfold {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        super::blocks(grid, self.block)
    }

    fn connect(
        &self,
        cx: &mut Ctx,
        x: &Tensor,
        (grid_h, grid_w): (usize, usize),
        out: &Tensor,
    ) -> Result<()> {
        let (factor, area) = (self.block, self.block * self.block);
        let x = self.norm.forward(cx, x)?;
        let blocks = cx.alloc(&[x.size(0) / area, x.size(1) * area], cx.dtype())?;
        let order = MergeOrder::RowFirst;
        let op = MergePatches { x: cx.view(&x)?, grid_h, grid_w, factor, order, out: cx.view(&blocks)? };
        cx.exec(&self.path, &op)?;
        let merged = self.merge.forward(cx, &blocks)?;
        self.project.connect(cx, &merged, (grid_h / factor, grid_w / factor), out)
    }
}
