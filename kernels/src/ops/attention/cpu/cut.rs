//! Scores, weights and weighted sums of one cut of keys, for all query rows of a few key heads.

use std::ops::Range;

use super::row::Row;
use super::softmax::exp2;
use super::tasks::{Call, Rows};
use crate::cpu::simd::{Elem, MAX_LANES, Simd, math};

/// Keys of one task.
pub(super) const CUT: usize = 32;
/// Values that are accumulated before the sums are stored: their rows stay in the first-level cache between heads.
const STRIP: usize = 16;
/// Scores of the keys from `first` on for each row of each head, in rows of [`CUT`]; of those that `range` counts, and of some
/// before it. `v` are the values that are read afterwards.
///
/// # Safety
/// The keys are keys of the sequence; `queries` has rows of `padded`, `widened` room for a vector of keys.
#[inline(always)]
pub(super) unsafe fn products<S: Simd, K: Row>(
    s: S,
    call: &Call,
    rows: &Rows,
    heads: usize,
    first: usize,
    range: Range<usize>,
    queries: &[f32],
    (k, v): (*const K, *const K),
    scores: &mut [f32],
    widened: &mut [f32],
) {
    let (hd, padded) = (call.operands.head_dim, call.geometry.padded);
    // Whole vectors of f32 are multiplied where they lie.
    let direct = const { size_of::<K>() == size_of::<f32>() } && hd.is_multiple_of(S::LANES);
    let keys = range.end;
    // Where the keys of a vector are; the last one again where there are fewer, which `hide` overwrites.
    let vector = |j: usize| {
        let mut places = [0; MAX_LANES];
        for (lane, place) in places.iter_mut().enumerate().take(S::LANES) {
            *place = call.operands.k_at(&rows.seq, rows.head, first + (j + lane).min(keys - 1));
        }
        places
    };
    let mut j = range.start / S::LANES * S::LANES;
    let mut next = (j < keys).then(|| vector(j));
    while let Some(places) = next {
        next = (j + S::LANES < keys).then(|| vector(j + S::LANES));
        // Behind the last keys the first values are read.
        let mut coming = match next {
            Some(next) => Coming::new(k, call.operands.k_heads_apart(), heads, next, S::LANES),
            None => {
                let mut values = [0; MAX_LANES];
                for (lane, place) in values.iter_mut().enumerate().take(S::LANES.min(keys - range.start)) {
                    *place = call.operands.v_at(&rows.seq, rows.head, first + range.start + lane);
                }
                Coming::new(v, call.operands.v_heads_apart(), heads, values, S::LANES.min(keys - range.start))
            }
        };
        for head in 0..heads {
            let of_head = k.wrapping_add(head * call.operands.k_heads_apart());
            if !direct {
                for (lane, &place) in places.iter().enumerate().take(S::LANES) {
                    // SAFETY: a key of the sequence; rows of `widened` are padded to whole vectors.
                    unsafe { widen(s, of_head.add(place), hd, widened.as_mut_ptr().add(lane * padded)) };
                }
            }
            let mut scales = [1.0; MAX_LANES];
            if K::SCALED {
                for (scale, &place) in scales.iter_mut().zip(&places).take(S::LANES) {
                    // SAFETY: a key of the sequence.
                    *scale = unsafe { K::scale(of_head.add(place), hd) };
                }
            }
            for r in head * rows.count..(head + 1) * rows.count {
                coming.ask(s, hd, S::LANES.div_ceil(rows.count));
                // SAFETY: within the padded rows and the keys.
                unsafe {
                    let query = queries.as_ptr().add(r * padded);
                    let to = scores.as_mut_ptr().add(r * CUT + j);
                    let sums = if direct {
                        dots(s, query, hd, |lane| of_head.add(places[lane]).cast())
                    } else {
                        dots(s, query, hd, |lane| widened.as_ptr().add(lane * padded))
                    };
                    s.store(to, if K::SCALED { s.mul(sums, s.load(scales.as_ptr())) } else { sums });
                }
            }
        }
        j += S::LANES;
    }
}

