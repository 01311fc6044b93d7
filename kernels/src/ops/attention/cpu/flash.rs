//! Flash attention as blocked matrix products, for many queries.
//!
//! A task has rows of one key head: queries of one sequence, the query heads of the group side by side. They are packed
//! once into tiles of a few vectors, rows along the lanes. For each block of keys, packed once for all tiles:
//!
//! ```text
//! scores [keys, rows]  = K [keys, d] * Q [d, rows]
//! P = exp(scores - running maximum), rescale, sum
//! O [d, rows]          = O * rescale + V^T [d, keys] * P [keys, rows]
//! ```
//!
//! Both products are the same micro-kernel, which broadcasts elements of K or V. As rows lie along the lanes, the
//! softmax needs no operation across lanes. A row's result depends on its own keys only, not on its neighbours.
//!
//! Where the CPU multiplies bf16 in pairs, operands of bf16 are multiplied as they are, two elements of a head or two keys per
//! word, and P is rounded to bf16, as it is on GPUs. Matrix tiles take K and V^T by rows.

use std::ops::Range;

use super::pack::{Io, tile_words};
use super::softmax::exp2;
use super::tasks::{Call, Rows, Task, panel, tile};
use crate::cpu::CpuCx;
use crate::cpu::gemm::Bf16;
use crate::cpu::gemm::micro::{Dot, DotF32};
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{Kernel, Simd, math};
#[cfg(target_arch = "x86_64")]
use crate::cpu::tiles::{self, SIDE};
use crate::ops::attention::Attention;
use crate::spec::KernelError;

/// Keys of one block: its scores stay in the first-level cache.
pub(super) const BLOCK: usize = 144;
/// The same on matrix tiles, which take 32 keys at a time.
const TILES_BLOCK: usize = 160;
/// Most f32 values of the tiles of one task: their queries and results stay in the second-level cache.
const TILES: usize = 96 << 10;
/// Tasks that each thread should get at least, where there are enough tiles.
const TASKS_PER_THREAD: usize = 6;
/// Steps of a product in a row.
const UNROLL: usize = 4;
/// f32 values per row of a tile besides queries and results: maximum, sum, rescaling factor, first and last key.
const STATE: usize = 5;

pub(super) fn launch(op: &Attention, cx: &CpuCx) -> Result<(), KernelError> {
    run(&Call::new(op, cx)?, cx, |call, block| call.isa.run(With(Micro::<_, 1>(DotF32), block)))
}

/// For queries, keys and values of bf16.
pub(super) fn launch_bf16(op: &Attention, cx: &CpuCx) -> Result<(), KernelError> {
    let call = Call { io: Io::words(), ..Call::new(op, cx)? };
    run(&call, cx, |call, block| call.isa.run_bf16(With(Micro::<_, 2>(Bf16::<true>), block)))
}

/// The same on matrix tiles, where there are such.
pub(super) fn launch_amx(op: &Attention, cx: &CpuCx) -> Result<(), KernelError> {
    #[cfg(target_arch = "x86_64")]
    if cx.isa.amx() {
        let call = Call { io: Io::tiles(), block: TILES_BLOCK, ..Call::new(op, cx)? };
        return run(&call, cx, |call, block| {
            // SAFETY: the instruction set has tiles.
            let _tiles = unsafe { tiles::InUse::begin(call.isa) };
            call.isa.run_bf16(With(OnTiles, block));
        });
    }
    launch(op, cx)
}

/// Computes a tile's share of a block of keys.
type Compute = fn(&Call, Block);

