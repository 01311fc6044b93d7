//! CPU kernels.
//!
//! A row is one thread's work, so the number of threads does not change a token. Greedy rows are one vectorized pass over
//! the logits as they lie. Others become 64-bit keys, `descending logit, ascending id`, in scratch memory; only as much of
//! their order is established as the answer needs.

use super::{NO_TOKEN, Sample, params};
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRow, InRows};
use crate::cpu::simd::math;
use crate::cpu::{CpuOp, CpuRows};
use crate::op::Op;
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for Sample {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "keys", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

/// Pointers to i32 rows.
#[derive(Clone, Copy)]
struct Ints<P> {
    base: P,
    stride: usize,
}

// SAFETY: pointers into memory that the op's views keep alive; each row is one thread's.
unsafe impl<P> Send for Ints<P> {}
// SAFETY: as above.
unsafe impl<P> Sync for Ints<P> {}

impl Ints<*const i32> {
    /// Value `at` of a row.
    ///
    /// # Safety
    /// It exists.
    unsafe fn get(self, row: usize, at: usize) -> i32 {
        // SAFETY: as the caller vouches.
        unsafe { *self.base.add(row * self.stride + at) }
    }
}

impl Ints<*mut i32> {
    /// Sets the value of a row.
    ///
    /// # Safety
    /// It exists, and is this thread's alone.
    unsafe fn set(self, row: usize, value: i32) {
        // SAFETY: as the caller vouches.
        unsafe { *self.base.add(row * self.stride) = value }
    }
}

fn launch(op: &Sample, cx: &CpuCx) -> Result<(), KernelError> {
    let (rows, vocab) = (op.logits.size(0), op.logits.size(1));
    let (logits, settings) = (InRows::new(cx, &op.logits)?, InRows::new(cx, &op.params)?);
    let out = Ints { base: cx.output::<i32>(&op.out)?, stride: op.out.stride(0) };
    let history = op
        .history
        .as_ref()
        .map(|view| cx.input::<i32>(view).map(|base| (Ints { base, stride: view.stride(0) }, view.size(1))));
    let history = history.transpose()?;
    if let Some((history, width)) = history {
        for row in 0..rows {
            for at in 0..width {
                // SAFETY: `spec` checked the shape.
                let index = unsafe { history.get(row, at) };
                if index >= 0 && index as usize >= vocab {
                    let (what, limit) = ("history token", vocab);
                    return Err(KernelError::Index { op: Sample::NAME, what, index: index.into(), limit });
                }
            }
        }
    }
    let words = vocab.div_ceil(32);
    let mask = op
        .mask
        .as_ref()
        .map(|view| cx.input::<i32>(view).map(|base| (Ints { base, stride: view.stride(0) }, view.size(0))));
    let mask = mask.transpose()?;
    for row in 0..rows {
        // SAFETY: `spec` checked that the operand has the row.
        let number = unsafe { settings.row(row) }.get(params::MASK) as usize;
        if let Some((_, limit)) = mask.filter(|&(_, count)| number > count) {
            let (what, index) = ("mask", number as i64 - 1);
            return Err(KernelError::Index { op: Sample::NAME, what, index, limit });
        }
    }
    cx.pool.run(rows, |row, worker| {
        // SAFETY: `spec` checked that each operand has the row.
        let (logits, set) = unsafe { (logits.row(row), settings.row(row)) };
        let set: [f32; params::COUNT] = std::array::from_fn(|column| set.get(column));
        let penalty = set[params::REPETITION_PENALTY];
        let penalized = history.filter(|&(_, width)| penalty != 1.0 && width > 0);
        let masked = mask.filter(|_| set[params::MASK] >= 1.0);
        let token = if set[params::TEMPERATURE] > 0.0 || penalized.is_some() || masked.is_some() {
            let (keys, weights) = split(worker.scratch.slice::<u64>(vocab + vocab.div_ceil(2)), vocab);
            let numbers = load(cx.isa, logits, weights);
            if let Some((history, width)) = penalized {
                for at in 0..width {
                    // SAFETY: `spec` checked the shape.
                    let id = unsafe { history.get(row, at) };
                    if id >= 0 {
                        // From the logit itself, so that a token seen twice is penalized once.
                        let logit = logits.get(id as usize) + 0.0;
                        weights[id as usize] = if logit > 0.0 { logit / penalty } else { logit * penalty };
                    }
                }
            }
            if let Some((mask, _)) = masked {
                let number = set[params::MASK] as usize - 1;
                for (at, tokens) in (0..words).zip(weights.chunks_mut(32)) {
                    // SAFETY: it has the row, as checked, and the word, as `spec` checked.
                    match unsafe { mask.get(number, at) } {
                        -1 => {}
                        0 => tokens.fill(f32::NEG_INFINITY),
                        word => {
                            let allowed = |bit: usize| word >> bit & 1 == 1;
                            let refused = tokens.iter_mut().enumerate().filter(|(bit, _)| !allowed(*bit));
                            refused.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
                        }
                    }
                }
            }
            let largest = if numbers { first_largest(weights) } else { None };
            match largest {
                Some(largest) if set[params::TEMPERATURE] > 0.0 => {
                    Some(draw(cx, &set, weights, keys, weights[largest]))
                }
                largest => largest,
            }
        } else {
            argmax(cx.isa, logits)
        };
        // SAFETY: the row exists and is this thread's alone.
        unsafe { out.set(row, token.map_or(NO_TOKEN, |token| token as i32)) };
    });
    Ok(())
}

/// `vocab` keys and as many floats out of one scratch slice.
fn split(scratch: &mut [u64], vocab: usize) -> (&mut [u64], &mut [f32]) {
    let (keys, rest) = scratch.split_at_mut(vocab);
    (keys, &mut bytemuck::cast_slice_mut(rest)[..vocab])
}

/// Index of the first of the largest values, which are numbers; `None` if the largest is infinite.
fn first_largest(values: &[f32]) -> Option<usize> {
    let mut best = (f32::NEG_INFINITY, 0);
    for (id, &value) in values.iter().enumerate() {
        if value > best.0 {
            best = (value, id);
        }
    }
    best.0.is_finite().then_some(best.1)
}

/// Sorts descending by logit, ascending by id.
fn key(logit: f32, id: usize) -> u64 {
    let bits = logit.to_bits();
    let ascending = bits ^ if bits >> 31 == 0 { 1 << 31 } else { u32::MAX };
    u64::from(!ascending) << 32 | id as u64
}

/// Token of a key.
fn id_of(key: u64) -> usize {
    (key & u64::from(u32::MAX)) as usize
}

crate::simd_fn! {
    /// Widens a row; whether it is without NaN. Both zeros become one.
    fn load<S>(s: S, from: InRow<'_>, to: &mut [f32]) -> bool {
        let len = from.len().min(to.len());
        let low = s.splat(f32::NEG_INFINITY);
        let mut strange = s.zero();
        for at in (0..len).step_by(S::LANES) {
            let n = S::LANES.min(len - at);
            // SAFETY: `at + n <= len`, within both rows.
            unsafe {
                let v = s.add(from.load(s, at, n), s.zero());
                strange = s.select(s.le(low, v), strange, s.splat(1.0));
                s.store_n(to.as_mut_ptr().add(at), v, n);
            }
        }
        s.max_lane(strange) == 0.0
    }
}

/// Logits whose largest is noted as one.
const BLOCK: usize = 1024;

crate::simd_fn! {
    /// Index of the first of the largest logits; `None` if there is a NaN or the largest is infinite.
    fn argmax<S>(s: S, row: InRow<'_>) -> Option<usize> {
        let (mut best, mut place) = (f32::NEG_INFINITY, 0);
        let (low, mut strange) = (s.splat(f32::NEG_INFINITY), s.zero());
        for start in (0..row.len()).step_by(BLOCK) {
            let end = row.len().min(start + BLOCK);
            let mut most = [low; 4];
            for (i, at) in (start..end).step_by(S::LANES).enumerate() {
                let n = S::LANES.min(end - at);
                // SAFETY: `at + n <= len`.
                let mut v = unsafe { row.load(s, at, n) };
                if n < S::LANES {
                    v = s.select(s.first(n), v, low);
                }
                strange = s.select(s.le(low, v), strange, s.splat(1.0));
                most[i % 4] = s.select(s.lt(most[i % 4], v), v, most[i % 4]);
            }
            let most = s.max_lane(s.max(s.max(most[0], most[1]), s.max(most[2], most[3])));
            if most > best {
                (best, place) = (most, start);
            }
        }
        if s.max_lane(strange) > 0.0 || !best.is_finite() {
            return None;
        }
        let end = row.len().min(place + BLOCK);
        (place..end).find(|&at| row.get(at) == best)
    }
}

crate::simd_fn! {
    /// `x = e^((x - most) / temperature)`; gives their sum.
    fn exponentials<S>(s: S, x: &mut [f32], most: f32, temperature: f32) -> f64 {
        let (most, temperature) = (s.splat(most), s.splat(temperature));
        let mut sum = 0.0;
        for block in x.chunks_mut(BLOCK) {
            let mut part = s.zero();
            for at in (0..block.len()).step_by(S::LANES) {
                let n = S::LANES.min(block.len() - at);
                // SAFETY: `at + n <= len`.
                unsafe {
                    let p = block.as_mut_ptr().add(at);
                    let w = math::exp(s, s.div(s.sub(s.load_n(p, n), most), temperature));
                    let w = s.select(s.first(n), w, s.zero());
                    s.store_n(p, w, n);
                    part = s.add(part, w);
                }
            }
            sum += f64::from(s.sum(part));
        }
        sum
    }
}

/// Draws a token of the row whose penalized logits are in `weights`, the largest being `most`.
fn draw(cx: &CpuCx, set: &[f32; params::COUNT], weights: &mut [f32], keys: &mut [u64], most: f32) -> usize {
    let vocab = weights.len();
    for ((id, &logit), key_) in weights.iter().enumerate().zip(&mut *keys) {
        *key_ = key(logit, id);
    }
    let mut kept = vocab;
    if set[params::TOP_K] >= 1.0 && (set[params::TOP_K] as usize) < vocab {
        let wanted = set[params::TOP_K] as usize;
        let last = *keys.select_nth_unstable(wanted - 1).1 >> 32;
        kept = wanted;
        // Ties with the last token kept stay.
        for at in wanted..vocab {
            if keys[at] >> 32 == last {
                keys.swap(at, kept);
                kept += 1;
            }
        }
    }
    let all = exponentials(cx.isa, weights, most, set[params::TEMPERATURE]);
    let weight = |key: u64| f64::from(weights[id_of(key)]);
    let mut ranked = Ranked { keys: &mut keys[..kept], sorted: 0 };
    let mut total = if kept == vocab { all } else { ranked.keys.iter().map(|&key| weight(key)).sum() };

    let (top_p, min_p) = (f64::from(set[params::TOP_P]), f64::from(set[params::MIN_P]));
    if top_p < 1.0 || min_p > 0.0 {
        let (mut before, mut count) = (0.0, 0);
        while count < kept {
            let w = weight(ranked.get(count));
            if count > 0 && ((top_p < 1.0 && before / total >= top_p) || w < min_p) {
                break;
            }
            before += w;
            count += 1;
        }
        (kept, total) = (count.max(1), before);
    }
    let cut = f64::from(set[params::UNIFORM]) * total;
    let mut sum = 0.0;
    let mut last = ranked.get(0);
    for rank in 0..kept {
        let key = ranked.get(rank);
        if weight(key) == 0.0 {
            break;
        }
        last = key;
        sum += weight(key);
        if sum > cut {
            break;
        }
    }
    id_of(last)
}

/// Keys that are sorted from the front as far as they are asked for.
struct Ranked<'a> {
    keys: &'a mut [u64],
    sorted: usize,
}

impl Ranked<'_> {
    /// The key of rank `rank`.
    fn get(&mut self, rank: usize) -> u64 {
        while rank >= self.sorted {
            let rest = &mut self.keys[self.sorted..];
            let more = (self.sorted * 3).max(64).min(rest.len());
            if more < rest.len() {
                rest.select_nth_unstable(more);
            }
            rest[..more].sort_unstable();
            self.sorted += more;
        }
        self.keys[rank]
    }
}