/// Products of a query with the key of each lane.
///
/// # Safety
/// All hold `hd` values, or are padded to whole vectors.
#[inline(always)]
unsafe fn dots<S: Simd>(s: S, query: *const f32, hd: usize, key: impl Fn(usize) -> *const f32) -> S::V {
    let mut sums = [s.zero(); MAX_LANES];
    // SAFETY: as the caller vouches.
    unsafe {
        for d in (0..hd).step_by(S::LANES) {
            let x = s.load(query.add(d));
            for (lane, sum) in sums.iter_mut().enumerate().take(S::LANES) {
                *sum = s.fma(x, s.load(key(lane).add(d)), *sum);
            }
        }
        s.transpose(sums.as_mut_ptr());
    }
    let mut width = S::LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] = s.add(sums[i], sums[i + width]);
        }
        width /= 2;
    }
    sums[0]
}

/// `hd` values as f32, zeros behind them up to whole vectors.
///
/// # Safety
/// They are readable, and as many whole vectors writable.
#[inline(always)]
unsafe fn widen<S: Simd, K: Elem>(s: S, from: *const K, hd: usize, to: *mut f32) {
    for d in (0..hd).step_by(S::LANES) {
        let n = (hd - d).min(S::LANES);
        // SAFETY: as the caller vouches.
        unsafe {
            let x = if n == S::LANES { K::load(s, from.add(d)) } else { K::load_n(s, from.add(d), n) };
            s.store(to.add(d), x);
        }
    }
}

/// Rows of keys or values that are read soon. They are asked for in the order of their addresses and a few lines at a time, so
/// that the memory is never idle and the core's own loads need not wait.
struct Coming<K> {
    base: *const K,
    /// Elements from one head of a row to the next.
    apart: usize,
    heads: usize,
    rows: [usize; MAX_LANES],
    count: usize,
    /// Row and head that come next.
    row: usize,
    head: usize,
}

impl<K> Coming<K> {
    #[inline(always)]
    fn new(base: *const K, apart: usize, heads: usize, rows: [usize; MAX_LANES], count: usize) -> Self {
        Self { base, apart, heads, rows, count: count.min(MAX_LANES), row: 0, head: 0 }
    }

    /// Asks for the lines of so many more heads of rows.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, s: S, hd: usize, heads: usize) {
        for _ in 0..heads {
            if self.row == self.count {
                return;
            }
            let from = self.base.wrapping_add(self.rows[self.row] + self.head * self.apart);
            (0..hd).step_by(64 / size_of::<K>()).for_each(|d| s.prefetch(from.wrapping_add(d)));
            self.head += 1;
            if self.head == self.heads {
                (self.row, self.head) = (self.row + 1, 0);
            }
        }
    }
}

/// Sets the scores of keys that a row does not see, and those behind the last, to minus infinity.
#[inline(always)]
pub(super) fn hide(seen: Range<usize>, first: usize, keys: usize, scores: &mut [f32]) {
    let at = |key: usize| key.saturating_sub(first).min(keys);
    scores[..at(seen.start)].fill(f32::NEG_INFINITY);
    scores[at(seen.end)..].fill(f32::NEG_INFINITY);
}

/// Replaces scores by their weights; gives the largest score and the sum of the weights.
///
/// # Safety
/// `scores` holds whole vectors.
#[inline(always)]
pub(super) unsafe fn weigh<S: Simd>(s: S, cap: f32, scores: &mut [f32]) -> (f32, f32) {
    let mut peaks = s.splat(f32::MIN);
    // SAFETY: whole vectors.
    unsafe {
        for j in (0..scores.len()).step_by(S::LANES) {
            let at = scores.as_mut_ptr().add(j);
            let mut score = s.load(at);
            if cap > 0.0 {
                // What is hidden stays so.
                let hidden = s.le(score, s.splat(f32::NEG_INFINITY));
                score = s.select(hidden, score, s.mul(math::tanh(s, score), s.splat(cap)));
                s.store(at, score);
            }
            peaks = s.max(score, peaks);
        }
        let most = s.max_lane(peaks);
        let peak = s.splat(most);
        let mut sums = s.zero();
        for j in (0..scores.len()).step_by(S::LANES) {
            let at = scores.as_mut_ptr().add(j);
            let p = exp2(s, s.sub(s.load(at), peak));
            sums = s.add(sums, p);
            s.store(at, p);
        }
        (most, s.sum(sums))
    }
}

