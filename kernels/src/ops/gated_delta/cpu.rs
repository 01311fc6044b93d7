//! CPU kernels.
//!
//! A task takes some columns of one head's state, which stay in the first-level cache, through all rows of a sequence. Each row
//! is one pass over them: what it changes, its result, and what the next row's key finds.

use super::{EPS, GatedDelta, Heads};
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRow, InRows, OutRows};
use crate::cpu::simd::Simd;
use crate::cpu::{CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::sequences::Sequence;
use crate::select::Variant;
use crate::spec::KernelError;

impl CpuOp for GatedDelta {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "scan-f32", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

/// Vectors of columns of a task.
const WIDE: usize = 2;

struct Rows<'a> {
    qkv: InRows<'a>,
    gates: InRows<'a>,
    decay: InRows<'a>,
    /// The states, `[slots * heads_v * d_k, d_v]`.
    old: InRows<'a>,
    state: OutRows<'a>,
    out: OutRows<'a>,
    heads: Heads,
}

fn launch(op: &GatedDelta, cx: &CpuCx) -> Result<(), KernelError> {
    let (heads, slots) = (op.heads()?, op.state.size(0));
    let flat = op.state.reshape(&[slots * heads.v * heads.d_k, heads.d_v])?;
    let all = Rows {
        qkv: InRows::new(cx, &op.qkv)?,
        gates: InRows::new(cx, &op.gates)?,
        decay: InRows::new(cx, &op.decay)?,
        old: InRows::new(cx, &flat)?,
        state: OutRows::new(cx, &flat)?,
        out: OutRows::new(cx, &op.out)?,
        heads,
    };
    let seqs = op.seqs.on_host(cx, GatedDelta::NAME, op.qkv.size(0), slots)?;
    let width = WIDE * cx.isa.lanes();
    let (chunks, keys) = (heads.d_v.div_ceil(width), heads.d_k.next_multiple_of(cx.isa.lanes()));
    cx.pool.run(seqs.len() * heads.v * chunks, |task, worker| {
        let (seq, head) = (seqs[task / chunks / heads.v], task / chunks % heads.v);
        let buffer = worker.scratch.slice::<f32>(heads.d_k * width + 3 * keys);
        scan(cx.isa, &all, seq, head, task % chunks * width, buffer);
    });
    Ok(())
}

/// `beta` and the decay of a row.
fn rates(p: &Rows<'_>, row: usize, head: usize) -> (f32, f32) {
    let heads = p.heads.v;
    // SAFETY: `launch` checked the row; nothing writes gates and rates meanwhile.
    let (gates, rate, bias) = unsafe { (p.gates.row(row), p.decay.row(0), p.decay.row(1)) };
    let x = gates.get(heads + head) + bias.get(head);
    let soft = x.max(0.0) + (-x.abs()).exp().ln_1p();
    (1.0 / (1.0 + (-gates.get(head)).exp()), (-rate.get(head) * soft).exp())
}

/// `to = x * scale / |x|`.
///
/// # Safety
/// `to` has room for the elements of `x` up to a whole vector.
#[inline(always)]
unsafe fn unit<S: Simd>(s: S, x: InRow<'_>, len: usize, scale: f32, to: *mut f32) {
    // SAFETY: as the caller vouches.
    unsafe {
        let mut squares = s.zero();
        for at in (0..len).step_by(S::LANES) {
            let v = x.load(s, at, S::LANES.min(len - at));
            squares = s.fma(v, v, squares);
            s.store(to.add(at), v);
        }
        let scale = s.splat(scale / (s.sum(squares) + EPS).sqrt());
        for at in (0..len).step_by(S::LANES) {
            s.store(to.add(at), s.mul(s.load(to.add(at)), scale));
        }
    }
}

crate::simd_fn! {
    /// Columns of a head of a sequence from `start` on, which are this thread's alone.
    fn scan<S>(s: S, p: &Rows<'_>, seq: Sequence, head: usize, start: usize, buffer: &mut [f32]) {
        let Heads { d_k, d_v, v: heads_v, .. } = p.heads;
        let width = WIDE * S::LANES;
        let keys = d_k.next_multiple_of(S::LANES);
        let (state, vectors) = buffer.split_at_mut(d_k * width);
        let (state, q) = (state.as_mut_ptr(), vectors.as_mut_ptr());
        let lanes = |i: usize| S::LANES.min((d_v - start).saturating_sub(i * S::LANES));
        let (at_q, at_k, at_v) = p.heads.columns(head);
        let scale = 1.0 / (d_k as f32).sqrt();
        // SAFETY: `launch` checked rows and slots, `spec` the columns; `buffer` holds `d_k * width` values of the state and three
        // vectors of `keys`.
        unsafe {
            let (mut k, mut next) = (q.add(keys), q.add(2 * keys));
            let key = |row: usize, to: *mut f32| {
                unit(s, p.qkv.row(row).skip(at_k), d_k, 1.0, to);
            };
            if seq.rows == 0 {
                return;
            }
            key(seq.first, next);
            // The state before, and what the first key finds in it.
            let mut known = [s.zero(); WIDE];
            for i in 0..d_k {
                let old = seq.old().map(|slot| p.old.row((slot * heads_v + head) * d_k + i).skip(start));
                let factor = s.splat(*next.add(i));
                for (j, known) in known.iter_mut().enumerate() {
                    let v = old.map_or(s.zero(), |old| old.load(s, j * S::LANES, lanes(j)));
                    *known = s.fma(factor, v, *known);
                    s.store(state.add(i * width + j * S::LANES), v);
                }
            }
            for row in seq.first..seq.first + seq.rows {
                std::mem::swap(&mut k, &mut next);
                unit(s, p.qkv.row(row).skip(at_q), d_k, scale, q);
                let last = row + 1 == seq.first + seq.rows;
                if !last {
                    key(row + 1, next);
                }
                let (beta, decay) = rates(p, row, head);
                let (beta, decay) = (s.splat(beta), s.splat(decay));
                let value = p.qkv.row(row).skip(at_v + start);
                let mut change = [s.zero(); WIDE];
                for (j, change) in change.iter_mut().enumerate() {
                    let wrong = s.fnma(decay, known[j], value.load(s, j * S::LANES, lanes(j)));
                    *change = s.mul(beta, wrong);
                }
                known = [s.zero(); WIDE];
                let mut sums = [s.zero(); WIDE];
                for i in 0..d_k {
                    let (k, q, next) = (s.splat(*k.add(i)), s.splat(*q.add(i)), s.splat(*next.add(i)));
                    for j in 0..WIDE {
                        let at = state.add(i * width + j * S::LANES);
                        let v = s.fma(k, change[j], s.mul(decay, s.load(at)));
                        s.store(at, v);
                        sums[j] = s.fma(q, v, sums[j]);
                        known[j] = s.fma(next, v, known[j]);
                    }
                }
                let out = p.out.row(row).part(head * d_v + start, d_v - start);
                for (j, &sum) in sums.iter().enumerate() {
                    out.store(s, j * S::LANES, sum, lanes(j));
                }
            }
            let Some(slot) = seq.slot else { return };
            for i in 0..d_k {
                let to = p.state.row((slot * heads_v + head) * d_k + i).part(start, d_v - start);
                for j in 0..WIDE {
                    to.store(s, j * S::LANES, s.load(state.add(i * width + j * S::LANES)), lanes(j));
                }
            }
        }
    }
}
