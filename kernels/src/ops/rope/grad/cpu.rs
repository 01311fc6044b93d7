//! CPU kernel: as the forward one, sines and cosines once per token, and one pass over everything.

use std::ops::Range;

use super::{KvRead, RopeGrad};
use crate::buffer::View;
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{Kernel, Simd};
use crate::cpu::{CpuCx, CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::rope::cpu::{Angles, Turn, Turns, angles, bad, ints, rotate, widen};
use crate::select::Variant;
use crate::spec::KernelError;

/// Heads that one task turns at least: below, waking a thread costs more than it saves.
const HEADS_PER_TASK: usize = 256;
/// Tasks at most: each has its own sums for the scales, which are added up in order.
const MOST_TASKS: usize = 256;

impl CpuOp for RopeGrad {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        &[Variant { name: "fused", reject: |_, _| None, est_us: |_, _| 1.0, launch }]
    }
}

/// Heads of an operand `[tokens, heads, head_dim]`, or of pages.
#[derive(Clone, Copy)]
struct Heads {
    base: *mut f32,
    token: usize,
    head: usize,
}

impl Heads {
    fn at(&self, token: usize, head: usize) -> *mut f32 {
        self.base.wrapping_add(token * self.token + head * self.head)
    }
}

/// Normalization of the heads of queries or keys.
#[derive(Clone, Copy)]
struct Norm<'a> {
    /// Heads before it.
    x: Heads,
    /// Scales, offset included.
    weight: &'a [f32],
    eps: f32,
    /// Place of the sums of the gradient of the scales among those of a task.
    sums: Option<usize>,
}

/// Gradients of pages.
struct Pages<'a> {
    dk: *const f32,
    dv: *const f32,
    /// Page, slot and head strides of both.
    k_strides: [usize; 3],
    v_strides: [usize; 3],
    page: usize,
    slots: &'a [i32],
    /// Gradient of the values.
    to: Option<Heads>,
}

/// Everything that tasks share.
struct Plan<'a> {
    dq: Heads,
    dk: Heads,
    heads_q: usize,
    heads_kv: usize,
    head_dim: usize,
    angles: Angles<'a>,
    norm_q: Option<Norm<'a>>,
    norm_k: Option<Norm<'a>>,
    pages: Option<Pages<'a>>,
    /// Sums of each task for the scales.
    sums: *mut f32,
    /// Values of these sums.
    per_task: usize,
}

// SAFETY: a task writes the heads of its own tokens and its own sums only.
unsafe impl Sync for Plan<'_> {}

fn pages<'a>(cx: &CpuCx, kv: &'a KvRead) -> Result<Pages<'a>, KernelError> {
    let (page, slots) = (kv.dk_pages.size(1), ints(cx, &kv.slots)?);
    let limit = kv.dk_pages.size(0) * page;
    if let Some(&slot) = slots.iter().find(|&&slot| slot >= 0 && slot as usize >= limit) {
        return Err(bad(RopeGrad::NAME, "slot", slot, limit));
    }
    let strides = |view: &View| [view.stride(0), view.stride(1), view.stride(2)];
    Ok(Pages {
        dk: cx.input(&kv.dk_pages)?,
        dv: cx.input(&kv.dv_pages)?,
        k_strides: strides(&kv.dk_pages),
        v_strides: strides(&kv.dv_pages),
        page,
        slots,
        to: match &kv.dv {
            Some(dv) => Some(heads(dv, cx.output(dv)?)),
            None => None,
        },
    })
}

fn heads(view: &View, base: *mut f32) -> Heads {
    Heads { base, token: view.stride(0), head: view.stride(1) }
}

