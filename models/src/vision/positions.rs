//! Tables of position embeddings for pictures of any size.

use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::DType;

use crate::layers::Linear;

/// A table of `side x side` position embeddings that is resized to the grid of a picture: bilinear, with a triangle that widens
/// where the grid is smaller, as `interpolate(antialias=True)` of torch does.
pub struct ResizedTable {
    /// The table as a matrix that weights of its rows are multiplied with.
    table: Linear,
    side: usize,
    d: usize,
}

impl ResizedTable {
    /// Loads the table `weight [side * side, d]`.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, side: usize, d: usize) -> Result<Self> {
        Ok(Self { table: Linear::transposed(cx, scope, "weight", d, side * side)?, side, d })
    }

    /// The embeddings of a grid, f32 `[rows * cols, d]`.
    pub fn of(&self, cx: &mut Ctx, grid: (usize, usize)) -> Result<Tensor> {
        let side = self.side;
        let (down, across) = (weights(side, grid.0), weights(side, grid.1));
        let patches = grid.0 * grid.1;
        let mut shares = vec![0f32; patches * side * side];
        for (patch, shares) in shares.chunks_exact_mut(side * side).enumerate() {
            let (down, across) = (&down[patch / grid.1], &across[patch % grid.1]);
            for (row, line) in shares.chunks_exact_mut(side).enumerate() {
                line.iter_mut().zip(across).for_each(|(share, col)| *share = down[row] * col);
            }
        }
        let out = cx.alloc(&[patches, self.d], DType::F32)?;
        let shares = cx.upload(&[patches, side * side], &shares)?;
        self.table.write_to(cx, &shares, &out)?;
        Ok(out)
    }
}

/// Shares of each of `from` values in each of `to` values.
fn weights(from: usize, to: usize) -> Vec<Vec<f32>> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    let of = |i: usize| {
        let centre = scale * (i as f64 + 0.5);
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let mut shares = vec![0.0; from];
        for (j, share) in shares.iter_mut().enumerate().take(end).skip(first) {
            *share = (1.0 - ((j as f64 - centre + 0.5) / support).abs()).max(0.0);
        }
        let sum: f64 = shares.iter().sum();
        shares.into_iter().map(|share| (share / sum) as f32).collect()
    };
    (0..to).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::weights;

    #[test]
    fn shares_of_a_resized_line() {
        assert_eq!(weights(3, 3), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
        // Larger: between neighbours, at the ends the outermost.
        assert_eq!(weights(2, 4), [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]);
        // Smaller: a triangle over four.
        let half = weights(4, 2);
        let want = [3.0 / 7.0, 3.0 / 7.0, 1.0 / 7.0, 0.0];
        assert!(half[0].iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{half:?}");
        let turned: Vec<f32> = half[0].iter().rev().copied().collect();
        assert_eq!(half[1], turned);
    }
}
