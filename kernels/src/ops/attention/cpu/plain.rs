//! One query head at a time: two passes over its keys.

use super::Shared;
use super::operands::{Operands, Seq};
use crate::cpu::CpuCx;
use crate::cpu::simd::{Elem, Kernel, Simd, StoreElem, math};
use crate::ops::attention::Attention;
use crate::spec::{Element, KernelError};

pub(super) fn run<X: StoreElem + Element, K: Elem + Element>(
    op: &Attention,
    cx: &CpuCx,
    k: *const K,
    v: *const K,
) -> Result<(), KernelError> {
    let operands = Operands::new(op, cx)?;
    let (q, out) = (cx.input::<X>(&op.q)?, cx.output::<X>(&op.out)?);
    let shared = Shared((q, k, v, out));
    for index in 0..operands.seqs() {
        let seq = operands.seq(index);
        cx.pool.run_ranges(seq.q_len * operands.heads_kv * operands.group, 8, |heads, worker| {
            let &(q, k, v, out) = shared.get();
            let scratch = worker.scratch.slice::<f32>(seq.kv_len + 2 * operands.head_dim);
            let (scale, cap) = (op.scale, op.softcap);
            cx.isa.run(Heads { operands: &operands, seq, heads, scratch, q, k, v, out, scale, cap });
        });
    }
    Ok(())
}

struct Heads<'a, X, K> {
    operands: &'a Operands<'a>,
    seq: Seq,
    heads: std::ops::Range<usize>,
    scratch: &'a mut [f32],
    q: *const X,
    k: *const K,
    v: *const K,
    out: *mut X,
    scale: f32,
    cap: f32,
}

impl<X: StoreElem, K: Elem> Kernel for Heads<'_, X, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { operands, seq, heads, scratch, q, k, v, out, scale, cap } = self;
        let hd = operands.head_dim;
        let (query, rest) = scratch.split_at_mut(hd);
        let (sum, scores) = rest.split_at_mut(hd);
        let heads_q = operands.heads_kv * operands.group;
        for index in heads {
            let (i, head) = (index / heads_q, index % heads_q);
            let at = (seq.row + i) * operands.q.0 + head * operands.q.1;
            for (d, value) in query.iter_mut().enumerate() {
                // SAFETY: token, head and `d` are indices of the view.
                *value = unsafe { *q.add(at + d) }.to_f32() * scale;
            }
            let seen = operands.visible(&seq, i);
            let head_kv = head / operands.group;
            let mut most = f32::MIN;
            for (j, score) in scores[..seq.kv_len].iter_mut().enumerate() {
                if j >= seq.prefix && !seen.contains(&j) {
                    *score = f32::NEG_INFINITY;
                    continue;
                }
                // SAFETY: a key of the sequence, checked by `Operands::new`.
                let key = unsafe { k.add(operands.k_at(&seq, head_kv, j)) };
                let mut acc = s.zero();
                for d in (0..hd).step_by(S::LANES) {
                    let n = (hd - d).min(S::LANES);
                    // SAFETY: `d + n <= hd` elements of both rows.
                    acc = unsafe {
                        s.fma(s.load_n(query.as_ptr().add(d), n), K::load_n(s, key.add(d), n), acc)
                    };
                }
                *score = s.sum(acc);
                if cap > 0.0 {
                    *score = cap * s.max_lane(math::tanh(s, s.splat(*score / cap)));
                }
                most = most.max(*score);
            }
            sum.fill(0.0);
            let mut total = 0.0;
            for (j, &score) in scores[..seq.kv_len].iter().enumerate() {
                if score == f32::NEG_INFINITY {
                    continue;
                }
                let p = s.max_lane(math::exp(s, s.splat(score - most)));
                total += p;
                // SAFETY: a value of the sequence, checked by `Operands::new`.
                let value = unsafe { v.add(operands.v_at(&seq, head_kv, j)) };
                for d in (0..hd).step_by(S::LANES) {
                    let n = (hd - d).min(S::LANES);
                    // SAFETY: `d + n <= hd` elements of both rows.
                    unsafe {
                        let to = sum.as_mut_ptr().add(d);
                        s.store_n(to, s.fma(s.splat(p), K::load_n(s, value.add(d), n), s.load_n(to, n)), n);
                    }
                }
            }
            let inverse = if total > 0.0 { 1.0 / total } else { 0.0 };
            let at = (seq.row + i) * operands.out.0 + head * operands.out.1;
            for (d, &value) in sum.iter().enumerate() {
                // SAFETY: token, head and `d` are indices of the view, and no other task has this head.
                unsafe { *out.add(at + d) = X::from_f32(value * inverse) };
            }
        }
    }
}