fn run(call: &Call, cx: &CpuCx, compute: Compute) -> Result<(), KernelError> {
    let (operands, tile) = (&call.operands, call.geometry.tile);
    let tiles_of = |index: usize| (operands.seq(index).q_len * operands.group).div_ceil(tile);
    let tiles: usize = (0..operands.seqs()).map(tiles_of).sum::<usize>() * operands.heads_kv;
    let most = (TILES / Parts::new(call).tile).max(1);
    let grain = tiles.div_ceil(TASKS_PER_THREAD * cx.pool.threads()).clamp(1, most);
    let parts_of = |index: usize| tiles_of(index).div_ceil(grain);
    // Rows of each task of a sequence.
    let rows_of = |index: usize| tiles_of(index).div_ceil(parts_of(index).max(1)) * tile;
    let count: usize = (0..operands.seqs()).map(parts_of).sum::<usize>() * operands.heads_kv;

    let mut scratch = Scratch::new();
    let tasks = scratch.slice::<Task>(count);
    let mut used = 0;
    for index in 0..operands.seqs() {
        let seq = operands.seq(index);
        let (all, each) = (seq.q_len * operands.group, rows_of(index));
        for head in 0..operands.heads_kv {
            for first in (0..all).step_by(each.max(1)) {
                let rows = Rows { seq, head, first, count: (all - first).min(each) };
                tasks[used] = Task {
                    cost: (rows.hull(operands).len() * rows.count) as u64,
                    seq: index as u32,
                    head: head as u32,
                    start: first as u32,
                    part: 0,
                    parts: 1,
                    base: 0,
                };
                used += 1;
            }
        }
    }
    let tasks = &mut tasks[..used];
    // The longest first, so that threads end together.
    tasks.sort_unstable_by_key(|task| std::cmp::Reverse(task.cost));
    let tasks = &*tasks;
    cx.pool.run(tasks.len(), |index, worker| {
        let task = &tasks[index];
        let seq = call.operands.seq(task.seq as usize);
        let (first, all) = (task.start as usize, seq.q_len * call.operands.group);
        let count = (all - first).min(rows_of(task.seq as usize));
        let rows = Rows { seq, head: task.head as usize, first, count };
        attend(call, &rows, compute, &mut worker.scratch);
    });
    Ok(())
}

/// Parts of the scratch of one task, in f32 values. All are multiples of a vector.
struct Parts {
    /// Of one tile: queries, results, state.
    tile: usize,
    results: usize,
    state: usize,
    keys: usize,
    values: usize,
    scores: usize,
}

impl Parts {
    fn new(call: &Call) -> Self {
        let (geometry, hd) = (&call.geometry, call.operands.head_dim);
        let results = hd * geometry.tile;
        let state = results + geometry.padded * geometry.tile;
        let keys = call.block.next_multiple_of(geometry.panel) * hd.next_multiple_of(16);
        let values = call.block * geometry.padded;
        let scores = call.block.next_multiple_of(geometry.panel) * geometry.tile;
        Self {
            tile: (state + STATE * geometry.tile).next_multiple_of(16),
            results,
            state,
            keys,
            values,
            scores,
        }
    }
}

