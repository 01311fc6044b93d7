//! Mergers of Qwen2-VL and its successors: the patches of a block, which lie side by side, become one token.
//!
//! After `PatchMerger`, `Qwen2_5_VLPatchMerger` and `Qwen3VLVisionPatchMerger` of transformers.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::ops::{Activation, NormKind, ScatterRows};

use crate::layers::{Linear, Norm};
use crate::vision::{Connect, Layout};

/// What differs between mergers.
#[derive(Clone, Debug)]
pub struct MergerPlan {
    /// Side of a block, in patches.
    pub block: usize,
    /// Side of a window of the tower, in blocks.
    pub window: Option<usize>,
    /// Kind of the norm.
    pub norm: NormKind,
    /// Added to variances or mean squares.
    pub eps: f32,
    /// Names of the norm and of the two layers.
    pub names: [&'static str; 3],
    /// Layers of the tower, ascending, whose results are merged for the first layers of the decoder.
    pub deep: Vec<usize>,
}

/// Norm and two layers that make one token of a block.
struct Head {
    norm: Norm,
    /// Whether a block is normalized as one row.
    joined: bool,
    first: Linear,
    second: Linear,
}

impl Head {
    fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        plan: &MergerPlan,
        (d_vision, d_text): (usize, usize),
        joined: bool,
    ) -> Result<Self> {
        let [norm, first, second] = plan.names;
        let merged = plan.block * plan.block * d_vision;
        let width = if joined { merged } else { d_vision };
        Ok(Self {
            norm: Norm::load(cx, &scope.at(norm), width, plan.eps, plan.norm)?,
            joined,
            first: Linear::load(cx, &scope.at(first), merged, merged, true)?,
            second: Linear::load(cx, &scope.at(second), d_text, merged, true)?,
        })
    }

    /// `x: [blocks * block^2, d_vision]  ->  out: [blocks, d_text]`.
    fn write_to(&self, cx: &mut Ctx, x: &Tensor, per_block: usize, out: &Tensor) -> Result<()> {
        let merged = [x.size(0) / per_block, x.size(1) * per_block];
        let x = if self.joined {
            self.norm.forward(cx, &x.reshape(&merged)?)?
        } else {
            self.norm.forward(cx, x)?.reshape(&merged)?
        };
        let hidden = self.first.forward_act(cx, &x, Activation::GeluErf)?;
        self.second.write_to(cx, &hidden, out)
    }
}

/// Blocks come in the order of windows and leave row by row.
pub struct Merger {
    path: String,
    plan: MergerPlan,
    head: Head,
    deep: Vec<Head>,
}

impl Merger {
    /// Loads the norms and the layers `[d block^2, d block^2]` and `[d_text, d block^2]` at `merger` of the tower, and one more of each
    /// at `deepstack_merger_list` for each deep layer.
    pub fn load(cx: &mut Ctx, visual: &Scope<'_>, plan: MergerPlan, sizes: (usize, usize)) -> Result<Self> {
        let visual = visual.role(Role::Connector);
        let scope = visual.at("merger");
        let head = Head::load(cx, &scope, &plan, sizes, false)?;
        let mut deep = Vec::with_capacity(plan.deep.len());
        for i in 0..plan.deep.len() {
            deep.push(Head::load(cx, &visual.at("deepstack_merger_list").at(i), &plan, sizes, true)?);
        }
        Ok(Self { path: scope.prefix().to_owned(), plan, head, deep })
    }

    fn merge(&self, cx: &mut Ctx, head: &Head, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        let per_block = self.plan.block * self.plan.block;
        if self.plan.window.is_none() {
            return head.write_to(cx, x, per_block, out);
        }
        let tokens = cx.alloc(out.shape(), cx.dtype())?;
        head.write_to(cx, x, per_block, &tokens)?;
        let (order, _) = windows(grid.0 / self.plan.block, grid.1 / self.plan.block, self.plan.window);
        let blocks = order.len().max(1);
        let of_tile = |tile: usize| order.iter().map(move |block| (tile * blocks + block) as i32);
        let rows: Vec<i32> = (0..tokens.size(0) / blocks).flat_map(of_tile).collect();
        let rows = cx.upload(&[rows.len()], &rows)?;
        let op = ScatterRows { src: cx.view(&tokens)?, rows: cx.view(&rows)?, out: cx.view(out)? };
        cx.exec(&self.path, &op)
    }
}

/// Blocks of `rows x cols` in the order of windows of `side x side`, and the number of blocks in each window; without a side all
/// are in one.
fn windows(rows: usize, cols: usize, side: Option<usize>) -> (Vec<usize>, Vec<usize>) {
    let side = side.unwrap_or(rows.max(cols)).max(1);
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
pub(super) fn layout(grid: (usize, usize), block: usize, window: Option<usize>) -> Layout {
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
        super::blocks(grid, self.plan.block)
    }

    fn layout(&self, grid: (usize, usize)) -> Option<Layout> {
        Some(layout(grid, self.plan.block, self.plan.window))
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        self.merge(cx, &self.head, x, grid, out)
    }

    fn deep(&self) -> &[usize] {
        &self.plan.deep
    }

    fn connect_deep(
        &self,
        cx: &mut Ctx,
        number: usize,
        x: &Tensor,
        grid: (usize, usize),
        out: &Tensor,
    ) -> Result<()> {
        match self.deep.get(number) {
            Some(head) => self.merge(cx, head, x, grid, out),
            None => Err(Error::Request(format!("{}: deep features {number} are missing", self.path))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 6 x 10 patches in blocks of 2 and windows of 2 blocks: 3 x 5 blocks, windows of 4, 4, 2, 2, 2 and 1.
    #[test]
    fn blocks_in_the_order_of_windows() {
        let (order, sizes) = windows(3, 5, Some(2));
        assert_eq!(sizes, [4, 4, 2, 2, 2, 1]);
        assert_eq!(order, [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]);
        let layout = layout((6, 10), 2, Some(2));
        assert_eq!(layout.windows, [0, 16, 32, 40, 48, 56, 60]);
        assert_eq!(layout.order[..8], [0, 1, 10, 11, 2, 3, 12, 13]);
        let mut all = layout.order;
        all.sort_unstable();
        assert_eq!(all, (0..60).collect::<Vec<_>>());
        assert_eq!(windows(3, 5, None), ((0..15).collect(), vec![15]));
    }
}
