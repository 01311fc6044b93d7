//! Two layers with an activation after each, on blocks of patches, which are what the reference calls the tower's result; and one that
//! makes tokens of it.
//!
//! After `Llama4VisionPixelShuffleMLP` and `Llama4MultiModalProjector` of transformers.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Result, Stage, Tensor};

use super::{Projector, ProjectorPlan};
use crate::layers::Linear;
use crate::vision::Connect;

/// The adapter and the layer after it.
pub struct Adapter {
    adapter: Projector,
    d: usize,
    out: Linear,
}

impl Adapter {
    /// Loads the adapter at `adapter`, whose result has the plan's `d_text` features, and the layer after it, `[d_text, d]`, at `out`.
    pub fn load(
        cx: &mut Ctx,
        adapter: &Scope<'_>,
        plan: ProjectorPlan,
        out: &Scope<'_>,
        d_text: usize,
    ) -> Result<Self> {
        let d = plan.d_text;
        let out = Linear::load(cx, &out.role(Role::Connector), d_text, d, false)?;
        Ok(Self { adapter: Projector::load(cx, adapter, plan)?, d, out })
    }
}

impl Connect for Adapter {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        self.adapter.rows(grid)
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        let rows = cx.alloc(&[out.size(0), self.d], cx.dtype())?;
        self.adapter.connect(cx, x, grid, &rows)?;
        cx.stage(Stage::TOWER, &rows)?;
        self.out.write_to(cx, &rows, out)
    }
}
