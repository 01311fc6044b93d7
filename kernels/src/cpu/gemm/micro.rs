//! Register-filling micro-kernels.

use super::super::isa::Level;
use super::super::simd::Simd;
use super::{NV, X_STRIDE};

/// Multiplies and accumulates words: a word is what fills one 32-bit lane, one f32 or several narrower values that are
/// multiplied pairwise and summed.
pub trait Dot: Copy {
    /// `acc + x * w` in each lane; `x` holds the same word in all lanes.
    fn dot<S: Simd>(self, s: S, acc: S::V, x: S::V, w: S::V) -> S::V;
}

/// One f32 per word.
#[derive(Clone, Copy)]
pub struct DotF32;
impl Dot for DotF32 {
    #[inline(always)]
    fn dot<S: Simd>(self, s: S, acc: S::V, x: S::V, w: S::V) -> S::V {
        s.fma(x, w, acc)
    }
}

/// `c (+)= x w` for `rows` rows: `x: [rows][X_STRIDE]` words, `w: [words][NR]`, `c: [rows][NR]`. `first` overwrites `c`.
///
/// # Safety
/// The buffers have these sizes; `1 <= rows <=` the level's micro-tile height, `words <= KC`.
#[inline(always)]
pub unsafe fn tile<S: Simd, D: Dot>(
    s: S,
    d: D,
    rows: usize,
    words: usize,
    x: *const u32,
    w: *const u32,
    c: *mut f32,
    first: bool,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        match S::LEVEL {
            Level::Avx512 => match rows {
                1 => fixed::<S, D, 1>(s, d, words, x, w, c, first),
                2 => fixed::<S, D, 2>(s, d, words, x, w, c, first),
                3 => fixed::<S, D, 3>(s, d, words, x, w, c, first),
                4 => fixed::<S, D, 4>(s, d, words, x, w, c, first),
                5 => fixed::<S, D, 5>(s, d, words, x, w, c, first),
                6 => fixed::<S, D, 6>(s, d, words, x, w, c, first),
                7 => fixed::<S, D, 7>(s, d, words, x, w, c, first),
                8 => fixed::<S, D, 8>(s, d, words, x, w, c, first),
                9 => fixed::<S, D, 9>(s, d, words, x, w, c, first),
                10 => fixed::<S, D, 10>(s, d, words, x, w, c, first),
                11 => fixed::<S, D, 11>(s, d, words, x, w, c, first),
                12 => fixed::<S, D, 12>(s, d, words, x, w, c, first),
                13 => fixed::<S, D, 13>(s, d, words, x, w, c, first),
                _ => fixed::<S, D, 14>(s, d, words, x, w, c, first),
            },
            Level::Avx2 => match rows {
                1 => fixed::<S, D, 1>(s, d, words, x, w, c, first),
                2 => fixed::<S, D, 2>(s, d, words, x, w, c, first),
                3 => fixed::<S, D, 3>(s, d, words, x, w, c, first),
                4 => fixed::<S, D, 4>(s, d, words, x, w, c, first),
                5 => fixed::<S, D, 5>(s, d, words, x, w, c, first),
                _ => fixed::<S, D, 6>(s, d, words, x, w, c, first),
            },
            Level::Neon => {
                // The tail takes rows in powers of two: fewer instances for a level that is rarely short of rows.
                let mut i = 0;
                while i < rows {
                    let (xi, ci) = (x.add(i * X_STRIDE), c.add(i * NV * S::LANES));
                    i += match rows - i {
                        12 => fixed::<S, D, 12>(s, d, words, xi, w, ci, first),
                        8.. => fixed::<S, D, 8>(s, d, words, xi, w, ci, first),
                        4.. => fixed::<S, D, 4>(s, d, words, xi, w, ci, first),
                        2.. => fixed::<S, D, 2>(s, d, words, xi, w, ci, first),
                        _ => fixed::<S, D, 1>(s, d, words, xi, w, ci, first),
                    };
                }
                rows
            }
            Level::Scalar => match rows {
                1 => fixed::<S, D, 1>(s, d, words, x, w, c, first),
                _ => fixed::<S, D, 2>(s, d, words, x, w, c, first),
            },
        };
    }
}

/// A tile of `MR` rows; returns `MR`.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn fixed<S: Simd, D: Dot, const MR: usize>(
    s: S,
    d: D,
    words: usize,
    x: *const u32,
    w: *const u32,
    c: *mut f32,
    first: bool,
) -> usize {
    let mut acc = [[s.zero(); NV]; MR];
    let (x, w) = (x.cast::<f32>(), w.cast::<f32>());
    // SAFETY: as the caller vouches.
    unsafe {
        if !first {
            // Wanted at the end: the multiplications hide the way from L2.
            for i in 0..MR * NV {
                s.prefetch(c.add(i * S::LANES));
            }
        }
        for p in 0..words {
            let at = w.add(p * NV * S::LANES);
            let panel = [s.load(at), s.load(at.add(S::LANES))];
            for (i, row) in acc.iter_mut().enumerate() {
                let b = s.splat(*x.add(i * X_STRIDE + p));
                for (a, q) in row.iter_mut().zip(panel) {
                    *a = d.dot(s, *a, b, q);
                }
            }
        }
        for (i, row) in acc.iter().enumerate() {
            for (v, a) in row.iter().enumerate() {
                let at = c.add((i * NV + v) * S::LANES);
                s.store(at, if first { *a } else { s.add(s.load(at), *a) });
            }
        }
    }
    MR
}
