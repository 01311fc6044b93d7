//! Attention of few queries over many keys, as in decoding.
//!
//! The keys of a sequence are cut at fixed places, so that a result depends neither on the threads nor on the other
//! sequences. A task streams the keys and then the values of one cut once, for all query rows of the key head; the last
//! task of a sequence and head to end combines the parts in order.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use half::{bf16, f16};

use super::softmax::exp2;
use super::tasks::{Call, Rows, Task};
use crate::cpu::CpuCx;
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{Elem, Kernel, MAX_LANES, Simd, StoreElem, math};
use crate::ops::attention::{Attention, AttentionKv};
use crate::spec::{DType, Element, KernelError};

/// Keys of one task.
const CUT: usize = 256;
/// Values that are accumulated before the sums are stored: their rows stay in the first-level cache between heads.
const STRIP: usize = 32;
/// Query rows of one key head that the kernel takes at most.
pub(super) const MOST_ROWS: usize = 64;

pub(super) fn launch(op: &Attention, cx: &CpuCx) -> Result<(), KernelError> {
    let (AttentionKv::Packed { k, .. } | AttentionKv::Paged { k, .. }) = &op.kv;
    match (op.q.dtype(), k.dtype()) {
        (DType::BF16, DType::BF16) => run::<bf16, bf16>(op, cx),
        (DType::BF16, DType::F16) => run::<bf16, f16>(op, cx),
        (DType::BF16, _) => run::<bf16, f32>(op, cx),
        (DType::F16, DType::BF16) => run::<f16, bf16>(op, cx),
        (DType::F16, DType::F16) => run::<f16, f16>(op, cx),
        (DType::F16, _) => run::<f16, f32>(op, cx),
        (_, DType::BF16) => run::<f32, bf16>(op, cx),
        (_, DType::F16) => run::<f32, f16>(op, cx),
        _ => run::<f32, f32>(op, cx),
    }
}

fn run<X: StoreElem + Element, K: Elem + Element>(op: &Attention, cx: &CpuCx) -> Result<(), KernelError> {
    let call = Call::new(op, cx)?;
    let (operands, padded) = (&call.operands, call.geometry.padded);
    // Cuts with a key that any query sees; one at least, which writes the result.
    let cuts_of = |index: usize| {
        let seq = operands.seq(index);
        if seq.q_len == 0 {
            return 0..0;
        }
        let hull = Rows { seq, head: 0, first: 0, count: seq.q_len * operands.group }.hull(operands);
        let first = hull.start / CUT;
        first..hull.end.div_ceil(CUT).max(first + 1)
    };
    let heads = operands.heads_kv;
    let count: usize = (0..operands.seqs()).map(|index| cuts_of(index).len()).sum::<usize>() * heads;
    let most_rows =
        (0..operands.seqs()).map(|index| operands.seq(index).q_len).max().unwrap_or(0) * operands.group;
    // Of each part: maximum and sum of each row, then its unscaled results.
    let part = most_rows * (padded + 2);
    let mut scratch = Scratch::new();
    let memory = scratch.bytes(count * (size_of::<Task>() + size_of::<u32>() + part * size_of::<f32>()) + 64);
    let (parts, memory) = memory.split_at_mut(count * part * size_of::<f32>());
    let (tasks, memory) = memory.split_at_mut(count * size_of::<Task>());
    let tasks: &mut [Task] = if count == 0 { &mut [] } else { bytemuck::cast_slice_mut(tasks) };
    let counters = &mut memory[..count * size_of::<u32>()];
    counters.fill(0);

    let mut at = 0;
    for index in 0..operands.seqs() {
        let cuts = cuts_of(index);
        for head in 0..heads {
            for (part, cut) in cuts.clone().enumerate() {
                tasks[at + part] = Task {
                    cost: 0,
                    seq: index as u32,
                    head: head as u32,
                    start: (cut * CUT) as u32,
                    part: part as u32,
                    parts: cuts.len() as u32,
                    base: at as u32,
                };
            }
            at += cuts.len();
        }
    }
    let tasks = &*tasks;
    let shared = Parts { base: parts.as_mut_ptr().cast(), part, counters: counters.as_mut_ptr().cast() };
    cx.pool.run(count, |index, worker| {
        let task = &tasks[index];
        let seq = call.operands.seq(task.seq as usize);
        let count = seq.q_len * call.operands.group;
        let rows = Rows { seq, head: task.head as usize, first: 0, count };
        let scratch = worker.scratch.slice::<f32>(count * (CUT + padded) + MAX_LANES * padded);
        call.isa.run(Cut::<X, K> {
            call: &call,
            rows: &rows,
            task,
            parts: &shared,
            scratch,
            q: call.q.cast(),
            k: call.k.cast(),
            v: call.v.cast(),
            out: call.out.cast(),
        });
    });
    Ok(())
}

