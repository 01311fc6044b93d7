//! LLaVA's connector: two layers on each patch.
//!
//! After `LlavaMultiModalProjector` of transformers.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::Weights;
use ocelli_kernels::ops::{Activation, GatherRows};

use crate::layers::Linear;
use crate::vision::Connect;

/// Two linear layers with an activation between.
pub struct Projector {
    path: String,
    first: Linear,
    second: Linear,
    act: Activation,
    /// Rows before the patches of a tile that are left out.
    skip: usize,
    /// Rows before the patches that are kept.
    keep: usize,
}

impl Projector {
    /// Loads the layers `[d_text, d_vision]` and `[d_text, d_text]`. Of `extra` rows before the patches all or none are kept.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        (d_vision, d_text): (usize, usize),
        act: Activation,
        bias: bool,
        (extra, kept): (usize, bool),
    ) -> Result<Self> {
        let scope = scope.role(Role::Connector);
        Ok(Self {
            path: scope.prefix().to_owned(),
            first: Linear::load(cx, &scope.at("linear_1"), d_text, d_vision, bias)?,
            second: Linear::load(cx, &scope.at("linear_2"), d_text, d_text, bias)?,
            act,
            skip: if kept { 0 } else { extra },
            keep: if kept { extra } else { 0 },
        })
    }
}

impl Connect for Projector {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        Ok(self.keep + grid.0 * grid.1)
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        let rows = self.rows(grid)?;
        let per_tile = rows + self.skip;
        if rows == 0 || !x.size(0).is_multiple_of(per_tile) {
            return Err(Error::Request(format!(
                "{}: expected {per_tile} rows a tile, found {}",
                self.path,
                x.size(0)
            )));
        }
        let x = if self.skip == 0 {
            x.clone()
        } else {
            let of_tile = |tile: usize| (self.skip..per_tile).map(move |row| (tile * per_tile + row) as i32);
            let ids: Vec<i32> = (0..x.size(0) / per_tile).flat_map(of_tile).collect();
            let ids = cx.upload(&[ids.len()], &ids)?;
            let kept = cx.alloc(&[ids.size(0), x.size(1)], cx.dtype())?;
            let table = Weights::dense(cx.view(x)?, None)?;
            let op = GatherRows { table, ids: cx.view(&ids)?, scale: 1.0, out: cx.view(&kept)? };
            cx.exec(&self.path, &op)?;
            kept
        };
        let hidden = self.first.forward_act(cx, &x, self.act)?;
        self.second.write_to(cx, &hidden, out)
    }
}
