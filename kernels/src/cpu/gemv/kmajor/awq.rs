//! AWQ's planes: a line is of one column of `k`, its words have 8 neighbours along `n` each.

use super::super::super::simd::{MAX_LANES, Simd};
use super::{Sums, spread};
use crate::quant::kmajor::cpu::load_words;
use crate::spec::AWQ_ORDER;

/// Lines that are added to sums together.
const LINES: usize = 4;

impl Sums<'_> {
    /// As [`gptq`](Self::gptq): of each vector of words the sums of its fields, in the order of the fields.
    ///
    /// # Safety
    /// As [`add`](Self::add).
    #[inline(always)]
    pub(super) unsafe fn awq<S: Simd, const M: usize>(
        &self,
        s: S,
        x: &[*const f32; M],
        cols: std::ops::Range<usize>,
        sums: &mut [f32],
    ) {
        let (of, width, words) = (self.of, self.width(), self.cols / 8);
        let sums = sums.as_mut_ptr();
        for line in cols.step_by(LINES) {
            // SAFETY: lines come in multiples of `LINES`; the words of the strip's columns exist.
            unsafe {
                let of_line: [*const i32; LINES] =
                    std::array::from_fn(|l| of.packed.add((line + l) * of.stride + self.from / 8));
                let x = spread::<S, M>(s, x, line, LINES);
                for v in (0..words).step_by(S::LANES) {
                    let n = S::LANES.min(words - v);
                    let mut fields = [(s.splat_i(0), s.splat_i(0)); LINES];
                    for (l, fields) in fields.iter_mut().enumerate() {
                        s.prefetch(of_line[l].wrapping_add(2 * LINES * of.stride + v));
                        *fields = s.fields::<4>(load_words(s, of_line[l].add(v), n));
                    }
                    let sums = sums.add(8 * v);
                    awq_field::<S, M, 0>(s, &fields, &x, sums, width);
                    awq_field::<S, M, 1>(s, &fields, &x, sums, width);
                    awq_field::<S, M, 2>(s, &fields, &x, sums, width);
                    awq_field::<S, M, 3>(s, &fields, &x, sums, width);
                    awq_field::<S, M, 4>(s, &fields, &x, sums, width);
                    awq_field::<S, M, 5>(s, &fields, &x, sums, width);
                    awq_field::<S, M, 6>(s, &fields, &x, sums, width);
                    awq_field::<S, M, 7>(s, &fields, &x, sums, width);
                }
            }
        }
    }

    /// As [`scale_gptq`](Self::scale_gptq), of sums in the order of fields.
    ///
    /// # Safety
    /// As [`add`](Self::add).
    #[inline(always)]
    pub(super) unsafe fn scale_awq<S: Simd, const M: usize>(
        &self,
        s: S,
        m0: usize,
        col: usize,
        sums: &mut [f32],
    ) {
        let width = self.width();
        // Sums of a vector of words in the order of columns.
        let mut turned = [0.0f32; 8 * MAX_LANES];
        for v in (0..self.cols / 8).step_by(S::LANES) {
            for i in 0..M {
                // SAFETY: sums are padded to whole vectors of words.
                unsafe {
                    let sums = sums.as_mut_ptr().add(i * width + 8 * v);
                    interleave(s, sums, turned.as_mut_ptr());
                    std::ptr::copy_nonoverlapping(turned.as_ptr(), sums, 8 * S::LANES);
                }
            }
        }
        // SAFETY: as the caller vouches.
        unsafe { self.scale_gptq::<S, 4, M>(s, m0, col, sums) }
    }
}

/// Field `J` of the words of some lines times a value of each row of x for each line, added to sums in memory: those of field `J` of a
/// vector of words are its vector `J`.
///
/// # Safety
/// The values exist; rows of sums are `width` apart.
#[inline(always)]
unsafe fn awq_field<S: Simd, const M: usize, const J: usize>(
    s: S,
    fields: &[(S::I, S::I); LINES],
    x: &[[S::V; M]; 8],
    sums: *mut f32,
    width: usize,
) {
    // SAFETY: as the caller vouches.
    unsafe {
        let mut sum: [S::V; M] = std::array::from_fn(|i| s.load(sums.add(i * width + J * S::LANES)));
        for (fields, x) in fields.iter().zip(x) {
            let q = s.field::<4, J>(*fields);
            for (sum, x) in sum.iter_mut().zip(x) {
                *sum = s.fma(q, *x, *sum);
            }
        }
        for (i, sum) in sum.iter().enumerate() {
            s.store(sums.add(i * width + J * S::LANES), *sum);
        }
    }
}

/// Values of a vector of AWQ's words, a vector for each field, in the order of the columns that they are of.
///
/// # Safety
/// Both hold 8 vectors.
#[inline(always)]
unsafe fn interleave<S: Simd>(s: S, fields: *const f32, to: *mut f32) {
    let step = S::LANES.min(8);
    let mut field = [0; 8];
    for (j, &column) in AWQ_ORDER.iter().enumerate() {
        field[column] = j;
    }
    for first in (0..8).step_by(step) {
        let mut tile = [s.zero(); MAX_LANES];
        // SAFETY: as the caller vouches; a tile is `LANES` vectors.
        unsafe {
            for (i, one) in tile.iter_mut().enumerate().take(step) {
                *one = s.load(fields.add(field[first + i] * S::LANES));
            }
            s.transpose(tile.as_mut_ptr());
            for (lane, one) in tile.iter().enumerate().take(S::LANES) {
                s.store_n(to.add(8 * lane + first), *one, step);
            }
        }
    }
}
