//! A connector behind a tower that halves its grid.

use ocelli_engine::{Ctx, Result, Tensor};

use super::Projector;
use crate::vision::{Connect, Layout};

/// Blocks of patches side by side on the way into the tower, where each of 2 x 2 becomes one row; what comes out is projected.
pub struct Halved(pub Projector);

impl Connect for Halved {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        super::blocks(grid, 2)?;
        self.0.rows((grid.0 / 2, grid.1 / 2))
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        self.0.connect(cx, x, (grid.0 / 2, grid.1 / 2), out)
    }

    fn layout(&self, (rows, cols): (usize, usize)) -> Option<Layout> {
        let blocks = (0..rows / 2).flat_map(|row| (0..cols / 2).map(move |col| 2 * row * cols + 2 * col));
        let order = blocks.flat_map(|first| [first, first + 1, first + cols, first + cols + 1]).collect();
        Some(Layout { order, windows: Vec::new() })
    }
}
