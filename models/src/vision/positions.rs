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
        let (down, across) = (weights(side, grid.0, &TRIANGLE), weights(side, grid.1, &TRIANGLE));
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

/// A filter: how far it reaches, and its value at a distance.
struct Kernel {
    reach: f64,
    value: fn(f64) -> f64,
}

const TRIANGLE: Kernel = Kernel { reach: 1.0, value: |x| (1.0 - x).max(0.0) };

/// Keys' cubic of -1/2.
const CUBIC: Kernel = Kernel {
    reach: 2.0,
    value: |x| match x {
        ..1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        1.0..2.0 => -0.5 * (((x - 5.0) * x + 8.0) * x - 4.0),
        _ => 0.0,
    },
};

/// Rows of a table `[side * side, d]`, their factors, and how many of them are summed for each place of `grid`: the table resized, bicubic
/// and antialiased.
pub fn cubic_taps(side: usize, grid: (usize, usize)) -> (Vec<i32>, Vec<f32>, usize) {
    let line = |to: usize| -> Vec<Vec<(usize, f32)>> {
        let shares = weights(side, to, &CUBIC).into_iter();
        shares.map(|all| all.into_iter().enumerate().filter(|(_, share)| *share != 0.0).collect()).collect()
    };
    let (down, across) = (line(grid.0), line(grid.1));
    let most = |line: &[Vec<(usize, f32)>]| line.iter().map(Vec::len).max().unwrap_or(1);
    let taps = most(&down) * most(&across);
    let (mut ids, mut factors) = (Vec::new(), Vec::new());
    for (row, col) in down.iter().flat_map(|row| across.iter().map(move |col| (row, col))) {
        let pairs = row.iter().flat_map(|row| col.iter().map(move |col| (row, col)));
        ids.extend(pairs.clone().map(|(row, col)| (row.0 * side + col.0) as i32));
        factors.extend(pairs.map(|(row, col)| row.1 * col.1));
        let end = ids.len().next_multiple_of(taps);
        ids.resize(end, 0);
        factors.resize(end, 0.0);
    }
    (ids, factors, taps)
}

/// Rows of `d` numbers stretched or squeezed to so many, linear between the middles of rows.
pub fn stretched(rows: &[f32], d: usize, to: usize) -> Vec<f32> {
    let from = rows.len() / d.max(1);
    let scale = from as f32 / to as f32;
    let mut out = Vec::with_capacity(to * d);
    for i in 0..to {
        let at = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
        let low = (at as usize).min(from - 1);
        let (high, share) = ((low + 1).min(from - 1), at - low as f32);
        let part = |row: usize| rows[row * d..(row + 1) * d].iter();
        out.extend(part(low).zip(part(high)).map(|(a, b)| a * (1.0 - share) + b * share));
    }
    out
}

/// Shares of each of `from` values in each of `to` values.
fn weights(from: usize, to: usize, kernel: &Kernel) -> Vec<Vec<f32>> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = kernel.reach * stretch;
    let of = |i: usize| {
        let centre = scale * (i as f64 + 0.5);
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let mut shares = vec![0.0; from];
        for (j, share) in shares.iter_mut().enumerate().take(end).skip(first) {
            *share = (kernel.value)(((j as f64 - centre + 0.5) / stretch).abs());
        }
        let sum: f64 = shares.iter().sum();
        shares.into_iter().map(|share| (share / sum) as f32).collect()
    };
    (0..to).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::{TRIANGLE, cubic_taps, stretched};

    fn weights(from: usize, to: usize) -> Vec<Vec<f32>> {
        super::weights(from, to, &TRIANGLE)
    }

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

    #[test]
    fn tables_of_their_own_size_stay_as_they_are() {
        let (ids, factors, taps) = cubic_taps(3, (3, 3));
        assert_eq!((ids, taps), ((0..9).collect(), 1));
        assert_eq!(factors, [1.0; 9]);
        let (_, factors, taps) = cubic_taps(4, (3, 3));
        assert!(factors.chunks(taps).all(|shares| (shares.iter().sum::<f32>() - 1.0).abs() < 1e-5));
    }

    #[test]
    fn rows_in_between() {
        let rows = [0.0, 4.0, 8.0, 12.0];
        assert_eq!(stretched(&rows, 1, 4), rows);
        assert_eq!(stretched(&rows, 1, 2), [2.0, 10.0]);
        assert_eq!(stretched(&rows, 2, 4), [0.0, 4.0, 2.0, 6.0, 6.0, 10.0, 8.0, 12.0]);
    }
}
