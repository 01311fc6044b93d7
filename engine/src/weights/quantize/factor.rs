//! The triangular factor of an inverse, block by block: products of blocks by the kernels that run models, in f32, what lies on the
//! diagonal in f64.
//!
//! With `h` in reverse, rows and columns, `h = L L^T`. `V = L^-T` takes the place of `L` as it is found, so that one matrix is all the memory
//! there is; in reverse it is `U^T` of `h^-1 = U^T U`, `U` upper triangular.

use ocelli_kernels::{KernelError, View};
use rayon::prelude::*;

use super::QuantizeError;
use super::products::Products;

/// Rows and columns of a block.
pub(super) const BLOCK: usize = 128;

/// Told of blocks that are done and of all; it may end the work.
pub(super) type Step<'a> = dyn FnMut(usize, usize) -> Result<(), QuantizeError> + 'a;

/// Bytes that finding the factor of a matrix `[k, k]` takes.
pub(super) const fn bytes(k: usize) -> u64 {
    // The matrix; a panel of columns as it was, what is taken from it, and what becomes of it.
    4 * (k as u64) * (k as u64) + 3 * 4 * (k as u64) * (BLOCK as u64)
}

/// `U^T`, `[k, k]`, its lower triangle; what is above has no meaning. `fill` writes a row of `h`, which is symmetric. `None` where `h` is not
/// positive.
pub(super) fn inverse_factor(
    products: &mut Products,
    k: usize,
    fill: &(dyn Fn(usize, &mut [f32]) + Sync),
    step: &mut Step<'_>,
) -> Result<Option<View>, QuantizeError> {
    let a = products.alloc(&[k, k])?;
    let mut rows = Vec::new();
    for first in (0..k).step_by(BLOCK) {
        let count = BLOCK.min(k - first);
        rows.clear();
        rows.resize(count * k, 0.0);
        rows.par_chunks_mut(k).enumerate().for_each(|(i, row)| {
            fill(k - 1 - first - i, row);
            row.reverse();
        });
        products.write(&a.narrow(0, first, count).map_err(KernelError::from)?, &rows)?;
    }
    drop(rows);
    let blocks = k.div_ceil(BLOCK);
    for number in 0..blocks {
        step(number, 2 * blocks)?;
        if !factor_panel(products, &a, k, number * BLOCK)? {
            return Ok(None);
        }
    }
    for number in 0..blocks {
        step(blocks + number, 2 * blocks)?;
        invert_panel(products, &a, k, number * BLOCK)?;
    }
    reverse(products, &a, k)?;
    Ok(Some(a))
}

/// A part of a matrix.
fn part(a: &View, [row, rows]: [usize; 2], [col, cols]: [usize; 2]) -> Result<View, KernelError> {
    Ok(a.narrow(0, row, rows)?.narrow(1, col, cols)?)
}

/// Finds the columns `first..` of `L`, a block of them, from those before.
fn factor_panel(products: &mut Products, a: &View, k: usize, first: usize) -> Result<bool, KernelError> {
    let (width, rows) = (BLOCK.min(k - first), k - first);
    let here = part(a, [first, rows], [first, width])?;
    let mut panel = products.read(&here)?;
    if first > 0 {
        let taken = products.alloc(&[rows, width])?;
        let before = part(a, [first, rows], [0, first])?;
        products.multiply(&before, &part(a, [first, width], [0, first])?, &taken, false)?;
        let taken = products.read(&taken)?;
        panel.par_chunks_mut(width).zip(taken.par_chunks(width)).for_each(|(row, taken)| {
            row.iter_mut().zip(taken).for_each(|(x, taken)| *x -= taken);
        });
    }
    let (head, rest) = panel.split_at_mut(width * width);
    let Some(l) = cholesky(head, width) else { return Ok(false) };
    head.iter_mut().zip(&l).for_each(|(x, l)| *x = *l as f32);
    rest.par_chunks_mut(width).for_each(|row| solve(row, &l, 1.0));
    if panel.par_iter().any(|value| !value.is_finite()) {
        return Ok(false);
    }
    products.write(&here, &panel)?;
    Ok(true)
}