fn launch(op: &RopeGrad, cx: &CpuCx) -> Result<(), KernelError> {
    let (tokens, heads_q, head_dim) = (op.dq.size(0), op.dq.size(1), op.dq.size(2));
    let heads_kv = op.dk.size(1);
    let turns = Turns {
        op: RopeGrad::NAME,
        positions: &op.positions,
        inv_freq: &op.inv_freq,
        pair_axis: op.pair_axis.as_ref(),
        style: op.style,
        scaling: op.attention_scaling,
    };
    let angles = turns.read(cx)?;
    let least = (HEADS_PER_TASK / (heads_q + 2 * heads_kv).max(1)).max(1);
    let grain = least.max(tokens.div_ceil(MOST_TASKS));
    let tasks = tokens.div_ceil(grain);

    let mut scratch = Scratch::new();
    let wanted =
        |view: fn(&super::QkNormGrad) -> &Option<View>| op.norm.as_ref().and_then(|n| view(n).as_ref());
    let (d_q, d_k) = (wanted(|norm| &norm.d_q), wanted(|norm| &norm.d_k));
    let of_weights = if op.norm.is_some() { 2 * head_dim } else { 0 };
    let per_task = [d_q, d_k].into_iter().flatten().count() * head_dim;
    let (weights, sums) = scratch.slice::<f32>(of_weights + tasks * per_task).split_at_mut(of_weights);
    sums.fill(0.0);
    let (mut norm_q, mut norm_k) = (None, None);
    if let Some(norm) = &op.norm {
        let (q, k) = weights.split_at_mut(head_dim);
        widen(cx, &norm.norm.q, norm.norm.weight_offset, q)?;
        widen(cx, &norm.norm.k, norm.norm.weight_offset, k)?;
        let (q, k): (&[f32], &[f32]) = (q, k);
        let of = |x: &View, weight, sums| {
            let x = heads(x, cx.input::<f32>(x)?.cast_mut());
            Ok::<_, KernelError>(Some(Norm { x, weight, eps: norm.norm.eps, sums }))
        };
        norm_q = of(&norm.q, q, d_q.map(|_| 0))?;
        norm_k = of(&norm.k, k, d_k.map(|_| per_task - head_dim))?;
    }
    let plan = Plan {
        dq: heads(&op.dq, cx.output(&op.dq)?),
        dk: heads(&op.dk, cx.output(&op.dk)?),
        heads_q,
        heads_kv,
        head_dim,
        angles,
        norm_q,
        norm_k,
        pages: op.kv.as_ref().map(|kv| pages(cx, kv)).transpose()?,
        sums: sums.as_mut_ptr(),
        per_task,
    };
    cx.pool.run_ranges(tokens, grain, |tokens, worker| {
        let scratch = worker.scratch.slice::<f32>(plan.angles.scratch(head_dim));
        let sums = plan.sums.wrapping_add(tokens.start / grain * plan.per_task);
        cx.isa.run(Tokens { plan: &plan, tokens, sums, scratch });
    });
    for (view, place) in [(d_q, 0), (d_k, per_task.saturating_sub(head_dim))] {
        let Some(view) = view else { continue };
        let to = cx.output::<f32>(view)?;
        for of_task in sums.chunks_exact(per_task.max(1)) {
            for (d, sum) in of_task[place..][..head_dim].iter().enumerate() {
                // SAFETY: `d < head_dim`, the elements of the view.
                unsafe { *to.add(d) += sum };
            }
        }
    }
    Ok(())
}

struct Tokens<'a> {
    plan: &'a Plan<'a>,
    tokens: Range<usize>,
    sums: *mut f32,
    scratch: &'a mut [f32],
}

/// What becomes of a head that was turned back.
#[derive(Clone, Copy)]
enum Put {
    Replace,
    Add,
}

impl Kernel for Tokens<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { plan, tokens, sums, scratch } = self;
        let mut turn = Turn::new(plan.angles.pairs(), scratch);
        let hd = plan.head_dim;
        for token in tokens {
            angles(s, &plan.angles, token, &mut turn);
            for head in 0..plan.heads_q {
                let at = plan.dq.at(token, head);
                let norm = plan.norm_q.map(|norm| (norm, norm.x.at(token, head).cast_const()));
                // SAFETY: token and head are indices of the views; this task alone has this token and the sums.
                unsafe { turn_back(s, plan, &mut turn, norm, sums, at.cast_const(), at, Put::Replace) };
            }
            let Some(pages) = &plan.pages else {
                for head in 0..plan.heads_kv {
                    let at = plan.dk.at(token, head);
                    let norm = plan.norm_k.map(|norm| (norm, norm.x.at(token, head).cast_const()));
                    // SAFETY: as above.
                    unsafe { turn_back(s, plan, &mut turn, norm, sums, at.cast_const(), at, Put::Replace) };
                }
                continue;
            };
            let slot = pages.slots[token];
            if slot < 0 {
                continue;
            }
            let (page, slot) = (slot as usize / pages.page, slot as usize % pages.page);
            for head in 0..plan.heads_kv {
                let place = |strides: &[usize; 3]| page * strides[0] + slot * strides[1] + head * strides[2];
                let norm = plan.norm_k.map(|norm| (norm, norm.x.at(token, head).cast_const()));
                // SAFETY: as above; `pages` checked the slot.
                unsafe {
                    let from = pages.dk.add(place(&pages.k_strides));
                    turn_back(s, plan, &mut turn, norm, sums, from, plan.dk.at(token, head), Put::Add);
                    if let Some(to) = pages.to {
                        let from = pages.dv.add(place(&pages.v_strides));
                        put(s, from, to.at(token, head), hd, Put::Add);
                    }
                }
            }
        }
    }
}

