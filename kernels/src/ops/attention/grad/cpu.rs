//! CPU kernel: five products for each block of query rows, rows along the lanes as in the forward kernel.
//!
//! A task has rows of one key head of one sequence: its keys and values are packed once, without gaps. For each block of rows:
//!
//! ```text
//! scores [keys, rows] = K [keys, d] * Q^T [d, rows]        dP [keys, rows] = V [keys, d] * dO^T [d, rows]
//! P = softmax of the scores                                dS = P * (dP - sum P dP) * scale
//! dV [keys, d] += P [keys, rows] * dO [rows, d]            dK [keys, d] += dS [keys, rows] * Q [rows, d]
//! dQ^T [d, rows] = K^T [d, keys] * dS [keys, rows]
//! ```
//!
//! All are one micro-kernel that broadcasts elements of its first factor, so that nothing but rows of queries is transposed.
//! The gradients of keys and values are sums of parts, which have the same rows however many threads there are: a task has all parts of
//! a head and adds them up one by one, or, where that would leave threads without work, each part is a task with sums of its own, added up
//! in the same order when all are done.

use std::ops::Range;

use super::AttentionGrad;
use crate::buffer::View;
use crate::cpu::pool::Worker;
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{Kernel, MAX_LANES, Simd, math};
use crate::cpu::{CpuCx, CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::attention::AttentionKv;
use crate::ops::attention::cpu::operands::{Operands, Seq, Strides};
use crate::ops::attention::cpu::softmax::exp2;
use crate::ops::attention::cpu::tasks::Rows;
use crate::select::Variant;
use crate::spec::KernelError;

/// Query rows of a block: whole vectors and whole micro-tiles of every level.
const BLOCK: usize = 48;
/// Keys that add to the gradients of a block's queries at a time: their scores stay in the first-level cache.
const KEYS: usize = 128;
/// Rows of a part at least.
const PART: usize = 8 * BLOCK;
/// Parts of a head of a sequence at most.
const MOST_PARTS: usize = 8;
/// Most f32 values of sums that parts have for themselves.
const MOST_SUMS: usize = 64 << 20;
/// Keys whose sums are added up at a time.
const ADDED: usize = 64;
/// Rows of any micro-tile at most.
const MOST_TILE: usize = 8;

impl CpuOp for AttentionGrad {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "blocks", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

/// One op, resolved: what every task reads.
struct Call<'a> {
    operands: Operands<'a>,
    q: *const f32,
    k: *const f32,
    v: *const f32,
    d_out: *const f32,
    /// With token and head strides.
    dq: Option<(*mut f32, (usize, usize))>,
    dk: Option<(*mut f32, Strides)>,
    dv: Option<(*mut f32, Strides)>,
    /// Strides of keys and values.
    of_k: Strides,
    of_v: Strides,
    /// Factor of the queries: scores come out in powers of two, or as arguments of the tanh of a softcap.
    factor: f32,
    /// Factor of that tanh, in powers of two; 0 without a softcap.
    cap: f32,
    scale: f32,
    /// Elements of a packed row: whole vectors and micro-tiles of every level.
    padded: usize,
}

// SAFETY: tasks add to different rows of `dq`, and to different keys of `dk` and `dv` (`launch` sees to it); the rest is only read.
unsafe impl Sync for Call<'_> {}

/// A head of a sequence, or one part of it.
#[derive(Clone)]
struct Task {
    seq: usize,
    head: usize,
    parts: Range<usize>,
    /// From the first to the last that its rows see.
    keys: usize,
    cost: u64,
    /// Where the sums of its only part are, if they are not added to the gradients at once.
    sums: Option<usize>,
}

/// Memory for the sums of parts, which each task writes its own share of.
#[derive(Clone, Copy)]
struct Sums(*mut f32);

// SAFETY: as the contract says.
unsafe impl Send for Sums {}
// SAFETY: as above.
unsafe impl Sync for Sums {}

impl<'a> Call<'a> {
    /// `forward` is the op's own.
    fn new(op: &'a AttentionGrad, forward: &'a super::Attention, cx: &CpuCx) -> Result<Self, KernelError> {
        let operands = Operands::new(forward, cx).map_err(|error| match error {
            KernelError::Index { what, index, limit, .. } => {
                KernelError::Index { op: AttentionGrad::NAME, what, index, limit }
            }
            other => other,
        })?;
        let (AttentionKv::Packed { k, v, .. } | AttentionKv::Paged { k, v, .. }) = &op.kv;
        let of_keys = |view: &Option<View>| match view {
            Some(view) => Ok::<_, KernelError>(Some((cx.output::<f32>(view)?, Strides::of(view)))),
            None => Ok(None),
        };
        let log2_e = std::f32::consts::LOG2_E;
        let (factor, cap) = match op.softcap > 0.0 {
            true => (op.scale / op.softcap, op.softcap * log2_e),
            false => (op.scale * log2_e, 0.0),
        };
        Ok(Self {
            q: cx.input::<f32>(&op.q)?,
            k: cx.input::<f32>(k)?,
            v: cx.input::<f32>(v)?,
            d_out: cx.input::<f32>(&op.d_out)?,
            dq: match &op.dq {
                Some(dq) => Some((cx.output::<f32>(dq)?, (dq.stride(0), dq.stride(1)))),
                None => None,
            },
            dk: of_keys(&op.dk)?,
            dv: of_keys(&op.dv)?,
            of_k: Strides::of(k),
            of_v: Strides::of(v),
            factor,
            cap,
            scale: op.scale,
            // Micro-tiles have 6 or 8 rows.
            padded: operands.head_dim.next_multiple_of(24).next_multiple_of(MAX_LANES),
            operands,
        })
    }

    /// Whether scores get a gradient.
    fn of_scores(&self) -> bool {
        self.dq.is_some() || self.dk.is_some()
    }

    /// Rows of each part of a sequence, and the number of parts.
    fn cut(&self, seq: &Seq) -> (usize, usize) {
        let rows = seq.q_len * self.operands.group;
        let each = rows.div_ceil(MOST_PARTS).max(PART).next_multiple_of(BLOCK);
        (each, rows.div_ceil(each))
    }

    /// Rows of parts of a head.
    fn rows(&self, seq: Seq, head: usize, parts: &Range<usize>) -> Rows {
        let (each, _) = self.cut(&seq);
        let (first, all) = (parts.start * each, seq.q_len * self.operands.group);
        Rows { seq, head, first, count: all.min(parts.end * each) - first }
    }

    /// Values of the sums of a part that sees so many keys.
    fn sums(&self, keys: usize) -> [usize; 2] {
        let of = |wanted: bool| if wanted { (keys + MOST_TILE) * self.padded } else { 0 };
        [of(self.dk.is_some()), of(self.dv.is_some())]
    }
}

fn launch(op: &AttentionGrad, cx: &CpuCx) -> Result<(), KernelError> {
    let forward = op.forward();
    let call = &Call::new(op, &forward, cx)?;
    let operands = &call.operands;
    if operands.head_dim == 0 || (!call.of_scores() && call.dv.is_none()) {
        return Ok(());
    }
    let task = |seq: usize, head: usize, parts: Range<usize>| {
        let rows = (!parts.is_empty()).then(|| call.rows(operands.seq(seq), head, &parts));
        let (keys, rows) = rows.map_or((0, 0), |rows| (rows.hull(operands).len(), rows.count));
        Task { seq, head, parts, keys, cost: (keys * rows) as u64, sums: None }
    };
    let of_head =
        |head: usize| (0..operands.seqs()).map(move |seq| task(seq, head, 0..call.cut(&operands.seq(seq)).1));
    let run = |task: &Task, sums: Sums, worker: &mut Worker| {
        if task.keys > 0 {
            cx.isa.run(Job { call, task, sums, scratch: &mut worker.scratch });
        }
    };
    if (call.dk.is_some() || call.dv.is_some()) && operands.shares_pages() {
        // Sequences add to the same keys one after another.
        cx.pool.run(operands.heads_kv, |head, worker| {
            of_head(head).for_each(|task| run(&task, Sums(std::ptr::null_mut()), worker));
        });
        return Ok(());
    }

    let all: Vec<Task> = (0..operands.heads_kv).flat_map(of_head).collect();
    let total: u64 = all.iter().map(|task| task.cost).sum();
    let (mut tasks, mut apart, mut used) = (Vec::new(), Vec::new(), 0);
    for whole in all {
        let busy = whole.cost * cx.pool.threads() as u64 <= total;
        let parts = whole.parts.clone().map(|part| task(whole.seq, whole.head, part..part + 1));
        let mut parts: Vec<Task> = parts.filter(|part| part.keys > 0).collect();
        let mut after = used;
        for part in &mut parts {
            part.sums = Some(after);
            after += call.sums(part.keys).iter().sum::<usize>();
        }
        if busy || parts.len() < 2 || after > MOST_SUMS {
            tasks.push(whole);
            continue;
        }
        used = after;
        tasks.extend(parts.iter().cloned());
        let hull = call.rows(operands.seq(whole.seq), whole.head, &whole.parts).hull(operands);
        apart.push((parts, hull));
    }
    // The longest first, so that threads end together.
    tasks.sort_by_key(|task| std::cmp::Reverse(task.cost));
    let mut memory = Scratch::new();
    let sums = Sums(memory.slice::<f32>(used).as_mut_ptr());
    cx.pool.run(tasks.len(), |index, worker| run(&tasks[index], sums, worker));

    let ranges = apart.iter().flat_map(|(parts, hull)| {
        let ends = hull.clone().step_by(ADDED).map(|first| first..hull.end.min(first + ADDED));
        ends.map(move |keys| (parts, keys))
    });
    let ranges: Vec<(&Vec<Task>, Range<usize>)> = ranges.collect();
    cx.pool.run(ranges.len(), |index, _| {
        let (parts, keys) = &ranges[index];
        cx.isa.run(AddUp { call, parts, keys: keys.clone(), sums });
    });
    Ok(())
}

/// Sums of a part: rows of `padded` values for each key from `first` on. Null where they are not wanted.
#[derive(Clone, Copy)]
struct OfKeys {
    dk: *mut f32,
    dv: *mut f32,
    first: usize,
}

impl OfKeys {
    /// Adds the sums of `keys` to the gradients.
    ///
    /// # Safety
    /// The sums hold these keys of the sequence, which no other thread adds to meanwhile.
    #[inline(always)]
    unsafe fn add<S: Simd>(self, s: S, call: &Call, seq: &Seq, head: usize, keys: Range<usize>) {
        for (sums, gradient) in [(self.dk, &call.dk), (self.dv, &call.dv)] {
            let Some((base, strides)) = gradient else { continue };
            for j in keys.clone() {
                // SAFETY: as the caller vouches.
                unsafe {
                    let from = sums.add((j - self.first) * call.padded);
                    let to = base.add(call.operands.at(*strides, seq, head, j));
                    add_row(s, from, to, call.operands.head_dim);
                }
            }
        }
    }
}

/// `to += from`
///
/// # Safety
/// Both have `n` elements.
#[inline(always)]
unsafe fn add_row<S: Simd>(s: S, from: *const f32, to: *mut f32, n: usize) {
    for d in (0..n).step_by(S::LANES) {
        let len = (n - d).min(S::LANES);
        // SAFETY: `d + len <= n`.
        unsafe { s.store_n(to.add(d), s.add(s.load_n(to.add(d), len), s.load_n(from.add(d), len)), len) };
    }
}

/// Adds up the sums of parts for some keys, in the order of the parts.
struct AddUp<'a> {
    call: &'a Call<'a>,
    parts: &'a [Task],
    keys: Range<usize>,
    sums: Sums,
}

