//! GLM-4V's connector: a convolution makes one row of each block of patches, and a gated MLP projects it.
//!
//! After `Glm4vVisionModel` and `Glm4vVisionPatchMerger` of transformers.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Result, Stage, Tensor};
use ocelli_kernels::ops::{Activation, Pointwise};
use ocelli_kernels::{DType, Weights};

use super::merger::layout;
use crate::layers::{Linear, Norm, Stacked};
use crate::vision::{Connect, Layout};

/// Added to variances.
const EPS: f32 = 1e-5;

/// Convolution, projection, norm and gated MLP.
pub struct Downsample {
    path: String,
    /// Side of a block, in patches.
    block: usize,
    conv: Linear,
    proj: Linear,
    norm: Norm,
    gate_up: Stacked,
    down: Linear,
    act: Activation,
}

impl Downsample {
    /// Loads `downsample` and `merger` of the tower; `inner` is the width of the MLP.
    pub fn load(
        cx: &mut Ctx,
        visual: &Scope<'_>,
        block: usize,
        (d_vision, d_text): (usize, usize),
        inner: usize,
        act: Activation,
    ) -> Result<Self> {
        let visual = visual.role(Role::Connector);
        let scope = visual.at("merger");
        let gate_up = [(scope.at("gate_proj"), inner), (scope.at("up_proj"), inner)];
        Ok(Self {
            path: scope.prefix().to_owned(),
            block,
            conv: convolution(cx, &visual.at("downsample"), block, d_vision, d_text)?,
            proj: Linear::load(cx, &scope.at("proj"), d_text, d_text, false)?,
            norm: Norm::layer(cx, &scope.at("post_projection_norm"), d_text, EPS)?,
            gate_up: Stacked::load(cx, scope.prefix(), &gate_up, d_text, false)?,
            down: Linear::load(cx, &scope.at("down_proj"), d_text, inner, false)?,
            act,
        })
    }
}

/// The filters `[n, d, block, block]` as a matrix for the patches of a block side by side, `[n, block^2 d]`; turned once, in f32.
fn convolution(cx: &mut Ctx, scope: &Scope<'_>, block: usize, d: usize, n: usize) -> Result<Linear> {
    scope.take("weight", &[n, d, block, block])?;
    let bias = scope.take("bias", &[n])?;
    let stored = scope.checkpoint().floats(&scope.path("weight"))?;
    let (area, k) = (block * block, block * block * d);
    let place = |i: usize| i / k * k + i % d * area + i % k / d;
    let turned: Vec<u8> = (0..n * k).flat_map(|i| stored[place(i)].to_le_bytes()).collect();
    let w = cx.alloc_owned(&[n, k], DType::F32)?;
    cx.stream().write(w.view(), &turned)?;
    let bias = cx.stream().place_view(&bias)?;
    Ok(Linear::tied(scope.prefix(), Weights::dense(w.view().clone(), Some(bias))?))
}

impl Connect for Downsample {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        super::blocks(grid, self.block)
    }

    fn layout(&self, grid: (usize, usize)) -> Option<Layout> {
        Some(layout(grid, self.block, None))
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, _: (usize, usize), out: &Tensor) -> Result<()> {
        let per_block = self.block * self.block;
        let blocks = x.reshape(&[x.size(0) / per_block, x.size(1) * per_block])?;
        let rows = self.conv.forward(cx, &blocks)?;
        cx.stage(Stage::TOWER, &rows)?;
        let hidden = self.proj.forward(cx, &rows)?;
        self.norm.write_to(cx, &hidden, &hidden)?;
        let view = cx.view(&hidden)?;
        let gelu = Pointwise { act: Activation::GeluErf, ..Pointwise::new(view.clone(), view) };
        cx.exec(&self.path, &gelu)?;
        let up = self.gate_up.forward_gated_plain(cx, &hidden, self.act)?;
        self.down.write_to(cx, &up, out)
    }
}
