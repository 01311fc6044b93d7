//! GPTQ's planes with an order: each column of `k` has a group of its own.

use super::super::super::simd::Simd;
use super::{AHEAD, ROWS, Sums, spread, unit};
use crate::quant::int::centre;

impl Sums<'_> {
    /// Adds products of lines whose columns have groups of their own.
    ///
    /// # Safety
    /// As [`add`](Self::add).
    #[inline(always)]
    pub(super) unsafe fn ordered<S: Simd, const BITS: usize, const M: usize>(
        &self,
        s: S,
        m0: usize,
        x: &[*const f32; M],
        cols: std::ops::Range<usize>,
        work: &mut [f32],
    ) {
        let (of, width, per_word) = (self.of, self.width(), 32 / BITS);
        let (sums, tables) = work.split_at_mut(ROWS * width);
        let (scales, zeros) = tables.split_at_mut(of.groups * self.cols);
        let (middle, unit) = (s.splat(centre(BITS).into()), s.splat(1.0 / unit(BITS)));
        // SAFETY: as the caller vouches; tables hold a row of the strip for each group, and orders name no others.
        unsafe {
            for group in 0..of.groups {
                for v in (0..self.cols).step_by(S::LANES) {
                    let at = group * self.cols + v;
                    let scale = of.scale(s, group, self.from + v, S::LANES);
                    s.store(scales.as_mut_ptr().add(at), s.mul(scale, unit));
                    if of.has_zeros() {
                        let zero = s.sub(of.zero(s, group, self.from + v, S::LANES), middle);
                        s.store(zeros.as_mut_ptr().add(at), s.neg(s.mul(zero, scale)));
                    }
                }
            }
            sums[..M * width].fill(0.0);
            let sums = sums.as_mut_ptr();
            for line in cols.start / per_word..cols.end / per_word {
                let words = of.packed.add(line * of.stride + self.from);
                let x = spread::<S, M>(s, x, line * per_word, per_word);
                // Rows of the tables for each column of the line.
                let mut rows = [0; 8];
                for (j, row) in rows.iter_mut().enumerate().take(per_word) {
                    *row = *of.order.add(line * per_word + j) as usize * self.cols;
                }
                let line = Line { words, rows, ahead: words.wrapping_add(AHEAD * of.stride) };
                let tables = (scales.as_ptr(), zeros.as_ptr());
                match of.has_zeros() {
                    true => line.add::<S, BITS, M, true>(s, tables, &x, self.cols, sums, width),
                    false => line.add::<S, BITS, M, false>(s, tables, &x, self.cols, sums, width),
                }
            }
            for i in 0..M {
                for v in (0..self.cols).step_by(S::LANES) {
                    let to = self.sum(m0 + i, v);
                    s.store(to, s.add(s.load(to), s.load(sums.add(i * width + v))));
                }
            }
        }
    }
}

/// A line of words whose columns have groups of their own.
struct Line {
    words: *const i32,
    /// Where tables have the group of each column.
    rows: [usize; 8],
    ahead: *const i32,
}

impl Line {
    /// Adds the line's products to `cols` sums for each row of x, `width` apart.
    ///
    /// # Safety
    /// Words, sums and rows of the tables exist, those of zero points if there are such.
    #[inline(always)]
    unsafe fn add<S: Simd, const BITS: usize, const M: usize, const ZEROS: bool>(
        &self,
        s: S,
        tables: (*const f32, *const f32),
        x: &[[S::V; M]; 8],
        cols: usize,
        sums: *mut f32,
        width: usize,
    ) {
        for v in (0..cols).step_by(S::LANES) {
            s.prefetch(self.ahead.wrapping_add(v));
            // SAFETY: as the caller vouches.
            unsafe {
                let fields = s.fields::<BITS>(s.load_i(self.words.add(v)));
                let mut sum: [S::V; M] = std::array::from_fn(|i| s.load(sums.add(i * width + v)));
                let at = |j: usize| {
                    (tables.0.wrapping_add(self.rows[j] + v), tables.1.wrapping_add(self.rows[j] + v))
                };
                scaled_field::<S, BITS, M, ZEROS, 0>(s, fields, at(0), x, &mut sum);
                scaled_field::<S, BITS, M, ZEROS, 1>(s, fields, at(1), x, &mut sum);
                scaled_field::<S, BITS, M, ZEROS, 2>(s, fields, at(2), x, &mut sum);
                scaled_field::<S, BITS, M, ZEROS, 3>(s, fields, at(3), x, &mut sum);
                if const { BITS == 4 } {
                    scaled_field::<S, BITS, M, ZEROS, 4>(s, fields, at(4), x, &mut sum);
                    scaled_field::<S, BITS, M, ZEROS, 5>(s, fields, at(5), x, &mut sum);
                    scaled_field::<S, BITS, M, ZEROS, 6>(s, fields, at(6), x, &mut sum);
                    scaled_field::<S, BITS, M, ZEROS, 7>(s, fields, at(7), x, &mut sum);
                }
                for (i, sum) in sum.iter().enumerate() {
                    s.store(sums.add(i * width + v), *sum);
                }
            }
        }
    }
}

/// As [`field`], with a scale of its own, and with what a zero point takes off.
///
/// # Safety
/// The first pointer is readable for a vector, the second too where there are zero points.
#[inline(always)]
unsafe fn scaled_field<S: Simd, const BITS: usize, const M: usize, const ZEROS: bool, const J: usize>(
    s: S,
    fields: (S::I, S::I),
    (scale, beside): (*const f32, *const f32),
    x: &[[S::V; M]; 8],
    sum: &mut [S::V; M],
) {
    // SAFETY: as the caller vouches.
    unsafe {
        let (q, scale) = (s.field::<BITS, J>(fields), s.load(scale));
        let w = if ZEROS { s.fma(q, scale, s.load(beside)) } else { s.mul(q, scale) };
        for (sum, x) in sum.iter_mut().zip(&x[J]) {
            *sum = s.fma(w, *x, *sum);
        }
    }
}