impl Kernel for AddUp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, parts, keys, sums } = self;
        for part in parts {
            let seq = call.operands.seq(part.seq);
            let hull = call.rows(seq, part.head, &part.parts).hull(&call.operands);
            let (start, end) = (keys.start.max(hull.start), keys.end.min(hull.end));
            let Some(at) = part.sums.filter(|_| start < end) else { continue };
            let dk = sums.0.wrapping_add(at);
            let dv = dk.wrapping_add(call.sums(hull.len())[0]);
            // SAFETY: the part's sums hold the keys of its hull; each key is in one range.
            unsafe { OfKeys { dk, dv, first: hull.start }.add(s, call, &seq, part.head, start..end) };
        }
    }
}

/// Runs a task.
struct Job<'a> {
    call: &'a Call<'a>,
    task: &'a Task,
    sums: Sums,
    scratch: &'a mut Scratch,
}

/// Keys, values and buffers of a task.
#[derive(Clone, Copy)]
struct Memory {
    /// `[keys, padded]`, from the first key of the task on.
    k: *const f32,
    v: *const f32,
    first: usize,
    /// Scores, then weights, `[keys, BLOCK]`, from the first key of a block on.
    p: *mut f32,
    /// Products of values with the gradient of the result, then gradients of the scores, likewise.
    ds: *mut f32,
    /// Tanh of the scores, likewise, with a softcap.
    tanh: *mut f32,
    /// Queries and gradients of the result, `[BLOCK, padded]`.
    q: *mut f32,
    d_out: *mut f32,
    /// The same with rows along the vectors, `[padded, BLOCK]`, queries times their factor; then the gradient of the queries.
    q_across: *mut f32,
    d_out_across: *mut f32,
}