/// Multiplies the weights of the values from `first` on that `range` counts by the scales of these, where they have such.
///
/// # Safety
/// The values are values of the sequence.
#[inline(always)]
pub(super) unsafe fn scale_weights<K: Row>(
    call: &Call,
    rows: &Rows,
    heads: usize,
    first: usize,
    range: Range<usize>,
    v: *const K,
    weights: &mut [f32],
) {
    if !K::SCALED {
        return;
    }
    let hd = call.operands.head_dim;
    for j in range {
        let place = call.operands.v_at(&rows.seq, rows.head, first + j);
        for head in 0..heads {
            // SAFETY: a value of the sequence.
            let scale = unsafe { K::scale(v.add(place + head * call.operands.v_heads_apart()), hd) };
            for r in head * rows.count..(head + 1) * rows.count {
                weights[r * CUT + j] *= scale;
            }
        }
    }
}

/// Weighted sums of the values from `first` on that `range` counts, for each row of each head. `after` keys follow the last of them.
///
/// # Safety
/// The values are values of the sequence; `results` has a row of `padded` for each row.
#[inline(always)]
pub(super) unsafe fn sum_values<S: Simd, K: Row>(
    s: S,
    call: &Call,
    rows: &Rows,
    heads: usize,
    first: usize,
    range: Range<usize>,
    after: usize,
    weights: &[f32],
    (k, v): (*const K, *const K),
    results: *mut f32,
) {
    let (hd, padded) = (call.operands.head_dim, call.geometry.padded);
    // SAFETY: as the caller vouches.
    unsafe { std::slice::from_raw_parts_mut(results, heads * rows.count * padded) }.fill(0.0);
    let keys = range.end;
    let strip = |start: usize, count: usize| {
        let mut places = [0; STRIP];
        for (i, place) in places.iter_mut().enumerate().take(count) {
            *place = call.operands.v_at(&rows.seq, rows.head, start + i);
        }
        places
    };
    let mut have = range.len().min(STRIP);
    let mut next = strip(first + range.start, have);
    for j in range.step_by(STRIP) {
        let places = next;
        let more = (keys - j - have).min(STRIP);
        // Behind the last values the keys of the next cut are read.
        let mut coming = match more {
            0 => {
                let mut keys_after = [0; STRIP];
                for (i, place) in keys_after.iter_mut().enumerate().take(after) {
                    *place = call.operands.k_at(&rows.seq, rows.head, first + keys + i);
                }
                Coming::new(k, call.operands.k_heads_apart(), heads, keys_after, after)
            }
            _ => {
                next = strip(first + j + STRIP, more);
                Coming::new(v, call.operands.v_heads_apart(), heads, next, more)
            }
        };
        for head in 0..heads {
            let of_head = v.wrapping_add(head * call.operands.v_heads_apart());
            let values = places.map(|place| of_head.wrapping_add(place));
            let weights = weights[head * rows.count * CUT..].as_ptr().wrapping_add(j);
            // SAFETY: as the caller vouches.
            unsafe {
                let results = results.add(head * rows.count * padded);
                add_strip(s, &values[..have], &mut coming, hd, rows.count, weights, results, padded);
            }
        }
        have = more;
    }
}