/// Finds the columns `first..` of `V`, a block of them, from those before; they take the place of zeros, and of `L` on the diagonal.
fn invert_panel(products: &mut Products, a: &View, k: usize, first: usize) -> Result<(), KernelError> {
    let width = BLOCK.min(k - first);
    let on_diagonal = part(a, [first, width], [first, width])?;
    let l: Vec<f64> = products.read(&on_diagonal)?.into_iter().map(f64::from).collect();
    if first > 0 {
        let sums = products.alloc(&[first, width])?;
        for row in (0..first).step_by(BLOCK) {
            let rows = BLOCK.min(first - row);
            let known = part(a, [row, rows], [row, first - row])?;
            let out = part(&sums, [row, rows], [0, width])?;
            products.multiply(&known, &part(a, [first, width], [row, first - row])?, &out, false)?;
        }
        let mut sums = products.read(&sums)?;
        sums.par_chunks_mut(width).for_each(|row| solve(row, &l, -1.0));
        products.write(&part(a, [0, first], [first, width])?, &sums)?;
    }
    let mut own = vec![0.0f32; width * width];
    own.par_chunks_mut(width).enumerate().for_each(|(i, row)| {
        row[i] = 1.0;
        solve(row, &l, 1.0);
    });
    products.write(&on_diagonal, &own)
}

/// Brings all elements in reverse order.
fn reverse(products: &mut Products, a: &View, k: usize) -> Result<(), KernelError> {
    for top in 0..k.div_ceil(2) {
        let (above, below) = (a.narrow(0, top, 1)?, a.narrow(0, k - 1 - top, 1)?);
        let [mut first, mut last] = [products.read(&above)?, products.read(&below)?];
        first.reverse();
        last.reverse();
        products.write(&above, &last)?;
        products.write(&below, &first)?;
    }
    Ok(())
}

/// `x` of `x l^T = sign row`, `l` lower triangular.
fn solve(row: &mut [f32], l: &[f64], sign: f64) {
    let width = row.len();
    let mut x = [0.0f64; BLOCK];
    for (col, of) in l.chunks_exact(width).enumerate() {
        x[col] = (sign * f64::from(row[col]) - dot(&x[..col], &of[..col])) / of[col];
    }
    row.iter_mut().zip(x).for_each(|(row, x)| *row = x as f32);
}

/// The Cholesky factor of a block, of which the lower triangle is read.
fn cholesky(a: &[f32], width: usize) -> Option<Vec<f64>> {
    let mut l = vec![0.0f64; width * width];
    for i in 0..width {
        let (known, row) = l.split_at_mut(i * width);
        for j in 0..=i {
            let of = if j < i { &known[j * width..j * width + j] } else { &[] };
            let taken = if j < i { dot(&row[..j], of) } else { dot(&row[..i], &row[..i]) };
            let value = f64::from(a[i * width + j]) - taken;
            row[j] = match j < i {
                true => value / known[j * width + j],
                false if value > 0.0 => value.sqrt(),
                false => return None,
            };
        }
    }
    Some(l)
}

