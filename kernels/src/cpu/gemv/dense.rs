//! Weights that are floats.

use super::super::simd::{Elem, Simd};
use super::x::{Layout, X};
use super::{Dots, Row, distance};

/// A row-major matrix of floats.
#[derive(Clone, Copy, Debug)]
pub struct DenseDots<T> {
    /// First element.
    pub ptr: *const T,
    /// Elements from row to row.
    pub stride: usize,
    /// Whether lines are asked for past the second-level cache, see [`Isa::reads_once`](crate::cpu::isa::Isa::reads_once).
    pub once: bool,
}

// SAFETY: the matrix is only read.
unsafe impl<T> Sync for DenseDots<T> {}

/// Vectors of a row in flight, each with its own accumulator: an FMA takes 4 cycles.
const UNROLL: usize = 2;
/// Bytes that a row is asked for ahead of its use.
const AHEAD: usize = 1024;
/// Vectors of a row that are multiplied in one step: two lines of weights of 16 bits are asked for together.
const STEP: usize = 2 * UNROLL;

impl<T: Elem> Dots for DenseDots<T> {
    fn layout(&self, _: usize, _: usize) -> Layout {
        Layout::fields(1)
    }

    fn row_bytes(&self, k: usize) -> usize {
        k * size_of::<T>()
    }

    #[inline(always)]
    unsafe fn dots<S: Simd, const R: usize, const M: usize>(
        s: S,
        rows: &[Row<'_, Self>; R],
        x: &X,
        m0: usize,
        _: *mut f32,
    ) -> [[f32; M]; R] {
        let mut acc = [[[s.zero(); M]; R]; UNROLL];
        let mut w = [rows[0].of.ptr; R];
        for (w, row) in w.iter_mut().zip(rows) {
            *w = row.of.ptr.wrapping_add(row.row * row.of.stride);
        }
        let mut xs = [x.row(m0); M];
        for (i, xs) in xs.iter_mut().enumerate() {
            *xs = x.row(m0 + i);
        }
        let k = x.k;
        let (row_bytes, pitch) = (k * size_of::<T>(), rows[0].of.stride * size_of::<T>());
        let once = rows[0].of.once;
        let mut at = 0;
        // SAFETY: rows of `w` and `x` hold `k` values.
        unsafe {
            while at + STEP * S::LANES <= k {
                let ahead = distance(at * size_of::<T>(), AHEAD, row_bytes, pitch);
                for w in w {
                    for line in (0..STEP * S::LANES * size_of::<T>()).step_by(64) {
                        let line = w.wrapping_add(at).cast::<u8>().wrapping_add(ahead + line);
                        if once {
                            s.prefetch_once(line);
                        } else {
                            s.prefetch(line);
                        }
                    }
                }
                for u in 0..STEP {
                    let (acc, at) = (&mut acc[u % UNROLL], at + u * S::LANES);
                    let mut v = [s.zero(); M];
                    for i in 0..M {
                        v[i] = s.load(xs[i].add(at));
                    }
                    for r in 0..R {
                        let b = T::load(s, w[r].add(at));
                        for i in 0..M {
                            acc[r][i] = s.fma(b, v[i], acc[r][i]);
                        }
                    }
                }
                at += STEP * S::LANES;
            }
            let mut u = 0;
            while at < k {
                let n = S::LANES.min(k - at);
                for r in 0..R {
                    let b = T::load_n(s, w[r].add(at), n);
                    for i in 0..M {
                        acc[u][r][i] = s.fma(b, s.load_n(xs[i].add(at), n), acc[u][r][i]);
                    }
                }
                at += n;
                u = (u + 1) % UNROLL;
            }
        }
        let mut out = [[0.0; M]; R];
        for r in 0..R {
            for i in 0..M {
                out[r][i] = s.sum(s.add(acc[0][r][i], acc[1][r][i]));
            }
        }
        out
    }
}