/// Adds the weighted values of a strip to the rows of a head.
///
/// # Safety
/// The values are readable, weights and results have `count` rows.
#[inline(always)]
unsafe fn add_strip<S: Simd, K: Elem>(
    s: S,
    values: &[*const K],
    coming: &mut Coming<K>,
    hd: usize,
    count: usize,
    weights: *const f32,
    results: *mut f32,
    padded: usize,
) {
    let mut d = 0;
    while d < hd {
        let wide = hd - d >= 4 * S::LANES;
        let mut r = 0;
        while r < count {
            let left = count - r;
            // With the first rows of the first columns.
            let first = d == 0 && r == 0;
            // SAFETY: `r` and `d` are within weights and results.
            unsafe {
                let (weights, to) = (weights.add(r * CUT), results.add(r * padded + d));
                let n = (hd - d).min(S::LANES);
                match (wide, left) {
                    (true, 1) => strip::<S, K, 1, 4>(
                        s,
                        values,
                        first.then_some((&mut *coming, hd)),
                        d,
                        n,
                        weights,
                        to,
                        padded,
                    ),
                    (true, 2) => strip::<S, K, 2, 4>(
                        s,
                        values,
                        first.then_some((&mut *coming, hd)),
                        d,
                        n,
                        weights,
                        to,
                        padded,
                    ),
                    (true, _) if S::REGISTERS < 32 => strip::<S, K, 2, 4>(
                        s,
                        values,
                        first.then_some((&mut *coming, hd)),
                        d,
                        n,
                        weights,
                        to,
                        padded,
                    ),
                    (true, 3) => strip::<S, K, 3, 4>(
                        s,
                        values,
                        first.then_some((&mut *coming, hd)),
                        d,
                        n,
                        weights,
                        to,
                        padded,
                    ),
                    (true, _) => strip::<S, K, 4, 4>(
                        s,
                        values,
                        first.then_some((&mut *coming, hd)),
                        d,
                        n,
                        weights,
                        to,
                        padded,
                    ),
                    (false, 1) => strip::<S, K, 1, 1>(
                        s,
                        values,
                        first.then_some((&mut *coming, hd)),
                        d,
                        n,
                        weights,
                        to,
                        padded,
                    ),
                    (false, 2 | 3) => strip::<S, K, 2, 1>(
                        s,
                        values,
                        first.then_some((&mut *coming, hd)),
                        d,
                        n,
                        weights,
                        to,
                        padded,
                    ),
                    (false, _) => strip::<S, K, 4, 1>(
                        s,
                        values,
                        first.then_some((&mut *coming, hd)),
                        d,
                        n,
                        weights,
                        to,
                        padded,
                    ),
                }
            }
            r += match (wide, left) {
                (_, 1) => 1,
                (_, 2) => 2,
                (true, _) if S::REGISTERS < 32 => 2,
                (true, 3) => 3,
                (false, 3) => 2,
                _ => 4,
            };
        }
        d += if wide { 4 * S::LANES } else { S::LANES };
    }
}

/// `to[r] += sum_i weights[r, i] * values[i][d..]` for `R` rows and `V` vectors; with one vector, of its first `n` lanes.
///
/// # Safety
/// The values are readable, weights and results have `R` rows.
#[inline(always)]
unsafe fn strip<S: Simd, K: Elem, const R: usize, const V: usize>(
    s: S,
    values: &[*const K],
    mut coming: Option<(&mut Coming<K>, usize)>,
    d: usize,
    n: usize,
    weights: *const f32,
    to: *mut f32,
    padded: usize,
) {
    // SAFETY: as the caller vouches; results are padded to whole vectors.
    unsafe {
        let mut sums = [[s.zero(); V]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = s.load(to.add(r * padded + v * S::LANES));
            }
        }
        for (i, value) in values.iter().enumerate() {
            if let Some((coming, hd)) = &mut coming {
                coming.ask(s, *hd, 1);
            }
            let mut row = [s.zero(); V];
            for (v, x) in row.iter_mut().enumerate() {
                let from = value.add(d + v * S::LANES);
                *x = if V == 1 && n < S::LANES { K::load_n(s, from, n) } else { K::load(s, from) };
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let p = s.splat(*weights.add(r * CUT + i));
                for (sum, x) in sums.iter_mut().zip(&row) {
                    *sum = s.fma(p, *x, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                s.store(to.add(r * padded + v * S::LANES), *sum);
            }
        }
    }
}