impl Kernel for Job<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, task, sums, scratch } = self;
        let (operands, padded) = (&call.operands, call.padded);
        let seq = operands.seq(task.seq);
        let keys = call.rows(seq, task.head, &task.parts).hull(operands);
        let packed = (keys.len() + MOST_TILE) * padded;
        let scores = (keys.len() + MOST_TILE) * BLOCK;
        let [dk, dv] = if task.sums.is_some() { [0, 0] } else { call.sums(keys.len()) };
        let sizes = [packed, packed, scores, scores, if call.cap > 0.0 { scores } else { 0 }];
        let sizes = [&sizes[..], &[BLOCK * padded; 4], &[dk, dv]].concat();
        let memory = scratch.slice::<f32>(sizes.iter().sum());
        let mut rest = memory.as_mut_ptr();
        let mut take = sizes.into_iter().map(|size| {
            let part = rest;
            rest = rest.wrapping_add(size);
            part
        });
        let mut next = || take.next().unwrap_or(std::ptr::null_mut());
        let (k, v) = (next(), next());
        let memory = Memory {
            k,
            v,
            first: keys.start,
            p: next(),
            ds: next(),
            tanh: next(),
            q: next(),
            d_out: next(),
            q_across: next(),
            d_out_across: next(),
        };
        let mut totals = OfKeys { dk: next(), dv: next(), first: keys.start };
        if let Some(at) = task.sums {
            totals.dk = sums.0.wrapping_add(at);
            totals.dv = totals.dk.wrapping_add(call.sums(keys.len())[0]);
        }

        // SAFETY: the buffers have the sizes above, which are those of the keys of the task; rows and keys are those of the op.
        unsafe {
            for j in keys.clone() {
                let to = (j - keys.start) * padded;
                let from = call.k.add(operands.at(call.of_k, &seq, task.head, j));
                copy(s, from, k.add(to), operands.head_dim);
                if call.of_scores() {
                    let from = call.v.add(operands.at(call.of_v, &seq, task.head, j));
                    copy(s, from, v.add(to), operands.head_dim);
                }
            }
            for part in task.parts.clone() {
                let rows = call.rows(seq, task.head, &(part..part + 1));
                let hull = rows.hull(operands);
                if hull.is_empty() {
                    continue;
                }
                for (of, wanted) in [(totals.dk, call.dk.is_some()), (totals.dv, call.dv.is_some())] {
                    if wanted {
                        let at = (hull.start - keys.start) * padded;
                        of.add(at).write_bytes(0, (hull.len() + MOST_TILE) * padded);
                    }
                }
                for first in (rows.first..rows.first + rows.count).step_by(BLOCK) {
                    let count = (rows.first + rows.count - first).min(BLOCK);
                    block(s, call, &Rows { first, count, ..rows }, memory, totals);
                }
                if task.sums.is_none() {
                    totals.add(s, call, &seq, task.head, hull);
                }
            }
        }
    }
}

