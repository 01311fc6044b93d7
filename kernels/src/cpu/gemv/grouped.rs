//! Weights that are codes in groups.
//!
//! A vector of words holds 4 or 8 fields a lane. Each field is brought to the top of its lane and converted. Of integers that
//! gives `2^(32 - bits)` times the value; the scales take that factor back. Zero points are applied to sums:
//! `sum (q - z) s x = s sum q x - z s sum x`.

use super::super::simd::{MAX_LANES, Simd};
use super::x::{Layout, X};
use super::{Dots, Row, distance};
use crate::quant::Decoder;
use crate::quant::grouped::cpu::{GroupedRows, Zeros};

/// One stored tensor of such codes. Groups are whole words, and whole vectors of words or a power of two of
/// words below that; see [`fits`].
#[derive(Clone, Copy, Debug)]
pub struct GroupedDots<F>(pub GroupedRows, pub F);

/// Bytes that a row is asked for ahead of its use.
const AHEAD: usize = 1024;

/// Whether [`GroupedDots`] takes groups of `group` weights of `bits` bits; 0 is the whole row.
pub fn fits(bits: usize, group: usize) -> bool {
    let words = group * bits / 32;
    group == 0
        || (group * bits).is_multiple_of(32) && (words.is_power_of_two() || words.is_multiple_of(MAX_LANES))
}

impl<F: Decoder> GroupedDots<F> {
    pub(super) fn groups(&self, k: usize) -> usize {
        k.div_ceil(self.0.group)
    }

    /// Values of one row of scales: vectors may begin at any group.
    pub(super) fn scale_len(&self, k: usize, lanes: usize) -> usize {
        self.groups(k).next_multiple_of(lanes) + lanes
    }
}

impl<F: Decoder> Dots for GroupedDots<F> {
    fn layout(&self, k: usize, _: usize) -> Layout {
        let sums = if self.0.has_zeros() { self.0.group.min(k.max(1)) } else { 0 };
        Layout { sums, ..Layout::fields(32 / F::BITS) }
    }

    fn row_bytes(&self, k: usize) -> usize {
        (k * F::BITS).div_ceil(32) * 4
    }

    #[inline(always)]
    fn work(&self, rows: usize, k: usize, lanes: usize) -> usize {
        rows * self.scale_len(k, lanes) * if self.0.has_zeros() { 2 } else { 1 }
    }

    #[inline(always)]
    unsafe fn dots<S: Simd, const R: usize, const M: usize>(
        s: S,
        rows: &[Row<'_, Self>; R],
        x: &X,
        m0: usize,
        work: *mut f32,
    ) -> [[f32; M]; R] {
        let first = rows[0].of;
        let (words, groups) = ((x.k * F::BITS).div_ceil(32), first.groups(x.k));
        let scale_len = first.scale_len(x.k, S::LANES);
        let mut at = [first.0.packed; R];
        for (at, row) in at.iter_mut().zip(rows) {
            *at = row.of.0.packed.wrapping_add(row.row * row.of.0.words);
        }
        let mut xs = [x.row(m0); M];
        for (i, xs) in xs.iter_mut().enumerate() {
            *xs = x.row(m0 + i);
        }
        let group_words = first.group_words(x.k, S::LANES);
        let decoder = first.1;
        let mut acc = [[s.zero(); M]; R];
        // SAFETY: rows, scales and `x` exist as the caller vouches; `x` is padded to whole vectors of words.
        unsafe {
            for (r, row) in rows.iter().enumerate() {
                row.of.scales(s, row.row, groups, 1.0 / F::UNIT, work.add(r * scale_len));
                row.of.0.scales.prefetch(s, row.row + 1, groups);
            }
            let ahead = |v: usize| distance(4 * v, AHEAD, 4 * words, 4 * first.0.words);
            let mut v = 0;
            if group_words >= S::LANES {
                for g in 0..groups {
                    let end = words.min((g + 1) * group_words);
                    let mut sub = [[s.zero(); M]; R];
                    while v < end {
                        block::<S, F, R, M>(s, decoder, &at, &xs, v, end, ahead(v), &mut sub);
                        v += S::LANES;
                    }
                    for r in 0..R {
                        let scale = s.splat(*work.add(r * scale_len + g));
                        for i in 0..M {
                            acc[r][i] = s.fma(sub[r][i], scale, acc[r][i]);
                        }
                    }
                }
            } else {
                // A power of two, see `fits`.
                let (group_shift, few) = (group_words.trailing_zeros(), 4 * group_words >= S::LANES);
                let index = group_of_lane(s, group_words);
                while v < words {
                    let mut sub = [[s.zero(); M]; R];
                    block::<S, F, R, M>(s, decoder, &at, &xs, v, words, ahead(v), &mut sub);
                    for r in 0..R {
                        let scale = spread(s, work.add(r * scale_len + (v >> group_shift)), index, few);
                        for i in 0..M {
                            acc[r][i] = s.fma(sub[r][i], scale, acc[r][i]);
                        }
                    }
                    v += S::LANES;
                }
            }
        }
        let mut out = [[0.0; M]; R];
        for r in 0..R {
            for i in 0..M {
                out[r][i] = s.sum(acc[r][i]);
            }
        }
        // SAFETY: as above; the scales were written above.
        unsafe { Self::less_zeros(s, rows, x, m0, 1.0 / F::UNIT, work, &mut out) };
        out
    }
}

impl<F: Decoder> GroupedDots<F> {
    /// Words of a group, or of the padded row if it is one group.
    pub(super) fn group_words(&self, k: usize, lanes: usize) -> usize {
        match self.groups(k) {
            0 | 1 => (k * F::BITS).div_ceil(32).next_multiple_of(lanes).max(lanes),
            _ => self.0.group * F::BITS / 32,
        }
    }

