//! GPTQ's planes: words of a line have consecutive columns of `k`.

use super::super::super::simd::Simd;
use super::{AHEAD, Sums, spread, unit};
use crate::quant::int::centre;

impl Sums<'_> {
    /// Sums of codes less the centre, times `2^(32 - BITS)`, over lines of one group.
    ///
    /// # Safety
    /// As [`add`](Self::add).
    #[inline(always)]
    pub(super) unsafe fn gptq<S: Simd, const BITS: usize, const M: usize>(
        &self,
        s: S,
        x: &[*const f32; M],
        cols: std::ops::Range<usize>,
        sums: &mut [f32],
    ) {
        let (of, width) = (self.of, self.width());
        let per_word = 32 / BITS;
        let sums = sums.as_mut_ptr();
        // Lines come in pairs.
        for line in (cols.start / per_word..cols.end / per_word).step_by(2) {
            // SAFETY: the words of the strip's columns exist, and `per_word` values of x for each line.
            unsafe {
                let words = of.packed.add(line * of.stride + self.from);
                let x = [0, 1].map(|l| spread::<S, M>(s, x, (line + l) * per_word, per_word));
                let ahead = words.wrapping_add(AHEAD * of.stride);
                for v in (0..self.cols).step_by(S::LANES) {
                    s.prefetch(ahead.wrapping_add(v));
                    s.prefetch(ahead.wrapping_add(of.stride + v));
                    let mut sum: [S::V; M] = std::array::from_fn(|i| s.load(sums.add(i * width + v)));
                    for (l, x) in x.iter().enumerate() {
                        let fields = s.fields::<BITS>(s.load_i(words.add(l * of.stride + v)));
                        field::<S, BITS, M, 0>(s, fields, x, &mut sum);
                        field::<S, BITS, M, 1>(s, fields, x, &mut sum);
                        field::<S, BITS, M, 2>(s, fields, x, &mut sum);
                        field::<S, BITS, M, 3>(s, fields, x, &mut sum);
                        if const { BITS == 4 } {
                            field::<S, BITS, M, 4>(s, fields, x, &mut sum);
                            field::<S, BITS, M, 5>(s, fields, x, &mut sum);
                            field::<S, BITS, M, 6>(s, fields, x, &mut sum);
                            field::<S, BITS, M, 7>(s, fields, x, &mut sum);
                        }
                    }
                    for (i, sum) in sum.iter().enumerate() {
                        s.store(sums.add(i * width + v), *sum);
                    }
                }
            }
        }
    }

    /// Scales sums over columns of a group, from column `col` on, takes zero points off, and adds them to the strip.
    ///
    /// # Safety
    /// As [`add`](Self::add).
    #[inline(always)]
    pub(super) unsafe fn scale_gptq<S: Simd, const BITS: usize, const M: usize>(
        &self,
        s: S,
        m0: usize,
        col: usize,
        sums: &[f32],
    ) {
        let (group, of_x) = (col / self.of.group, col / self.sums.max(1));
        let (of, width, middle) = (self.of, self.width(), s.splat(centre(BITS).into()));
        let unit = s.splat(1.0 / unit(BITS));
        for v in (0..self.cols).step_by(S::LANES) {
            // SAFETY: as the caller vouches.
            unsafe {
                let scale = of.scale(s, group, self.from + v, S::LANES);
                let zero = match of.has_zeros() {
                    true => s.sub(of.zero(s, group, self.from + v, S::LANES), middle),
                    false => s.zero(),
                };
                for i in 0..M {
                    let mut sum = s.mul(s.load(sums.as_ptr().add(i * width + v)), unit);
                    if of.has_zeros() {
                        sum = s.fnma(zero, s.splat(*self.x.sums(m0 + i).add(of_x)), sum);
                    }
                    let to = self.sum(m0 + i, v);
                    s.store(to, s.fma(sum, scale, s.load(to)));
                }
            }
        }
    }
}

/// Field `J` of words times value `J` of each row of x.
#[inline(always)]
fn field<S: Simd, const BITS: usize, const M: usize, const J: usize>(
    s: S,
    fields: (S::I, S::I),
    x: &[[S::V; M]; 8],
    sum: &mut [S::V; M],
) {
    let q = s.field::<BITS, J>(fields);
    for (sum, x) in sum.iter_mut().zip(&x[J]) {
        *sum = s.fma(q, *x, *sum);
    }
}
