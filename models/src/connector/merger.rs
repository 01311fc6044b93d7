//! Qwen2.5-VL's merger: the patches of a block, which lie side by side, become one token.
//!
//! After `Qwen2_5_VLPatchMerger` of transformers.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::ops::{Activation, ScatterRows};

use crate::layers::{Linear, Norm};
use crate::vision::{Connect, Layout};

/// Norm and two layers on blocks of patches; blocks come in the order of windows and leave row by row.
pub struct Merger {
    path: String,
    /// Side of a block, in patches.
    block: usize,
    /// Side of a window, in blocks.
    window: usize,
    norm: Norm,
    first: Linear,
    second: Linear,
}

impl Merger {
    /// Loads the norm `[d]` and the layers `[d block^2, d block^2]` and `[d_text, d block^2]`.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        (block, window): (usize, usize),
        (d_vision, d_text): (usize, usize),
        eps: f32,
    ) -> Result<Self> {
        let scope = scope.role(Role::Connector);
        let merged = block * block * d_vision;
        Ok(Self {
            path: scope.prefix().to_owned(),
            block,
            window,
            norm: Norm::rms(cx, &scope.at("ln_q"), d_vision, eps)?,
            first: Linear::load(cx, &scope.at("mlp.0"), merged, merged, true)?,
            second: Linear::load(cx, &scope.at("mlp.2"), d_text, merged, true)?,
        })
    }
}

/// Blocks of `rows x cols` in the order of windows of `side x side`, and the number of blocks in each window.
fn windows(rows: usize, cols: usize, side: usize) -> (Vec<usize>, Vec<usize>) {
    let (mut order, mut sizes) = (Vec::with_capacity(rows * cols), Vec::new());
    for top in (0..rows).step_by(side) {
        for left in (0..cols).step_by(side) {
            let before = order.len();
            for row in top..rows.min(top + side) {
                order.extend((left..cols.min(left + side)).map(|col| row * cols + col));
            }
            sizes.push(order.len() - before);
        }
    }
    (order, sizes)
}

/// Patches of a grid, block by block of `block x block` in the order of windows of `window x window` blocks.
fn layout(grid: (usize, usize), block: usize, window: usize) -> Layout {
    let across = grid.1 / block;
    let (blocks, sizes) = windows(grid.0 / block, across, window);
    let patches = blocks.iter().flat_map(|at| {
        let (top, left) = (at / across * block, at % across * block);
        (0..block).flat_map(move |row| (0..block).map(move |col| (top + row) * grid.1 + left + col))
    });
    let order = patches.collect();
    let ends = sizes.iter().scan(0, |end, size| {
        *end += size * block * block;
        Some(*end)
    });
    Layout { order, windows: std::iter::once(0).chain(ends).collect() }
}

impl Connect for Merger {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        super::blocks(grid, self.block)
    }

    fn layout(&self, grid: (usize, usize)) -> Option<Layout> {
        Some(layout(grid, self.block, self.window))
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        let normed = self.norm.forward(cx, x)?;
        let per_block = self.block * self.block;
        let merged = normed.reshape(&[x.size(0) / per_block, x.size(1) * per_block])?;
        let hidden = self.first.forward_act(cx, &merged, Activation::GeluErf)?;
        let tokens = self.second.forward(cx, &hidden)?;
        let (order, _) = windows(grid.0 / self.block, grid.1 / self.block, self.window);
        let blocks = order.len().max(1);
        let of_tile = |tile: usize| order.iter().map(move |block| (tile * blocks + block) as i32);
        let rows: Vec<i32> = (0..tokens.size(0) / blocks).flat_map(of_tile).collect();
        let rows = cx.upload(&[rows.len()], &rows)?;
        cx.exec(
            &self.path,
            &ScatterRows { src: cx.view(&tokens)?, rows: cx.view(&rows)?, out: cx.view(out)? },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 6 x 10 patches in blocks of 2 and windows of 2 blocks: 3 x 5 blocks, windows of 4, 4, 2, 2, 2 and 1.
    #[test]
    fn blocks_in_the_order_of_windows() {
        let (order, sizes) = windows(3, 5, 2);
        assert_eq!(sizes, [4, 4, 2, 2, 2, 1]);
        assert_eq!(order, [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]);
        let layout = layout((6, 10), 2, 2);
        assert_eq!(layout.windows, [0, 16, 32, 40, 48, 56, 60]);
        assert_eq!(layout.order[..8], [0, 1, 10, 11, 2, 3, 12, 13]);
        let mut all = layout.order;
        all.sort_unstable();
        assert_eq!(all, (0..60).collect::<Vec<_>>());
    }
}
