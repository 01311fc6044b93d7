//! Gemma 4's connector: blocks of patches are averaged, scaled, standardized, normalized and projected.
//!
//! After `Gemma4VisionPooler` and `Gemma4MultimodalEmbedder` of transformers.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Result, Stage, Tensor};
use ocelli_kernels::ops::{MixRows, Pointwise, Pool, PoolKind, PoolOver};
use ocelli_kernels::{DType, View};

use crate::layers::{Linear, Norm};
use crate::vision::Connect;

/// What is taken from each feature, and the factor of the rest.
struct Standard {
    factor: View,
    /// f32 `[1, d_vision]`: what is added after the factor, in place of what is taken before.
    shift: Tensor,
}

/// Average of blocks, norm and projection.
pub struct Averaged {
    path: String,
    /// Side of a block, in patches.
    block: usize,
    scale: f32,
    standard: Option<Standard>,
    norm: Norm,
    proj: Linear,
}

impl Averaged {
    /// Loads the tower's mean and scale below `tower` if it has such, and the projection below `scope`.
    pub fn load(
        cx: &mut Ctx,
        (tower, scope): (&Scope<'_>, &Scope<'_>),
        block: usize,
        (d_vision, d_text): (usize, usize),
        eps: f32,
        standardize: bool,
    ) -> Result<Self> {
        let scope = scope.role(Role::Connector);
        let standard = if standardize { Some(Standard::load(cx, tower, d_vision)?) } else { None };
        Ok(Self {
            path: scope.prefix().to_owned(),
            block,
            scale: (d_vision as f32).sqrt(),
            standard,
            norm: Norm::bare(cx, scope.prefix(), d_vision, eps)?,
            proj: Linear::load(cx, &scope.at("embedding_projection"), d_text, d_vision, false)?,
        })
    }
}

impl Standard {
    fn load(cx: &mut Ctx, scope: &Scope<'_>, d: usize) -> Result<Self> {
        let factor = scope.role(Role::Tower).take("std_scale", &[d])?;
        scope.role(Role::Tower).take("std_bias", &[d])?;
        let floats = |name: &str| scope.checkpoint().floats(&scope.path(name));
        let pairs = floats("std_bias")?.into_iter().zip(floats("std_scale")?);
        let shift: Vec<u8> = pairs.flat_map(|(bias, scale)| (-bias * scale).to_le_bytes()).collect();
        let table = cx.alloc_owned(&[1, d], DType::F32)?;
        cx.stream().write(table.view(), &shift)?;
        Ok(Self { factor: cx.stream().place_view(&factor)?, shift: table })
    }
}

impl Connect for Averaged {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        super::blocks(grid, self.block)
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        let (rows, d) = (out.size(0), x.size(1));
        // Scaled means may be beyond 16 bits until they are standardized.
        let mean = cx.alloc(&[rows, d], DType::F32)?;
        let (grid_h, grid_w) = grid;
        let over = PoolOver::Grid { grid_h, grid_w, block_h: self.block, block_w: self.block };
        let op = Pool { x: cx.view(x)?, over, kind: PoolKind::Mean, out: cx.view(&mean)? };
        cx.exec(&self.path, &op)?;
        let view = cx.view(&mean)?;
        let col = self.standard.as_ref().map(|standard| standard.factor.clone());
        let op = Pointwise { scale: self.scale, col, ..Pointwise::new(view.clone(), view.clone()) };
        cx.exec(&self.path, &op)?;
        if let Some(standard) = &self.standard {
            let ids = cx.upload(&[rows, 1], &vec![0i32; rows])?;
            let ones = cx.upload(&[rows, 1], &vec![1f32; rows])?;
            let op = MixRows {
                src: cx.view(&standard.shift)?,
                ids: Some(cx.view(&ids)?),
                weights: cx.view(&ones)?,
                add: true,
                out: view,
            };
            cx.exec(&self.path, &op)?;
        }
        cx.stage(Stage::TOWER, &mean)?;
        let normed = cx.alloc(&[rows, d], cx.dtype())?;
        self.norm.write_to(cx, &mean, &normed)?;
        self.proj.write_to(cx, &normed, out)
    }
}