    /// Subtracts what the zero points add to sums of the rows.
    ///
    /// # Safety
    /// The rows exist; `work` begins with their scales, written with this `unit`, and holds as much as `work` says.
    #[inline(always)]
    pub(super) unsafe fn less_zeros<S: Simd, const R: usize, const M: usize>(
        s: S,
        rows: &[Row<'_, Self>; R],
        x: &X,
        m0: usize,
        unit: f32,
        work: *mut f32,
        out: &mut [[f32; M]; R],
    ) {
        let first = rows[0].of;
        if !first.0.has_zeros() {
            return;
        }
        let (groups, scale_len) = (first.groups(x.k), first.scale_len(x.k, S::LANES));
        for (r, (out, row)) in out.iter_mut().zip(rows).enumerate() {
            // SAFETY: as the caller vouches; sums of `x` are padded to whole vectors.
            unsafe {
                let (scales, zeros) = (work.add(r * scale_len), work.add((R + r) * scale_len));
                row.of.zeros(s, row.row, groups, unit, scales, zeros);
                for (i, out) in out.iter_mut().enumerate() {
                    let mut sum = s.zero();
                    for g in (0..groups).step_by(S::LANES) {
                        sum = s.fma(s.load(zeros.add(g)), s.load(x.sums(m0 + i).add(g)), sum);
                    }
                    *out -= s.sum(sum);
                }
            }
        }
    }

    /// Scales of a row times `unit`; zeros after the last.
    ///
    /// # Safety
    /// The row exists with `groups` groups; `to` is writable for `scale_len` values.
    #[inline(always)]
    pub(super) unsafe fn scales<S: Simd>(&self, s: S, row: usize, groups: usize, unit: f32, to: *mut f32) {
        let Self(rows, _) = self;
        let unit = s.splat(unit * rows.factor);
        let mut g = 0;
        // SAFETY: as the caller vouches.
        unsafe {
            while g < groups {
                let v = rows.scales.load(s, row, g, S::LANES.min(groups - g));
                s.store(to.add(g), s.mul(v, unit));
                g += S::LANES;
            }
            s.store(to.add(g), s.zero());
        }
    }

    /// What the weights of each group of a row lack beside their scaled codes; zeros where the scales are.
    ///
    /// # Safety
    /// The row exists with `groups` groups; `scales` were written by [`scales`](Self::scales) with `unit`, to which the factor does not
    /// belong, `to` is writable for as many values.
    #[inline(always)]
    unsafe fn zeros<S: Simd>(
        &self,
        s: S,
        row: usize,
        groups: usize,
        unit: f32,
        scales: *const f32,
        to: *mut f32,
    ) {
        let Self(rows, _) = self;
        let shift = s.splat_i((row * F::BITS % 32) as i32);
        let mask = s.splat_i((1 << F::BITS) - 1);
        let centre = s.splat(F::CENTRE as f32);
        let unit = s.splat(1.0 / unit);
        for g in (0..groups).step_by(S::LANES) {
            let n = S::LANES.min(groups - g);
            // SAFETY: as the caller vouches.
            unsafe {
                let scale = s.mul(s.load(scales.add(g)), unit);
                let lacking = match rows.zeros {
                    Zeros::None => s.zero(),
                    Zeros::Codes(words, stride) => {
                        let word = words.add(row * F::BITS / 32 * stride + g);
                        let word = s.to_bits(s.load_n(word.cast(), n));
                        let z = s.to_float(s.and_i(s.shr_lanes_i(word, shift), mask));
                        s.mul(s.sub(z, centre), scale)
                    }
                    Zeros::Values(values) => s.mul(s.sub(values.load(s, row, g, n), centre), scale),
                    Zeros::Offsets(offsets) => s.neg(s.fma(centre, scale, offsets.load(s, row, g, n))),
                };
                s.store(to.add(g), lacking);
            }
        }
    }
}

/// Which of the groups of a vector a lane belongs to, if groups are `group_words` words long, a power of two.
#[inline(always)]
pub(super) fn group_of_lane<S: Simd>(s: S, group_words: usize) -> S::I {
    const LANES: [i32; MAX_LANES] = {
        let mut lanes = [0; MAX_LANES];
        let mut i = 0;
        while i < MAX_LANES {
            lanes[i] = i as i32;
            i += 1;
        }
        lanes
    };
    // SAFETY: MAX_LANES values.
    let lanes = unsafe { s.load_i(LANES.as_ptr()) };
    s.shr_lanes_i(lanes, s.splat_i(group_words.trailing_zeros() as i32))
}

/// The scale of each lane: those from `p` on, as `index` says. With `few`, of at most 4 groups, only they are loaded: a wider load
/// of what has just been stored waits until it has left the core.
///
/// # Safety
/// `p` is readable for `LANES` values.
#[inline(always)]
pub(super) unsafe fn spread<S: Simd>(s: S, p: *const f32, index: S::I, few: bool) -> S::V {
    // SAFETY: as the caller vouches.
    s.permute(unsafe { if few { s.load_4(p) } else { s.load(p) } }, index)
}

/// Adds the products of words `v..min(v + LANES, end)` of each row, and asks for the words `ahead` bytes from there.
///
/// # Safety
/// The words exist before `end`; rows of `x` hold the fields of a whole vector of words from `v` on.
#[inline(always)]
unsafe fn block<S: Simd, F: Decoder, const R: usize, const M: usize>(
    s: S,
    decoder: F,
    w: &[*const i32; R],
    x: &[*const f32; M],
    v: usize,
    end: usize,
    ahead: usize,
    sub: &mut [[S::V; M]; R],
) {
    let whole = v + S::LANES <= end;
    let mut fields = [(s.splat_i(0), s.splat_i(0)); R];
    let mut xs = [x[0]; M];
    // SAFETY: as the caller vouches.
    unsafe {
        for (r, fields) in fields.iter_mut().enumerate() {
            let at = w[r].add(v);
            s.prefetch(at.cast::<u8>().wrapping_add(ahead));
            let words = if whole { s.load_i(at) } else { s.to_bits(s.load_n(at.cast(), end - v)) };
            *fields = decoder.split(s, words);
        }
        for (i, xs) in xs.iter_mut().enumerate() {
            *xs = x[i].add(v * (32 / F::BITS));
        }
        // Even fields of 4 bits first: at levels that take words apart, the other half waits as a word.
        step::<S, F, R, M, 0>(s, decoder, &fields, &xs, sub);
        step::<S, F, R, M, 2>(s, decoder, &fields, &xs, sub);
        if const { F::BITS == 4 } {
            step::<S, F, R, M, 4>(s, decoder, &fields, &xs, sub);
            step::<S, F, R, M, 6>(s, decoder, &fields, &xs, sub);
        }
        step::<S, F, R, M, 1>(s, decoder, &fields, &xs, sub);
        step::<S, F, R, M, 3>(s, decoder, &fields, &xs, sub);
        if const { F::BITS == 4 } {
            step::<S, F, R, M, 5>(s, decoder, &fields, &xs, sub);
            step::<S, F, R, M, 7>(s, decoder, &fields, &xs, sub);
        }
    }
}

/// Field `J` of every word.
///
/// # Safety
/// Rows of `x` hold a vector for each field.
#[inline(always)]
unsafe fn step<S: Simd, F: Decoder, const R: usize, const M: usize, const J: usize>(
    s: S,
    decoder: F,
    fields: &[(S::I, S::I); R],
    x: &[*const f32; M],
    sub: &mut [[S::V; M]; R],
) {
    let mut v = [s.zero(); M];
    for (i, v) in v.iter_mut().enumerate() {
        // SAFETY: as the caller vouches.
        *v = unsafe { s.load(x[i].add(J * S::LANES)) };
    }
    for r in 0..R {
        let q = decoder.field::<S, J>(s, fields[r]);
        for i in 0..M {
            sub[r][i] = s.fma(q, v[i], sub[r][i]);
        }
    }
}