/// # Safety
/// Both have `n` elements; `to` has whole vectors.
#[inline(always)]
unsafe fn copy<S: Simd>(s: S, from: *const f32, to: *mut f32, n: usize) {
    for d in (0..n).step_by(S::LANES) {
        // SAFETY: `d < n`.
        unsafe { s.store(to.add(d), s.load_n(from.add(d), (n - d).min(S::LANES))) };
    }
}

/// Adds what a block of rows gives.
///
/// # Safety
/// `memory` and `totals` are those of a task that has the rows.
#[inline(always)]
unsafe fn block<S: Simd>(s: S, call: &Call, rows: &Rows, memory: Memory, totals: OfKeys) {
    let (operands, padded) = (&call.operands, call.padded);
    let head_dim = operands.head_dim;
    let Range { start, end } = rows.hull(operands);
    let keys = end - start;
    if keys == 0 {
        return;
    }
    let vectors = rows.count.div_ceil(S::LANES);
    let of_head = head_dim.div_ceil(S::LANES);
    let place = (start - memory.first) * padded;
    // SAFETY: as the caller vouches; keys of the block are keys of the task, and buffers have room for whole micro-tiles.
    unsafe {
        let (k, v) = (memory.k.add(place), memory.v.add(place));
        for r in 0..vectors * S::LANES {
            let (q, d_out) = (memory.q.add(r * padded), memory.d_out.add(r * padded));
            if r < rows.count && !rows.visible(operands, r).is_empty() {
                copy(s, call.q.add(rows.at(operands, operands.q, r)), q, head_dim);
                copy(s, call.d_out.add(rows.at(operands, operands.out, r)), d_out, head_dim);
            } else {
                q.write_bytes(0, padded);
                d_out.write_bytes(0, padded);
            }
        }
        turn(s, memory.q, padded, memory.q_across, BLOCK, vectors, of_head, call.factor);
        let from = (memory.q_across.cast_const(), BLOCK);
        product(s, [keys, vectors, head_dim], (k, 1, padded), from, (memory.p, BLOCK), false);
        if call.of_scores() {
            turn(s, memory.d_out, padded, memory.d_out_across, BLOCK, vectors, of_head, 1.0);
            let from = (memory.d_out_across.cast_const(), BLOCK);
            product(s, [keys, vectors, head_dim], (v, 1, padded), from, (memory.ds, BLOCK), false);
        }
        for vector in 0..vectors {
            softmax(s, call, rows, memory, start..end, vector);
        }
        // Micro-tiles end behind the last key.
        for buffer in [memory.p, memory.ds] {
            buffer.add(keys * BLOCK).write_bytes(0, MOST_TILE * BLOCK);
        }
        let sums = |of: *mut f32| (of.wrapping_add(place), padded);
        if call.dv.is_some() {
            let weights = (memory.p.cast_const(), 1, BLOCK);
            let rows = [keys, of_head, rows.count];
            product(s, rows, weights, (memory.d_out, padded), sums(totals.dv), true);
        }
        if call.dk.is_some() {
            let weights = (memory.ds.cast_const(), 1, BLOCK);
            product(s, [keys, of_head, rows.count], weights, (memory.q, padded), sums(totals.dk), true);
        }
        if let Some((dq, strides)) = call.dq {
            let across = memory.q_across;
            for first in (0..keys).step_by(KEYS) {
                let count = (keys - first).min(KEYS);
                let (k, ds) = (k.add(first * padded), memory.ds.add(first * BLOCK));
                product(
                    s,
                    [head_dim, vectors, count],
                    (k, padded, 1),
                    (ds, BLOCK),
                    (across, BLOCK),
                    first > 0,
                );
            }
            turn(s, across, BLOCK, memory.q, padded, of_head, vectors, 1.0);
            for r in (0..rows.count).filter(|&r| !rows.visible(operands, r).is_empty()) {
                add_row(s, memory.q.add(r * padded), dq.add(rows.at(operands, strides, r)), head_dim);
            }
        }
    }
}