fn attend(call: &Call, rows: &Rows, compute: Compute, scratch: &mut Scratch) {
    let (operands, tile) = (&call.operands, call.geometry.tile);
    let parts = Parts::new(call);
    let tiles = rows.count.div_ceil(tile);
    let memory = scratch.slice::<f32>(tiles * parts.tile + parts.keys + parts.values + parts.scores);
    let (of_tiles, blocks) = memory.split_at_mut(tiles * parts.tile);
    let (keys, blocks) = blocks.split_at_mut(parts.keys);
    let (values, scores) = blocks.split_at_mut(parts.values);
    let part = |index: usize| {
        let first = rows.first + index * tile;
        Rows { first, count: (rows.first + rows.count - first).min(tile), ..*rows }
    };

    for (index, memory) in of_tiles.chunks_exact_mut(parts.tile).enumerate() {
        let rows = part(index);
        let (results, state) = memory[parts.results..].split_at_mut(parts.state - parts.results);
        results.fill(0.0);
        let (most, rest) = state.split_at_mut(tile);
        most.fill(f32::MIN);
        let (sum, rest) = rest.split_at_mut(2 * tile);
        sum.fill(0.0);
        let (from, to) = rest.split_at_mut(tile);
        let bounds = from.iter_mut().zip(to);
        for (r, (from, to)) in bounds.enumerate() {
            // Lanes without a row do what the last row does.
            let seen = rows.visible(operands, r.min(rows.count - 1));
            *from = f32::from_bits(seen.start as u32);
            *to = f32::from_bits(seen.end as u32);
        }
    }

    let Range { start, end } = rows.hull(operands);
    let mut packed = false;
    // Blocks lie at the same places for all rows.
    let size = call.block;
    for first in (start / size * size..end).step_by(size) {
        let count = (end - first).min(size);
        // SAFETY: the keys are keys of the sequence, and the buffers hold a block of them.
        unsafe {
            (call.io.keys)(call, rows, first, count, keys.as_mut_ptr());
            // Keys before the first that any row sees have values that may be NaN, which weight 0 would not take away.
            (call.io.values)(call, rows, first, start.saturating_sub(first), count, values.as_mut_ptr());
        }
        for (index, memory) in of_tiles.chunks_exact_mut(parts.tile).enumerate() {
            let rows = part(index);
            if !packed {
                // SAFETY: the rows are rows of the op, and a tile has `head_dim` rows.
                unsafe { (call.io.queries)(call, &rows, memory.as_mut_ptr()) };
            }
            // What is needed next travels through the caches while this tile is computed: this tile's share of the
            // next block, its place in the result, the next tile's queries.
            let share = size.div_ceil(tiles);
            let next = (first + size + index * share).min(end);
            (call.io.ahead)(call, &rows, next, (end - next).min(share), first + size >= end);
            if !packed && index + 1 < tiles {
                (call.io.ahead_queries)(call, &part(index + 1));
            }
            let (least, most) = (rows.visible(operands, 0), rows.visible(operands, rows.count - 1));
            // Keys behind the last that any row of this tile sees are left out.
            let count = most.end.saturating_sub(first).min(count);
            if count == 0 || first + count <= least.start {
                continue;
            }
            let all_seen = most.start <= first && first + count <= least.end;
            let base = memory.as_mut_ptr();
            // SAFETY: offsets within the tile's memory.
            let (results, state) = unsafe { (base.add(parts.results), base.add(parts.state)) };
            let block = Block {
                call,
                queries: base,
                keys: keys.as_ptr(),
                values: values.as_ptr(),
                scores: scores.as_mut_ptr(),
                results,
                state,
                rows: rows.count,
                count,
                masked: (!all_seen).then_some(first),
            };
            compute(call, block);
        }
        packed = true;
    }

    for (index, memory) in of_tiles.chunks_exact_mut(parts.tile).enumerate() {
        let (results, state) = memory[parts.results..].split_at_mut(parts.state - parts.results);
        let sum = &mut state[tile..2 * tile];
        for sum in sum.iter_mut() {
            // A row that sees no key is zero.
            *sum = if *sum > 0.0 || sum.is_nan() { 1.0 / *sum } else { 0.0 };
        }
        // SAFETY: the rows are rows of the op that this task alone has; the buffers are those of a tile.
        unsafe { (call.io.store)(call, &part(index), results.as_ptr(), sum.as_ptr()) };
    }
}

/// One tile of queries against one block of keys.
struct Block<'a> {
    call: &'a Call<'a>,
    queries: *const f32,
    keys: *const f32,
    values: *const f32,
    scores: *mut f32,
    results: *mut f32,
    state: *mut f32,
    rows: usize,
    count: usize,
    /// The first key, if not every row sees every key of the block.
    masked: Option<usize>,
}

/// The two products of a block.
trait Products: Copy {
    /// Values in a word of the packed operands.
    const PACK: usize;

    /// Scores of the block's keys.
    ///
    /// # Safety
    /// The pointers of the block are valid for the parts of a task's scratch; the micro-tile is the level's.
    unsafe fn scores<S: Simd, const MR: usize, const NV: usize>(self, s: S, block: &Block);

    /// Adds values times weights, which stand in the place of the scores, to the results, times a vector of factors.
    ///
    /// # Safety
    /// As [`scores`](Self::scores).
    unsafe fn results<S: Simd, const MR: usize, const NV: usize>(
        self,
        s: S,
        block: &Block,
        rescale: *const f32,
    );
}

/// By a micro-kernel on words of `PACK` values.
#[derive(Clone, Copy)]
struct Micro<D, const PACK: usize>(D);

impl<D: Dot, const PACK: usize> Products for Micro<D, PACK> {
    const PACK: usize = PACK;