/// The sum of products, in parts that vectors take.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a8, b8) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a8.0.iter().zip(b8.0) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f64 = a8.1.iter().zip(b8.1).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `L` and its inverse `M`, of `h` in reverse, column by column in f64.
    fn plain(h: &[f64], k: usize) -> Option<[Vec<f64>; 2]> {
        let at = |i: usize, j: usize| h[(k - 1 - i) * k + k - 1 - j];
        let (mut l, mut m) = (vec![0.0; k * k], vec![0.0; k * k]);
        for i in 0..k {
            for j in 0..=i {
                let value = at(i, j) - (0..j).map(|t| l[i * k + t] * l[j * k + t]).sum::<f64>();
                if i == j && value <= 0.0 {
                    return None;
                }
                l[i * k + j] = if i == j { value.sqrt() } else { value / l[j * k + j] };
            }
            for j in 0..=i {
                let sum: f64 = (j..i).map(|t| l[i * k + t] * m[t * k + j]).sum();
                m[i * k + j] = (f64::from(u8::from(i == j)) - sum) / l[i * k + i];
            }
        }
        Some([l, m])
    }

    /// `a b`, of magnitudes.
    fn product(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
        let mut out = vec![0.0; k * k];
        for i in 0..k {
            for t in 0..k {
                let by = a[i * k + t].abs();
                let row = &b[t * k..(t + 1) * k];
                out[i * k..(i + 1) * k].iter_mut().zip(row).for_each(|(out, b)| *out += by * b.abs());
            }
        }
        out
    }

    fn transposed(a: &[f64], k: usize) -> Vec<f64> {
        (0..k * k).map(|at| a[at % k * k + at / k]).collect()
    }

    /// A matrix `X^T X` of few causes and some noise, and part of its mean on the diagonal.
    fn symmetric(k: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
        };
        let (rows, causes) = (2 * k, 9);
        let mix: Vec<f64> = (0..causes * k).map(|_| next()).collect();
        let mut h = vec![0.0; k * k];
        for _ in 0..rows {
            let cause: Vec<f64> = (0..causes).map(|_| next()).collect();
            let value = |col: usize| (0..causes).map(|c| cause[c] * mix[c * k + col]).sum::<f64>();
            let x: Vec<f64> = (0..k).map(|col| value(col) + next()).collect();
            for i in 0..k {
                (0..k).for_each(|j| h[i * k + j] += x[i] * x[j]);
            }
        }
        let mean = (0..k).map(|i| h[i * k + i]).sum::<f64>() / k as f64;
        (0..k).for_each(|i| h[i * k + i] += 0.01 * mean);
        // What both begin with.
        h.into_iter().map(|value| f64::from(value as f32)).collect()
    }

    fn found(h: &[f64], k: usize) -> Option<Vec<f64>> {
        let mut products = Products::new().unwrap();
        let fill = |i: usize, row: &mut [f32]| {
            row.iter_mut().zip(&h[i * k..]).for_each(|(to, from)| *to = *from as f32);
        };
        let mut steps = 0;
        let u = inverse_factor(&mut products, k, &fill, &mut |_, _| {
            steps += 1;
            Ok(())
        });
        let u = u.unwrap()?;
        assert_eq!(steps, 2 * k.div_ceil(BLOCK));
        Some(products.read(&u).unwrap().into_iter().map(f64::from).collect())
    }

    /// Sums of at most `k` products of f32, and a rounding or two, are off by `c = (k + 2) 2^-24` of the sums of magnitudes. So `L L^T = h + E`
    /// with `|E| <= c |L| |L^T|`, and `L M = 1 + F` with `|F| <= c |L| |M|`. Then `M h M^T = 1 + R`, where `R` is
    /// `M F L + (M F L)^T - M E M^T` but for terms of the second order, and `M = T M'` of the true `M'` with `T T^T = 1 + R`: they differ by
    /// at most `|R| |M'|`, twice that with those terms.
    #[test]
    fn block_by_block_it_is_what_column_by_column_gives() {
        for (k, seed) in [(1, 3), (40, 5), (128, 7), (129, 11), (300, 13)] {
            let h = symmetric(k, seed);
            let [l, m] = plain(&h, k).unwrap();
            let u = found(&h, k).unwrap();
            let c = (k as f64 + 2.0) * 2f64.powi(-24);
            let ml = product(&m, &l, k);
            let (twice, once) = (product(&ml, &ml, k), product(&ml, &transposed(&ml, k), k));
            let r: Vec<f64> =
                (0..k * k).map(|at| c * (twice[at] + twice[at % k * k + at / k] + once[at])).collect();
            let bound = product(&r, &m, k);
            let (mut most, mut worst) = (0.0f64, 0.0f64);
            for i in 0..k {
                for j in 0..=i {
                    // U[a, b] is M[k - 1 - a, k - 1 - b].
                    let off = (u[(k - 1 - j) * k + k - 1 - i] - m[i * k + j]).abs();
                    worst = worst.max(off / (2.0 * bound[i * k + j]));
                    most = most.max(2.0 * bound[i * k + j] / m[i * k + i]);
                }
            }
            println!("{k}: {worst:.1e} of the bound, which is {most:.1e} of the diagonal");
            assert!(worst <= 1.0, "{k}: {worst} of what rounding may do");
            assert!(most < 0.2, "{k}: the bound says little: {most}");
        }
    }

    #[test]
    fn what_is_not_positive_has_none() {
        let (k, mut h) = (200, symmetric(200, 17));
        assert!(found(&h, k).is_some());
        h[150 * k + 150] = -1.0;
        assert!(found(&h, k).is_none() && plain(&h, k).is_none());
    }
}