/// Weights and gradients of the scores of a vector of rows.
///
/// # Safety
/// As for [`block`]; `keys` are the block's.
#[inline(always)]
unsafe fn softmax<S: Simd>(
    s: S,
    call: &Call,
    rows: &Rows,
    memory: Memory,
    keys: Range<usize>,
    vector: usize,
) {
    let operands = &call.operands;
    let skip = vector * S::LANES;
    let (mut from, mut to) = ([0.0f32; MAX_LANES], [0.0f32; MAX_LANES]);
    // Keys that all rows of the block see.
    let mut common = keys.clone();
    for lane in (0..S::LANES).filter(|lane| skip + lane < rows.count) {
        let seen = rows.visible(operands, skip + lane);
        common = common.start.max(seen.start)..common.end.min(seen.end);
        from[lane] = seen.start as f32 - keys.start as f32;
        to[lane] = seen.end as f32 - keys.start as f32;
    }
    let common = common.start.saturating_sub(keys.start)..common.end.saturating_sub(keys.start);
    let count = keys.len();
    let of_scores = call.of_scores();
    // SAFETY: `LANES <= MAX_LANES`, and as the caller vouches: the buffers hold the keys, and the vector.
    unsafe {
        let (from, to) = (s.load(from.as_ptr()), s.load(to.as_ptr()));
        let at = |buffer: *mut f32, j: usize| buffer.add(j * BLOCK + skip);
        let mut most = s.splat(f32::MIN);
        for j in 0..count {
            let mut score = s.load(at(memory.p, j));
            if call.cap > 0.0 {
                let t = math::tanh(s, score);
                s.store(at(memory.tanh, j), t);
                score = s.mul(t, s.splat(call.cap));
                s.store(at(memory.p, j), score);
            }
            if !common.contains(&j) {
                let (key, hidden) = (s.splat(j as f32), s.splat(f32::NEG_INFINITY));
                score = s.select(s.le(from, key), score, hidden);
                score = s.select(s.lt(key, to), score, hidden);
                s.store(at(memory.p, j), score);
            }
            most = s.max(score, most);
        }
        let (mut total, mut mean) = (s.zero(), s.zero());
        for j in 0..count {
            let p = exp2(s, s.sub(s.load(at(memory.p, j)), most));
            s.store(at(memory.p, j), p);
            total = s.add(total, p);
            if of_scores {
                mean = s.fma(p, s.load(at(memory.ds, j)), mean);
            }
        }
        // A row that sees no key has no weights.
        let share = s.select(s.le(total, s.zero()), s.zero(), s.div(s.splat(1.0), total));
        let mean = s.mul(mean, share);
        let scale = s.splat(call.scale);
        for j in 0..count {
            let p = s.mul(s.load(at(memory.p, j)), share);
            s.store(at(memory.p, j), p);
            if of_scores {
                let difference = s.sub(s.load(at(memory.ds, j)), mean);
                let mut ds = s.mul(s.mul(p, scale), difference);
                if call.cap > 0.0 {
                    let t = s.load(at(memory.tanh, j));
                    ds = s.mul(ds, s.fnma(t, t, s.splat(1.0)));
                }
                s.store(at(memory.ds, j), ds);
            }
        }
    }
}