    #[inline(always)]
    unsafe fn scores<S: Simd, const MR: usize, const NV: usize>(self, s: S, block: &Block) {
        let words = block.call.operands.head_dim.div_ceil(PACK);
        let (tile, panel) = (tile::<S>(), panel::<S>());
        for j in (0..block.count).step_by(MR) {
            // SAFETY: as the caller vouches; each offset is within its part.
            unsafe {
                let keys = block.keys.add(j / panel * (words * panel) + j % panel);
                let to = block.scores.add(j * tile);
                let onto = Onto::Nothing { factor: (PACK > 1).then_some(block.call.factor) };
                product::<S, D, MR, NV>(s, self.0, words, keys, panel, block.queries, to, onto);
            }
        }
    }

    #[inline(always)]
    unsafe fn results<S: Simd, const MR: usize, const NV: usize>(
        self,
        s: S,
        block: &Block,
        rescale: *const f32,
    ) {
        let (hd, padded) = (block.call.operands.head_dim, block.call.geometry.padded);
        for d in (0..hd).step_by(MR) {
            // SAFETY: as the caller vouches; each offset is within its part.
            unsafe {
                let (to, values) = (block.results.add(d * tile::<S>()), block.values.add(d));
                let (keys, onto) = (block.count.div_ceil(PACK), Onto::Scaled(rescale));
                product::<S, D, MR, NV>(s, self.0, keys, values, padded, block.scores, to, onto);
            }
        }
    }
}

/// On matrix tiles, words of two bf16.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct OnTiles;

#[cfg(target_arch = "x86_64")]
impl Products for OnTiles {
    const PACK: usize = 2;