/// Results of cuts, for the task that combines them.
struct Parts {
    base: *mut f32,
    /// Values of one part.
    part: usize,
    counters: *mut u32,
}

// SAFETY: each task writes its own part; the counter of a sequence and head orders those writes before the combination.
unsafe impl Sync for Parts {}

struct Cut<'a, X, K> {
    call: &'a Call<'a>,
    rows: &'a Rows,
    task: &'a Task,
    parts: &'a Parts,
    scratch: &'a mut [f32],
    q: *const X,
    k: *const K,
    v: *const K,
    out: *mut X,
}

impl<X: StoreElem, K: Elem> Kernel for Cut<'_, X, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, rows, task, parts, scratch, q, k, v, out } = self;
        let (operands, padded, count) = (&call.operands, call.geometry.padded, rows.count);
        let hd = operands.head_dim;
        let (queries, scratch) = scratch.split_at_mut(count * padded);
        let (scores, widened) = scratch.split_at_mut(count * CUT);
        let first = task.start as usize;
        // Keys that no row sees, at the beginning and the end of the cut, are left out: their values may be NaN.
        let hull = rows.hull(operands);
        let keys = hull.end.saturating_sub(first).min(CUT);
        let unseen = hull.start.saturating_sub(first).min(keys);

        // SAFETY: the part is this task's own, and has `count` maxima, sums and rows of results.
        let part = unsafe { parts.base.add((task.base + task.part) as usize * parts.part) };
        // SAFETY: as above.
        let results = unsafe { part.add(2 * count) };
        for (r, query) in queries.chunks_exact_mut(padded.max(1)).enumerate() {
            query.fill(0.0);
            for d in (0..hd).step_by(S::LANES) {
                let n = (hd - d).min(S::LANES);
                // SAFETY: a row of the op.
                unsafe {
                    let x = X::load_n(s, q.add(rows.at(operands, operands.q, r) + d), n);
                    s.store_n(query.as_mut_ptr().add(d), s.mul(x, s.splat(call.factor)), n);
                }
            }
        }
        // SAFETY: keys and values of the sequence; buffers of the sizes that `launch` gives.
        unsafe {
            products(s, call, rows, first, unseen..keys, queries, k, scores, widened);
            for r in 0..count {
                let scores = &mut scores[r * CUT..][..keys.next_multiple_of(S::LANES)];
                hide(rows.visible(operands, r), first, keys, scores);
                let (most, sum) = weigh(s, call.cap, scores);
                part.add(r).write(most);
                part.add(count + r).write(sum);
            }
            sum_values(s, call, rows, first, unseen..keys, scores, v, results);
        }

        if task.parts > 1 {
            // SAFETY: one counter for each sequence and head, at the index of its first part.
            let done = unsafe { AtomicU32::from_ptr(parts.counters.add(task.base as usize)) };
            if done.fetch_add(1, Ordering::AcqRel) + 1 < task.parts {
                return;
            }
        }
        // SAFETY: all parts of this sequence and head are written, and nobody else reads or writes them now.
        unsafe { combine(s, call, rows, parts, task, out) };
    }
}

