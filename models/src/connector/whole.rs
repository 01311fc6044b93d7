//! The rows of a tower as they are.

use ocelli_engine::{Ctx, Result, Tensor};

use crate::layers::copy_rows;
use crate::vision::{Connect, VitPlan};

/// Nothing between tower and decoder: all rows of the tower, those before the patches included.
#[derive(Clone, Copy, Debug)]
pub struct Whole {
    extra: usize,
}

impl Whole {
    /// For the rows of a tower.
    #[must_use]
    pub fn of(tower: &VitPlan) -> Self {
        Self { extra: tower.extra_rows() }
    }
}

impl Connect for Whole {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        Ok(self.extra + grid.0 * grid.1)
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, _: (usize, usize), out: &Tensor) -> Result<()> {
        copy_rows(cx, "features", x, out)
    }
}