    #[inline(always)]
    unsafe fn scores<S: Simd, const MR: usize, const NV: usize>(self, s: S, block: &Block) {
        let words = tile_words(block.call.operands.head_dim);
        let (tile, factor) = (tile::<S>(), s.splat(block.call.factor));
        // SAFETY: as the caller vouches: the level has 16 lanes, and keys are packed up to whole tiles.
        unsafe {
            for j in (0..block.count).step_by(SIDE) {
                let (keys, to) = (block.keys.add(j * words).cast(), block.scores.add(j * tile));
                let steps = words / SIDE;
                tiles::product::<NV>(keys, 4 * words, block.queries.cast(), to, 4 * tile, steps, false);
            }
            for j in 0..block.count {
                for v in 0..NV {
                    let at = block.scores.add(j * tile + v * S::LANES);
                    s.store(at, s.mul(s.load(at), factor));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn results<S: Simd, const MR: usize, const NV: usize>(
        self,
        s: S,
        block: &Block,
        rescale: *const f32,
    ) {
        let (tile, across) = (tile::<S>(), tile_words(block.call.block));
        let pairs = block.count.div_ceil(2);
        let steps = pairs.div_ceil(SIDE);
        // SAFETY: as the caller vouches: the level has 16 lanes, and heads are padded to whole vectors.
        unsafe {
            for j in pairs..steps * SIDE {
                for v in 0..NV {
                    s.store(block.scores.add(j * tile + v * S::LANES), s.zero());
                }
            }
            let mut factors = [s.zero(); NV];
            for (v, factor) in factors.iter_mut().enumerate() {
                *factor = s.load(rescale.add(v * S::LANES));
            }
            for d in (0..block.call.operands.head_dim).step_by(SIDE) {
                let to = block.results.add(d * tile);
                for i in 0..SIDE {
                    for (v, factor) in factors.iter().enumerate() {
                        let at = to.add(i * tile + v * S::LANES);
                        s.store(at, s.mul(s.load(at), *factor));
                    }
                }
                let values = block.values.add(d * across).cast();
                tiles::product::<NV>(values, 4 * across, block.scores.cast(), to, 4 * tile, steps, true);
            }
        }
    }
}

/// A block, and how its products are made.
struct With<'a, P>(P, Block<'a>);

impl<P: Products> Kernel for With<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(products, block) = self;
        // SAFETY: the pointers are those of a task's scratch, laid out by `Parts` for this level.
        unsafe {
            match (S::REGISTERS >= 32, block.rows.div_ceil(S::LANES)) {
                (true, 1) => block.vectors::<S, P, 8, 1>(s, products),
                (true, 2) => block.vectors::<S, P, 8, 2>(s, products),
                (true, _) => block.vectors::<S, P, 8, 3>(s, products),
                (false, 1) => block.vectors::<S, P, 6, 1>(s, products),
                (false, _) => block.vectors::<S, P, 6, 2>(s, products),
            }
        }
    }
}

impl Block<'_> {
    /// # Safety
    /// The pointers are valid for the parts of a task's scratch; the micro-tile is the level's.
    #[inline(always)]
    unsafe fn vectors<S: Simd, P: Products, const MR: usize, const NV: usize>(self, s: S, products: P) {
        let tile = tile::<S>();
        let vector = |row: usize, v: usize| row * tile + v * S::LANES;
        // SAFETY: as the caller vouches; each offset is within its part.
        unsafe {
            products.scores::<S, MR, NV>(s, &self);
            if self.call.cap > 0.0 {
                let cap = s.splat(self.call.cap);
                for j in 0..self.count {
                    for v in 0..NV {
                        let at = self.scores.add(vector(j, v));
                        s.store(at, s.mul(math::tanh(s, s.load(at)), cap));
                    }
                }
            }
            if let Some(first) = self.masked {
                self.hide::<S, NV>(s, first);
            }

            let (most, sum, rescale) = (self.state, self.state.add(tile), self.state.add(2 * tile));
            // Two chains of maxima: the last key, if their number is odd, counts twice.
            let (mut peaks, mut others) = ([s.splat(f32::MIN); NV], [s.splat(f32::MIN); NV]);
            for (v, peak) in peaks.iter_mut().enumerate() {
                *peak = s.load(most.add(vector(0, v)));
            }
            for j in (0..self.count).step_by(2) {
                let other = (j + 1).min(self.count - 1);
                for v in 0..NV {
                    peaks[v] = s.max(s.load(self.scores.add(vector(j, v))), peaks[v]);
                    others[v] = s.max(s.load(self.scores.add(vector(other, v))), others[v]);
                }
            }
            let mut peak = [s.zero(); NV];
            let mut sums = [s.zero(); NV];
            for v in 0..NV {
                peak[v] = s.max(peaks[v], others[v]);
                let factor = exp2(s, s.sub(s.load(most.add(vector(0, v))), peak[v]));
                s.store(most.add(vector(0, v)), peak[v]);
                s.store(rescale.add(vector(0, v)), factor);
                sums[v] = s.mul(s.load(sum.add(vector(0, v))), factor);
            }
            for j in (0..self.count).step_by(P::PACK) {
                for v in 0..NV {
                    let at = self.scores.add(vector(j, v));
                    let p = exp2(s, s.sub(s.load(at), peak[v]));
                    if P::PACK == 1 {
                        sums[v] = s.add(sums[v], p);
                        s.store(at, p);
                        continue;
                    }
                    // Weights are summed as they are rounded: what multiplies the values adds up to one.
                    let low = round_bf16(s, p);
                    let mut high = s.zero();
                    if j + 1 < self.count {
                        high = round_bf16(s, exp2(s, s.sub(s.load(at.add(tile)), peak[v])));
                    }
                    sums[v] = s.add(sums[v], s.add(low, high));
                    let word = s.or_i(s.shr_i::<16>(s.to_bits(low)), s.to_bits(high));
                    // Words take the place of scores that have been read.
                    s.store(self.scores.add(vector(j / P::PACK, v)), s.of_bits(word));
                }
            }
            for (v, total) in sums.iter().enumerate() {
                s.store(sum.add(vector(0, v)), *total);
            }
            products.results::<S, MR, NV>(s, &self, rescale);
        }
    }