/// Scores of the keys from `first` on for each row, in rows of [`CUT`]; of those that `range` counts, and of some before it.
///
/// # Safety
/// The keys are keys of the sequence; `queries` has rows of `padded`, `widened` room for a vector of keys.
#[inline(always)]
unsafe fn products<S: Simd, K: Elem>(
    s: S,
    call: &Call,
    rows: &Rows,
    first: usize,
    range: Range<usize>,
    queries: &[f32],
    k: *const K,
    scores: &mut [f32],
    widened: &mut [f32],
) {
    let (hd, padded) = (call.operands.head_dim, call.geometry.padded);
    let line = 64 / size_of::<K>();
    let keys = range.end;
    for j in (range.start / S::LANES * S::LANES..keys).step_by(S::LANES) {
        let have = (keys - j).min(S::LANES);
        for lane in 0..have {
            // SAFETY: a key of the sequence; rows of `widened` are padded to whole vectors.
            unsafe {
                let from = k.add(call.operands.k_at(&rows.seq, rows.head, first + j + lane));
                let to = widened.as_mut_ptr().add(lane * padded);
                for d in (0..hd).step_by(S::LANES) {
                    let n = (hd - d).min(S::LANES);
                    s.store(
                        to.add(d),
                        if n == S::LANES { K::load(s, from.add(d)) } else { K::load_n(s, from.add(d), n) },
                    );
                }
            }
            let ahead = j + lane + 2 * S::LANES;
            if ahead < keys {
                let from = k.wrapping_add(call.operands.k_at(&rows.seq, rows.head, first + ahead));
                (0..hd).step_by(line).for_each(|d| s.prefetch(from.wrapping_add(d)));
            }
        }
        for r in 0..rows.count {
            let mut sums = [s.zero(); MAX_LANES];
            // SAFETY: within the padded rows; lanes beyond `have` repeat stale rows and are overwritten by `hide`.
            unsafe {
                let query = queries.as_ptr().add(r * padded);
                for d in (0..hd).step_by(S::LANES) {
                    let x = s.load(query.add(d));
                    for (lane, sum) in sums.iter_mut().enumerate().take(S::LANES) {
                        *sum = s.fma(x, s.load(widened.as_ptr().add(lane * padded + d)), *sum);
                    }
                }
                s.transpose(sums.as_mut_ptr());
                let mut width = S::LANES / 2;
                while width > 0 {
                    for i in 0..width {
                        sums[i] = s.add(sums[i], sums[i + width]);
                    }
                    width /= 2;
                }
                s.store(scores.as_mut_ptr().add(r * CUT + j), sums[0]);
            }
        }
    }
}

/// Sets the scores of keys that a row does not see, and those behind the last, to minus infinity.
#[inline(always)]
fn hide(seen: Range<usize>, first: usize, keys: usize, scores: &mut [f32]) {
    let at = |key: usize| key.saturating_sub(first).min(keys);
    scores[..at(seen.start)].fill(f32::NEG_INFINITY);
    scores[at(seen.end)..].fill(f32::NEG_INFINITY);
}