/// `to[j, i] = from[i, j] * factor` for `rows` and `cols` vectors of `from`, in `LANES` x `LANES` squares.
///
/// # Safety
/// Both hold these vectors, rows being `from_row` and `to_row` elements apart.
#[inline(always)]
unsafe fn turn<S: Simd>(
    s: S,
    from: *const f32,
    from_row: usize,
    to: *mut f32,
    to_row: usize,
    rows: usize,
    cols: usize,
    factor: f32,
) {
    let factor = s.splat(factor);
    for i in (0..rows).map(|i| i * S::LANES) {
        for j in (0..cols).map(|j| j * S::LANES) {
            let mut square = [s.zero(); MAX_LANES];
            // SAFETY: as the caller vouches; `LANES <= MAX_LANES`.
            unsafe {
                for (row, vector) in square.iter_mut().enumerate().take(S::LANES) {
                    *vector = s.mul(s.load(from.add((i + row) * from_row + j)), factor);
                }
                s.transpose(square.as_mut_ptr());
                for (row, vector) in square.iter().enumerate().take(S::LANES) {
                    s.store(to.add((j + row) * to_row + i), *vector);
                }
            }
        }
    }
}

/// `c[m, n] = sum_k a[k, m] * b[k, n]`, or added to `c`, for sizes `m`, vectors of `n`, and `k`: `a` with strides of `k` and `m`, `b`
/// and `c` with strides of their rows. Rows of `c` to the end of the last micro-tile are written too.
///
/// # Safety
/// `a` and `c` are valid for `m` rounded up to micro-tiles, and all for these sizes.
#[inline(always)]
unsafe fn product<S: Simd>(
    s: S,
    [m, n, k]: [usize; 3],
    a: (*const f32, usize, usize),
    b: (*const f32, usize),
    c: (*mut f32, usize),
    add: bool,
) {
    let tile = if S::REGISTERS >= 32 { 8 } else { 6 };
    for row in (0..m).step_by(tile) {
        let a = (a.0.wrapping_add(row * a.2), a.1, a.2);
        let mut vector = 0;
        while vector < n {
            let at = vector * S::LANES;
            let b = (b.0.wrapping_add(at), b.1);
            let c = (c.0.wrapping_add(row * c.1 + at), c.1);
            // Of four vectors, two and two; sums of three fill 32 registers.
            let left = n - vector;
            // SAFETY: as the caller vouches.
            unsafe {
                vector += match (S::REGISTERS >= 32, left) {
                    (true, 1) => micro::<S, 8, 1>(s, k, a, b, c, add),
                    (true, 2 | 4) => micro::<S, 8, 2>(s, k, a, b, c, add),
                    (true, _) => micro::<S, 8, 3>(s, k, a, b, c, add),
                    (false, 1) => micro::<S, 6, 1>(s, k, a, b, c, add),
                    (false, _) => micro::<S, 6, 2>(s, k, a, b, c, add),
                };
            }
        }
    }
}