    /// Sets the scores of keys that a row does not see to minus infinity.
    ///
    /// # Safety
    /// As for [`Block::vectors`].
    #[inline(always)]
    unsafe fn hide<S: Simd, const NV: usize>(&self, s: S, first: usize) {
        let tile = tile::<S>();
        let (mut from, mut to) = ([s.zero(); NV], [s.zero(); NV]);
        // SAFETY: the bounds are the last two rows of the state.
        unsafe {
            let origin = s.splat_i(first as i32);
            let bounds = self.state.add(3 * tile).cast::<i32>();
            for v in 0..NV {
                let at = bounds.add(v * S::LANES);
                from[v] = s.to_float(s.sub_i(s.load_i(at), origin));
                to[v] = s.to_float(s.sub_i(s.load_i(at.add(tile)), origin));
            }
            let hidden = s.splat(f32::NEG_INFINITY);
            for j in 0..self.count {
                let key = s.splat(j as f32);
                for v in 0..NV {
                    let at = self.scores.add(j * tile + v * S::LANES);
                    let score = s.select(s.le(from[v], key), s.load(at), hidden);
                    s.store(at, s.select(s.lt(key, to[v]), score, hidden));
                }
            }
        }
    }
}

/// Rounded to bf16, halves away from zero.
#[inline(always)]
fn round_bf16<S: Simd>(s: S, v: S::V) -> S::V {
    s.of_bits(s.and_i(s.add_i(s.to_bits(v), s.splat_i(0x8000)), s.splat_i(-65_536)))
}

/// What a product is added to.
#[derive(Clone, Copy)]
enum Onto {
    /// Nothing: it is multiplied with a factor, if there is one, and stored.
    Nothing { factor: Option<f32> },
    /// What is stored, times a vector of factors.
    Scaled(*const f32),
}

/// `c[m, n] = sum_k a[k, m] * b[k, n]`, with what [`Onto`] says; `k` counts words; `MR` values of `m`, `NV` vectors of `n`;
/// rows of `b` and `c` are a tile long.
///
/// # Safety
/// `a` is readable for `k` rows of `lda`, `b` for `k` rows and `c` writable for `MR` rows of a tile.
#[inline(always)]
unsafe fn product<S: Simd, D: Dot, const MR: usize, const NV: usize>(
    s: S,
    dot: D,
    k: usize,
    mut a: *const f32,
    lda: usize,
    mut b: *const f32,
    c: *mut f32,
    onto: Onto,
) {
    let tile = tile::<S>();
    let mut sums = [[s.zero(); NV]; MR];
    // SAFETY: as the caller vouches.
    unsafe {
        if let Onto::Scaled(scale) = onto {
            let mut factors = [s.zero(); NV];
            for (v, factor) in factors.iter_mut().enumerate() {
                *factor = s.load(scale.add(v * S::LANES));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = s.mul(s.load(c.add(m * tile + v * S::LANES)), factors[v]);
                }
            }
        }
        for _ in 0..k / UNROLL {
            for _ in 0..UNROLL {
                step::<S, D, MR, NV>(s, dot, a, b, &mut sums);
                a = a.wrapping_add(lda);
                b = b.wrapping_add(tile);
            }
        }
        for _ in 0..k % UNROLL {
            step::<S, D, MR, NV>(s, dot, a, b, &mut sums);
            a = a.wrapping_add(lda);
            b = b.wrapping_add(tile);
        }
        if let Onto::Nothing { factor: Some(factor) } = onto {
            let factor = s.splat(factor);
            for sum in sums.as_flattened_mut() {
                *sum = s.mul(*sum, factor);
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                s.store(c.add(m * tile + v * S::LANES), *sum);
            }
        }
    }
}

/// # Safety
/// `a` is readable for `MR` elements, `b` for `NV` vectors.
#[inline(always)]
unsafe fn step<S: Simd, D: Dot, const MR: usize, const NV: usize>(
    s: S,
    dot: D,
    a: *const f32,
    b: *const f32,
    sums: &mut [[S::V; NV]; MR],
) {
    let mut row = [s.zero(); NV];
    // SAFETY: as the caller vouches.
    unsafe {
        for (v, x) in row.iter_mut().enumerate() {
            *x = s.load(b.add(v * S::LANES));
        }
        for (m, sums) in sums.iter_mut().enumerate() {
            let x = s.splat(*a.add(m));
            for (sum, y) in sums.iter_mut().zip(&row) {
                *sum = dot.dot(s, *sum, x, *y);
            }
        }
    }
}