/// Replaces scores by their weights; gives the largest score and the sum of the weights.
///
/// # Safety
/// `scores` holds whole vectors.
#[inline(always)]
unsafe fn weigh<S: Simd>(s: S, cap: f32, scores: &mut [f32]) -> (f32, f32) {
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

/// Weighted sums of the values from `first` on that `range` counts, for each row.
///
/// # Safety
/// The values are values of the sequence; `results` has a row of `padded` for each row.
#[inline(always)]
unsafe fn sum_values<S: Simd, K: Elem>(
    s: S,
    call: &Call,
    rows: &Rows,
    first: usize,
    range: Range<usize>,
    weights: &[f32],
    v: *const K,
    results: *mut f32,
) {
    let (hd, padded) = (call.operands.head_dim, call.geometry.padded);
    let line = 64 / size_of::<K>();
    // SAFETY: as the caller vouches.
    unsafe { std::slice::from_raw_parts_mut(results, rows.count * padded) }.fill(0.0);
    let keys = range.end;
    for j in range.step_by(STRIP) {
        let have = (keys - j).min(STRIP);
        let mut values = [v; STRIP];
        for (i, value) in values.iter_mut().enumerate().take(have) {
            // SAFETY: a value of the sequence.
            *value = unsafe { v.add(call.operands.v_at(&rows.seq, rows.head, first + j + i)) };
            if j + STRIP + i < keys {
                let from = v.wrapping_add(call.operands.v_at(&rows.seq, rows.head, first + j + STRIP + i));
                (0..hd).step_by(line).for_each(|d| s.prefetch(from.wrapping_add(d)));
            }
        }
        let values = &values[..have];
        let mut d = 0;
        while d < hd {
            let wide = hd - d >= 4 * S::LANES;
            let mut r = 0;
            while r < rows.count {
                let left = rows.count - r;
                // SAFETY: `r` and `d` are within weights and results.
                unsafe {
                    let (weights, to) = (weights.as_ptr().add(r * CUT + j), results.add(r * padded + d));
                    let n = (hd - d).min(S::LANES);
                    match (wide, left) {
                        (true, 1) => strip::<S, K, 1, 4>(s, values, d, n, weights, to, padded),
                        (true, 2) => strip::<S, K, 2, 4>(s, values, d, n, weights, to, padded),
                        (true, _) if S::REGISTERS < 32 => {
                            strip::<S, K, 2, 4>(s, values, d, n, weights, to, padded)
                        }
                        (true, 3) => strip::<S, K, 3, 4>(s, values, d, n, weights, to, padded),
                        (true, _) => strip::<S, K, 4, 4>(s, values, d, n, weights, to, padded),
                        (false, 1) => strip::<S, K, 1, 1>(s, values, d, n, weights, to, padded),
                        (false, 2 | 3) => strip::<S, K, 2, 1>(s, values, d, n, weights, to, padded),
                        (false, _) => strip::<S, K, 4, 1>(s, values, d, n, weights, to, padded),
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
}

/// `to[r] += sum_i weights[r, i] * values[i][d..]` for `R` rows and `V` vectors; with one vector, of its first `n` lanes.
///
/// # Safety
/// The values are readable, weights and results have `R` rows.
#[inline(always)]
unsafe fn strip<S: Simd, K: Elem, const R: usize, const V: usize>(
    s: S,
    values: &[*const K],
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

/// Adds the parts of one sequence and head in order, and writes the result.
///
/// # Safety
/// All parts are written; this thread alone has them and these rows of the result.
#[inline(always)]
unsafe fn combine<S: Simd, X: StoreElem>(
    s: S,
    call: &Call,
    rows: &Rows,
    parts: &Parts,
    task: &Task,
    out: *mut X,
) {
    let (operands, padded, count) = (&call.operands, call.geometry.padded, rows.count);
    let scratch = &mut Scratch::new();
    let factors = scratch.slice::<f32>(task.parts as usize);
    // SAFETY: as the caller vouches.
    unsafe {
        let part = |index: usize| parts.base.add((task.base as usize + index) * parts.part);
        for r in 0..count {
            let most = (0..task.parts as usize).map(|i| *part(i).add(r)).fold(f32::MIN, f32::max);
            let mut total = 0.0;
            for (i, factor) in factors.iter_mut().enumerate() {
                let weight = s.max_lane(exp2(s, s.splat(*part(i).add(r) - most)));
                *factor = weight;
                total += weight * *part(i).add(count + r);
            }
            // A row that sees no key is zero.
            let inverse = s.splat(if total > 0.0 || total.is_nan() { 1.0 / total } else { 0.0 });
            let to = out.add(rows.at(operands, operands.out, r));
            for d in (0..operands.head_dim).step_by(S::LANES) {
                let n = (operands.head_dim - d).min(S::LANES);
                let mut sum = s.zero();
                for (i, factor) in factors.iter().enumerate() {
                    let result = s.load(part(i).add(2 * count + r * padded + d));
                    sum = s.fma(s.splat(*factor), result, sum);
                }
                X::store_n(s, to.add(d), s.mul(sum, inverse), n);
            }
        }
    }
}
