//! Factors of what a layer adds to its input.

use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::View;
use ocelli_kernels::ops::Pointwise;

/// A factor of each feature.
#[derive(Clone, Debug)]
pub struct LayerScale {
    path: String,
    factors: View,
}

impl LayerScale {
    /// Loads the factors `[d]` under `name` at `scope`.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, name: &str, d: usize) -> Result<Self> {
        let factors = cx.stream().place_view(&scope.take(name, &[d])?)?;
        Ok(Self { path: scope.path(name), factors })
    }

    /// The same where the file has them as `[d, 1, 1]`.
    pub fn of_channels(cx: &mut Ctx, scope: &Scope<'_>, name: &str, d: usize) -> Result<Self> {
        let factors = cx.stream().place_view(&scope.take(name, &[d, 1, 1])?.reshape(&[d])?)?;
        Ok(Self { path: scope.path(name), factors })
    }

    /// `h += factors * x`, in place; `x: [rows, d]`.
    pub fn add_to(&self, cx: &mut Ctx, x: &Tensor, h: &Tensor) -> Result<()> {
        let h = cx.view(h)?;
        let op = Pointwise {
            col: Some(self.factors.clone()),
            add: Some(h.clone()),
            ..Pointwise::new(cx.view(x)?, h)
        };
        cx.exec(&self.path, &op)
    }
}