/// # Safety
/// Both have `n` elements.
#[inline(always)]
unsafe fn put<S: Simd>(s: S, from: *const f32, to: *mut f32, n: usize, into: Put) {
    for d in (0..n).step_by(S::LANES) {
        let len = (n - d).min(S::LANES);
        // SAFETY: `d + len <= n`.
        unsafe {
            let x = s.load_n(from.add(d), len);
            let x = match into {
                Put::Replace => x,
                Put::Add => s.add(s.load_n(to.add(d), len), x),
            };
            s.store_n(to.add(d), x, len);
        }
    }
}

/// Turns the gradient of a head back, takes it through the normalization and puts it in its place.
///
/// # Safety
/// All have `head_dim` elements, `sums` those of a task; `from` and `to` are equal or apart.
#[inline(always)]
unsafe fn turn_back<S: Simd>(
    s: S,
    plan: &Plan,
    turn: &mut Turn,
    norm: Option<(Norm, *const f32)>,
    sums: *mut f32,
    from: *const f32,
    to: *mut f32,
    into: Put,
) {
    let hd = plan.head_dim;
    // SAFETY: the working memory has `head_dim` elements, and as the caller vouches.
    unsafe {
        put(s, from, turn.head.as_mut_ptr(), hd, Put::Replace);
        rotate(s, &plan.angles, turn, true);
        let g = turn.head.as_mut_ptr();
        if let Some((norm, x)) = norm {
            let weight = norm.weight.as_ptr();
            let (mut squares, mut products) = (s.zero(), s.zero());
            for d in (0..hd).step_by(S::LANES) {
                let len = (hd - d).min(S::LANES);
                let x = s.load_n(x.add(d), len);
                squares = s.fma(x, x, squares);
                let gw = s.mul(s.load_n(g.add(d), len), s.load_n(weight.add(d), len));
                products = s.fma(gw, x, products);
            }
            let n = hd as f32;
            let r = 1.0 / (s.sum(squares) / n + norm.eps).sqrt();
            let share = s.splat(s.sum(products) / n * r * r);
            let r = s.splat(r);
            for d in (0..hd).step_by(S::LANES) {
                let len = (hd - d).min(S::LANES);
                let (x, gradient) = (s.load_n(x.add(d), len), s.load_n(g.add(d), len));
                if let Some(place) = norm.sums {
                    let sum = sums.add(place + d);
                    s.store_n(sum, s.fma(s.mul(gradient, r), x, s.load_n(sum, len)), len);
                }
                let gw = s.mul(gradient, s.load_n(weight.add(d), len));
                s.store_n(g.add(d), s.mul(s.fnma(x, share, gw), r), len);
            }
        }
        put(s, g.cast_const(), to, hd, into);
    }
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
        let report = run_cpu::<RopeGrad>(&Isa::available(), &Arc::new(Pool::new(3)), 7);
        assert!(report.failed.is_empty(), "{} failed:\n{}", report.failed.len(), report.failed.join("\n"));
        assert!(report.passed > 0);
    }

    #[test]
    fn threads_change_no_bit() {
        let mut cx = CaseCx::new(5);
        let cases = RopeGrad::cases(&mut cx).into_iter().filter(|case| case.op.dq.size(0) > 500);
        let mut normalized = 0;
        for case in cases {
            let Some(norm) = &case.op.norm else { continue };
            let gradients = [&norm.d_q, &norm.d_k].into_iter().flatten().chain([&case.op.dq, &case.op.dk]);
            let storages: Vec<_> = gradients.map(|view| view.storage().clone()).collect();
            let before: Vec<Vec<u8>> = storages.iter().map(|storage| storage.snapshot()).collect();
            let run = |threads: usize| -> Vec<Vec<u8>> {
                storages.iter().zip(&before).for_each(|(storage, bytes)| storage.restore(bytes));
                let cpu = CpuCx { isa: Isa::best(), pool: Arc::new(Pool::new(threads)), id: cx.id() };
                launch(&case.op, &cpu).expect("a case");
                storages.iter().map(|storage| storage.snapshot()).collect()
            };
            let one = run(1);
            assert!(one != before, "{}: nothing was added", case.name);
            for threads in [2, 5, 8] {
                assert!(run(threads) == one, "{}: {threads} threads", case.name);
            }
            normalized += 1;
        }
        assert!(normalized > 0);
    }
}
