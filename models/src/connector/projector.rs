//! Two layers on each patch, or on each block of patches.
//!
//! After `LlavaMultiModalProjector` of transformers and its relatives.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::Weights;
use ocelli_kernels::ops::{Activation, GatherRows, MergeOrder, MergePatches, Pointwise};

use crate::layers::{Linear, Norm};
use crate::vision::Connect;

/// What differs between projectors.
#[derive(Clone, Copy, Debug)]
pub struct ProjectorPlan {
    /// Features of a patch.
    pub d_vision: usize,
    /// Features of a token.
    pub d_text: usize,
    /// Features between the layers.
    pub between: usize,
    /// Activation between the layers.
    pub act: Activation,
    /// Whether it follows the second layer too.
    pub act_after: bool,
    /// Whether the second half of what the first layer gives is the gate of the first half.
    pub gated: bool,
    /// Whether the layers have biases.
    pub bias: bool,
    /// Rows before the patches of a tile, and whether they are kept.
    pub extra: (usize, bool),
    /// Side of the blocks of patches that become one token.
    pub block: usize,
    /// Name and epsilon of the norm of blocks, if there is one.
    pub norm: Option<(&'static str, f32)>,
    /// Names of the layers.
    pub names: [&'static str; 2],
}

impl ProjectorPlan {
    /// LLaVA's: a token for each patch.
    #[must_use]
    pub fn plain(
        (d_vision, d_text): (usize, usize),
        act: Activation,
        bias: bool,
        extra: (usize, bool),
    ) -> Self {
        Self {
            d_vision,
            d_text,
            between: d_text,
            act,
            act_after: false,
            gated: false,
            bias,
            extra,
            block: 1,
            norm: None,
            names: ["linear_1", "linear_2"],
        }
    }
}

/// Two linear layers with an activation between.
pub struct Projector {
    plan: ProjectorPlan,
    path: String,
    norm: Option<Norm>,
    first: Linear,
    second: Linear,
    /// Ends a line of features.
    newline: Option<Tensor>,
}

impl Projector {
    /// Loads the layers below `scope`, and the norm before them.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: ProjectorPlan) -> Result<Self> {
        let scope = scope.role(Role::Connector);
        let ProjectorPlan { d_text, between, bias, .. } = plan;
        let k = plan.d_vision * plan.block * plan.block;
        let halves = if plan.gated { between / 2 } else { between };
        let norm = plan.norm.map(|(name, eps)| Norm::layer(cx, &scope.at(name), k, eps)).transpose()?;
        Ok(Self {
            path: scope.prefix().to_owned(),
            norm,
            first: Linear::load(cx, &scope.at(plan.names[0]), between, k, bias)?,
            second: Linear::load(cx, &scope.at(plan.names[1]), d_text, halves, bias)?,
            plan,
            newline: None,
        })
    }

    /// Takes the row `[d_text]` under `name` at `scope` for the end of a line of features.
    pub fn with_newline(self, cx: &mut Ctx, scope: &Scope<'_>, name: &str) -> Result<Self> {
        let row = scope.role(Role::Connector).take(name, &[self.plan.d_text])?;
        let row = cx.stream().place_view(&row)?.reshape(&[1, self.plan.d_text])?;
        Ok(Self { newline: Some(Tensor::owned(row)), ..self })
    }

    /// Rows of a tile that are kept before its patches, and those that are not.
    fn kept(&self) -> (usize, usize) {
        let (extra, keeps) = self.plan.extra;
        if keeps { (extra, 0) } else { (0, extra) }
    }

    /// The rows of tiles without those before their patches.
    fn patches(&self, cx: &mut Ctx, x: &Tensor, skip: usize, per_tile: usize) -> Result<Tensor> {
        let of_tile = |tile: usize| (skip..per_tile).map(move |row| (tile * per_tile + row) as i32);
        let ids: Vec<i32> = (0..x.size(0) / per_tile).flat_map(of_tile).collect();
        let ids = cx.upload(&[ids.len()], &ids)?;
        let kept = cx.alloc(&[ids.size(0), x.size(1)], cx.dtype())?;
        let table = Weights::dense(cx.view(x)?, None)?;
        let op = GatherRows { table, ids: cx.view(&ids)?, scale: 1.0, out: cx.view(&kept)? };
        cx.exec(&self.path, &op)?;
        Ok(kept)
    }

    /// Blocks of patches side by side in one row.
    fn merge(&self, cx: &mut Ctx, x: &Tensor, (grid_h, grid_w): (usize, usize)) -> Result<Tensor> {
        let (factor, area) = (self.plan.block, self.plan.block * self.plan.block);
        let out = cx.alloc(&[x.size(0) / area, x.size(1) * area], cx.dtype())?;
        let order = MergeOrder::RowFirst;
        let op = MergePatches { x: cx.view(x)?, grid_h, grid_w, factor, order, out: cx.view(&out)? };
        cx.exec(&self.path, &op)?;
        Ok(out)
    }
}

impl Connect for Projector {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        Ok(self.kept().0 + super::blocks(grid, self.plan.block)?)
    }

    fn newline(&self) -> Option<&Tensor> {
        self.newline.as_ref()
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        let (keep, skip) = self.kept();
        let per_tile = keep + skip + grid.0 * grid.1;
        if per_tile == 0 || !x.size(0).is_multiple_of(per_tile) {
            return Err(Error::Request(format!(
                "{}: expected {per_tile} rows a tile, found {}",
                self.path,
                x.size(0)
            )));
        }
        let mut x = if skip == 0 { x.clone() } else { self.patches(cx, x, skip, per_tile)? };
        if self.plan.block > 1 {
            x = self.merge(cx, &x, grid)?;
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(cx, &x)?;
        }
        let hidden = if self.plan.gated {
            let both = self.first.forward(cx, &x)?;
            let half = self.plan.between / 2;
            let hidden = cx.alloc(&[x.size(0), half], cx.dtype())?;
            let (up, gate) = (both.narrow(1, 0, half)?, both.narrow(1, half, half)?);
            let op = Pointwise {
                act: self.plan.act,
                by: Some(cx.view(&up)?),
                ..Pointwise::new(cx.view(&gate)?, cx.view(&hidden)?)
            };
            cx.exec(&self.path, &op)?;
            hidden
        } else {
            self.first.forward_act(cx, &x, self.plan.act)?
        };
        if self.plan.act_after {
            let rows = self.second.forward_act(cx, &hidden, self.plan.act)?;
            return cx.exec(&self.path, &Pointwise::new(cx.view(&rows)?, cx.view(out)?));
        }
        self.second.write_to(cx, &hidden, out)
    }
}