/// `MR` rows and `NV` vectors of a product; returns `NV`.
///
/// # Safety
/// As for [`product`].
#[inline(always)]
unsafe fn micro<S: Simd, const MR: usize, const NV: usize>(
    s: S,
    k: usize,
    (mut a, a_k, a_m): (*const f32, usize, usize),
    (mut b, b_k): (*const f32, usize),
    (c, c_m): (*mut f32, usize),
    add: bool,
) -> usize {
    let mut sums = [[s.zero(); NV]; MR];
    // SAFETY: as the caller vouches.
    unsafe {
        if add {
            for (m, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = s.load(c.add(m * c_m + v * S::LANES));
                }
            }
        }
        for _ in 0..k {
            let mut row = [s.zero(); NV];
            for (v, x) in row.iter_mut().enumerate() {
                *x = s.load(b.add(v * S::LANES));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let x = s.splat(*a.add(m * a_m));
                for (sum, y) in sums.iter_mut().zip(&row) {
                    *sum = s.fma(x, *y, *sum);
                }
            }
            a = a.wrapping_add(a_k);
            b = b.wrapping_add(b_k);
        }
        for (m, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                s.store(c.add(m * c_m + v * S::LANES), *sum);
            }
        }
    }
    NV
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conformance::{CaseCx, run_cpu};
    use crate::cpu::isa::Isa;
    use crate::cpu::pool::Pool;

    #[test]
    fn conforms() {
        let report = run_cpu::<AttentionGrad>(&Isa::available(), &Arc::new(Pool::new(3)), 7);
        assert!(report.failed.is_empty(), "{} failed:\n{}", report.failed.len(), report.failed.join("\n"));
        assert!(report.passed > 0);
    }

    #[test]
    fn threads_change_no_bit() {
        let mut cx = CaseCx::new(5);
        let cases = AttentionGrad::cases(&mut cx);
        let parts =
            |name: &str| ["parts", "shared", "ragged", "smolvlm"].iter().any(|one| name.contains(one));
        let mut apart = 0;
        for case in cases.into_iter().filter(|case| parts(&case.name)) {
            let gradients = [&case.op.dq, &case.op.dk, &case.op.dv].map(|view| view.clone().expect("all"));
            let before = gradients.clone().map(|view| view.storage().snapshot());
            let run = |threads: usize| {
                for (view, bytes) in gradients.iter().zip(&before) {
                    view.storage().restore(bytes);
                }
                let cpu = CpuCx { isa: Isa::best(), pool: Arc::new(Pool::new(threads)), id: cx.id() };
                launch(&case.op, &cpu).expect("a case");
                gradients.clone().map(|view| view.storage().snapshot())
            };
            let one = run(1);
            assert!(one != before, "{}: nothing was added", case.name);
            for threads in [2, 5, 8] {
                assert!(run(threads) == one, "{}: {threads} threads", case.name);
            }
            apart += 1;
        }
        assert!(apart > 5);
    }
}
