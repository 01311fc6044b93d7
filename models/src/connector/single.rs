//! One linear layer on each patch.
//!
//! After `PaliGemmaMultiModalProjector` of transformers.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Result, Tensor};

use crate::layers::Linear;
use crate::vision::Connect;

/// A projection.
pub struct Single {
    proj: Linear,
}

impl Single {
    /// Loads the projection `[d_text, d_vision]` at `scope`.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        (d_vision, d_text): (usize, usize),
        bias: bool,
    ) -> Result<Self> {
        Ok(Self { proj: Linear::load(cx, &scope.role(Role::Connector), d_text, d_vision, bias)? })
    }
}

impl Connect for Single {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        Ok(grid.0 * grid.1)
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, _: (usize, usize), out: &Tensor) -> Result<()> {
        self.proj.write_to(cx, x, out)
    }
}
