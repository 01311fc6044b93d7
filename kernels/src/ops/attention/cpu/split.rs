//! Attention of few queries over many keys, as in decoding.
//!
//! The keys of a sequence are cut at fixed places, so that a result depends neither on the threads nor on the other
//! sequences. A task reads the keys and then the values of one cut, once and in the order of addresses: all key heads of a few
//! keys, then those of the next. The last task of a sequence to end combines the parts in order.

use std::sync::atomic::{AtomicU32, Ordering};

use half::{bf16, f16};

use super::cut::{CUT, hide, products, scale_weights, sum_values, weigh};
use super::row::Row;
use super::softmax::exp2;
use super::tasks::{Call, Rows, Task};
use crate::cpu::CpuCx;
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{Kernel, MAX_LANES, Simd, StoreElem};
use crate::ops::attention::{Attention, AttentionKv};
use crate::spec::{DType, Element, KernelError};

/// Query rows of one key head that the kernel takes at most.
pub(super) const MOST_ROWS: usize = 64;
/// Query rows of one task, where it has more than one key head.
const TASK_ROWS: usize = 128;

pub(super) fn launch(op: &Attention, cx: &CpuCx) -> Result<(), KernelError> {
    let (AttentionKv::Packed { k, .. } | AttentionKv::Paged { k, .. }) = &op.kv;
    match (op.q.dtype(), k.dtype()) {
        (DType::BF16, DType::BF16) => run::<bf16, bf16>(op, cx),
        (DType::BF16, DType::F16) => run::<bf16, f16>(op, cx),
        (DType::BF16, DType::I8) => run::<bf16, i8>(op, cx),
        (DType::BF16, _) => run::<bf16, f32>(op, cx),
        (DType::F16, DType::BF16) => run::<f16, bf16>(op, cx),
        (DType::F16, DType::F16) => run::<f16, f16>(op, cx),
        (DType::F16, DType::I8) => run::<f16, i8>(op, cx),
        (DType::F16, _) => run::<f16, f32>(op, cx),
        (_, DType::BF16) => run::<f32, bf16>(op, cx),
        (_, DType::F16) => run::<f32, f16>(op, cx),
        (_, DType::I8) => run::<f32, i8>(op, cx),
        _ => run::<f32, f32>(op, cx),
    }
}

fn run<X: StoreElem + Element, K: Row + Element>(op: &Attention, cx: &CpuCx) -> Result<(), KernelError> {
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
    let most_rows =
        (0..operands.seqs()).map(|index| operands.seq(index).q_len).max().unwrap_or(0) * operands.group;
    let heads = operands.heads_kv;
    let cuts = (0..operands.seqs()).map(|index| cuts_of(index).len()).sum::<usize>();
    // Key heads of a task: many, but no fewer tasks than threads. Results do not depend on it.
    let each = (TASK_ROWS / most_rows.max(1)).min(cuts * heads / cx.pool.threads()).clamp(1, heads.max(1));
    let count = cuts * heads.div_ceil(each);
    // Of each part: maximum and sum of each row, then its unscaled results.
    let part = each * most_rows * (padded + 2);
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
        for head in (0..heads).step_by(each) {
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
    cx.pool.run_apart(count, |index, worker| {
        let task = &tasks[index];
        let seq = call.operands.seq(task.seq as usize);
        let rows = Rows { seq, head: task.head as usize, first: 0, count: seq.q_len * call.operands.group };
        let heads = each.min(heads - rows.head);
        let scratch = worker.scratch.slice::<f32>(heads * rows.count * (CUT + padded) + MAX_LANES * padded);
        call.isa.run(Cut::<X, K> {
            call: &call,
            rows,
            heads,
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
    /// Those of the first key head.
    rows: Rows,
    heads: usize,
    task: &'a Task,
    parts: &'a Parts,
    scratch: &'a mut [f32],
    q: *const X,
    k: *const K,
    v: *const K,
    out: *mut X,
}

impl<X: StoreElem, K: Row> Kernel for Cut<'_, X, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, rows, heads, task, parts, scratch, q, k, v, out } = self;
        let (operands, padded) = (&call.operands, call.geometry.padded);
        let (hd, total) = (operands.head_dim, heads * rows.count);
        let (queries, scratch) = scratch.split_at_mut(total * padded);
        let (scores, widened) = scratch.split_at_mut(total * CUT);
        let first = task.start as usize;
        // Keys that no row sees, at the beginning and the end of the cut, are left out: their values may be NaN.
        let hull = rows.hull(operands);
        let keys = hull.end.saturating_sub(first).min(CUT);
        let unseen = hull.start.saturating_sub(first).min(keys);

        // SAFETY: the part is this task's own, and has `total` maxima, sums and rows of results.
        let part = unsafe { parts.base.add((task.base + task.part) as usize * parts.part) };
        // SAFETY: as above.
        let results = unsafe { part.add(2 * total) };
        for (r, query) in queries.chunks_exact_mut(padded.max(1)).enumerate() {
            let (rows, r) = (rows.of_head(r / rows.count), r % rows.count);
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
            products(s, call, &rows, heads, first, unseen..keys, queries, (k, v), scores, widened);
            for r in 0..total {
                let scores = &mut scores[r * CUT..][..keys.next_multiple_of(S::LANES)];
                hide(rows.visible(operands, r % rows.count), first, keys, scores);
                let (most, sum) = weigh(s, call.cap, scores);
                part.add(r).write(most);
                part.add(total + r).write(sum);
            }
            scale_weights(call, &rows, heads, first, unseen..keys, v, scores);
            let after = hull.end.saturating_sub(first + keys).min(MAX_LANES);
            sum_values(s, call, &rows, heads, first, unseen..keys, after, scores, (k, v), results);
        }

        if task.parts > 1 {
            // SAFETY: one counter for each sequence and heads, at the index of their first part.
            let done = unsafe { AtomicU32::from_ptr(parts.counters.add(task.base as usize)) };
            if done.fetch_add(1, Ordering::AcqRel) + 1 < task.parts {
                return;
            }
        }
        // SAFETY: all parts of this sequence and heads are written, and nobody else reads or writes them now.
        unsafe { combine(s, call, &rows, heads, parts, task, out) };
    }
}

/// Adds the parts of one sequence and its heads in order, and writes the result.
///
/// # Safety
/// All parts are written; this thread alone has them and these rows of the result.
#[inline(always)]
unsafe fn combine<S: Simd, X: StoreElem>(
    s: S,
    call: &Call,
    rows: &Rows,
    heads: usize,
    parts: &Parts,
    task: &Task,
    out: *mut X,
) {
    let (operands, padded, count) = (&call.operands, call.geometry.padded, heads * rows.count);
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
            let to = out.add(rows.of_head(r / rows.count).at(operands, operands.out, r % rows.count));
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
