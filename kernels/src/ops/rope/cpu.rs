//! CPU kernel: sines and cosines once per token, shared by its heads; one pass over queries, keys and values.

use half::{bf16, f16};

use super::{Rope, RopeStyle};
use crate::buffer::View;
use crate::cpu::CpuCx;
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{Elem, Kernel, MAX_LANES, Simd, StoreElem};
use crate::cpu::{CpuOp, CpuRows};
use crate::op::Op;
use crate::ops::kept::Kept;
use crate::select::Variant;
use crate::spec::{DType, Element, KernelError};

/// Heads that one task turns at least: below, waking a thread costs more than it saves.
const HEADS_PER_TASK: usize = 256;

impl CpuOp for Rope {
    #[inline(never)]
    fn cpu_variants() -> CpuRows<Self> {
        const ROWS: CpuRows<Rope> =
            &[Variant { name: "fused", reject: |_, _| None, est_us: |_, _| 1.0, launch }];
        ROWS
    }
}

fn launch(op: &Rope, cx: &CpuCx) -> Result<(), KernelError> {
    match op.q.dtype() {
        DType::BF16 => launch_on::<bf16>(op, cx),
        DType::F16 => launch_on::<f16>(op, cx),
        _ => launch_on::<f32>(op, cx),
    }
}

fn launch_on<X: StoreElem + Element>(op: &Rope, cx: &CpuCx) -> Result<(), KernelError> {
    match op.kv.as_ref().map(|kv| kv.k_pages.dtype()) {
        None => run::<X, X>(op, cx),
        Some(DType::BF16) => run::<X, bf16>(op, cx),
        Some(DType::F16) => run::<X, f16>(op, cx),
        Some(DType::I8) => run::<X, i8>(op, cx),
        Some(_) => run::<X, f32>(op, cx),
    }
}

/// Heads of one operand `[tokens, heads, head_dim]`.
struct Heads<X> {
    base: *mut X,
    token: usize,
    head: usize,
    count: usize,
}

/// Pages that keys and values go to.
struct Pages<'a, X, P> {
    v: *const X,
    v_strides: (usize, usize),
    k_pages: *mut P,
    v_pages: *mut P,
    /// Page, slot and head strides of both.
    k_strides: [usize; 3],
    v_page_strides: [usize; 3],
    page: usize,
    slots: &'a [i32],
}

/// Everything that tasks share.
struct Plan<'a, X, P> {
    q: Heads<X>,
    /// Written only without pages.
    k: Heads<X>,
    pages: Option<Pages<'a, X, P>>,
    angles: Angles<'a>,
    head_dim: usize,
    /// Scales of query heads, then of key heads.
    norm: Option<&'a [f32]>,
    eps: f32,
}

/// By what the pairs of each token are turned.
pub(super) struct Angles<'a> {
    positions: &'a [i32],
    axis_stride: usize,
    inv_freq: &'a [f32],
    pair_axis: Option<&'a [i32]>,
    style: RopeStyle,
    scaling: f32,
}

/// Operands that say by what pairs are turned.
pub(super) struct Turns<'a> {
    /// Name of the op.
    pub(super) op: &'static str,
    pub(super) positions: &'a View,
    pub(super) inv_freq: &'a View,
    pub(super) pair_axis: Option<&'a View>,
    pub(super) style: RopeStyle,
    pub(super) scaling: f32,
}

impl<'a> Turns<'a> {
    /// Errors if a pair names an axis that is not there.
    pub(super) fn read(&self, cx: &CpuCx) -> Result<Angles<'a>, KernelError> {
        let axes = self.positions.size(0);
        let pair_axis = self.pair_axis.map(|view| ints(cx, view)).transpose()?;
        if let Some(&axis) = pair_axis.and_then(|all| all.iter().find(|&&a| a < 0 || a as usize >= axes)) {
            return Err(bad(self.op, "pair_axis", axis, axes));
        }
        let inv_freq = cx.input::<f32>(self.inv_freq)?;
        Ok(Angles {
            positions: ints(cx, self.positions)?,
            axis_stride: self.positions.stride(0),
            // SAFETY: the pointer is valid for the extent of the layout, and nothing writes the buffer while the op runs.
            inv_freq: unsafe { std::slice::from_raw_parts(inv_freq, self.inv_freq.layout().extent()) },
            pair_axis,
            style: self.style,
            scaling: self.scaling,
        })
    }
}

impl Angles<'_> {
    pub(super) fn pairs(&self) -> usize {
        self.inv_freq.len()
    }

    /// Values that [`Turn::new`] takes for heads of `head_dim`.
    pub(super) fn scratch(&self, head_dim: usize) -> usize {
        5 * self.pairs().next_multiple_of(MAX_LANES) + head_dim
    }
}

// SAFETY: a task writes the heads and slots of its own tokens only; no two tasks have one slot (`distinct`).
unsafe impl<X, P> Sync for Plan<'_, X, P> {}

/// The i32 elements of a view whose last axis is contiguous.
pub(super) fn ints<'a>(cx: &CpuCx, view: &'a View) -> Result<&'a [i32], KernelError> {
    let base = cx.input::<i32>(view)?;
    // SAFETY: the pointer is valid for the extent of the layout, and nothing writes the buffer while the op runs.
    Ok(unsafe { std::slice::from_raw_parts(base, view.layout().extent()) })
}

pub(super) fn bad(op: &'static str, what: &'static str, index: i32, limit: usize) -> KernelError {
    KernelError::Index { op, what, index: i64::from(index), limit }
}

/// Writes a weight vector, `offset` added, as f32.
pub(super) fn widen(cx: &CpuCx, view: &View, offset: f32, to: &mut [f32]) -> Result<(), KernelError> {
    fn each<T: Elem>(from: *const T, offset: f32, to: &mut [f32]) {
        for (i, value) in to.iter_mut().enumerate() {
            // SAFETY: the view has as many elements as `to`.
            *value = unsafe { *from.add(i) }.to_f32() + offset;
        }
    }
    match view.dtype() {
        DType::BF16 => each(cx.input::<bf16>(view)?, offset, to),
        DType::F16 => each(cx.input::<f16>(view)?, offset, to),
        _ => each(cx.input::<f32>(view)?, offset, to),
    }
    Ok(())
}

/// Whether no slot is written twice.
fn distinct(slots: &[i32], limit: usize) -> bool {
    let mut last = -1;
    let ascending = slots.iter().filter(|&&slot| slot >= 0).all(|&slot| {
        let up = slot > last;
        last = slot;
        up
    });
    if ascending {
        return true;
    }
    let mut scratch = Scratch::new();
    let seen = scratch.slice::<u64>(limit.div_ceil(64));
    seen.fill(0);
    slots.iter().filter(|&&slot| slot >= 0).all(|&slot| {
        let (word, bit) = (slot as usize / 64, 1 << (slot % 64));
        let new = seen[word] & bit == 0;
        seen[word] |= bit;
        new
    })
}

fn run<X: StoreElem + Element, P: Kept + Element>(op: &Rope, cx: &CpuCx) -> Result<(), KernelError> {
    let (tokens, head_dim, heads_q, heads_kv) = (op.q.size(0), op.q.size(2), op.q.size(1), op.k.size(1));
    let turns = Turns {
        op: Rope::NAME,
        positions: &op.positions,
        inv_freq: &op.inv_freq,
        pair_axis: op.pair_axis.as_ref(),
        style: op.style,
        scaling: op.attention_scaling,
    };
    let angles = turns.read(cx)?;
    let mut parallel = true;
    let pages = match &op.kv {
        None => None,
        Some(kv) => {
            let (page, slots) = (kv.k_pages.size(1), ints(cx, &kv.slots)?);
            let limit = kv.k_pages.size(0) * page;
            if let Some(&slot) = slots.iter().find(|&&slot| slot >= 0 && slot as usize >= limit) {
                return Err(bad(Rope::NAME, "slot", slot, limit));
            }
            parallel = distinct(slots, limit);
            let strides = |view: &View| [view.stride(0), view.stride(1), view.stride(2)];
            Some(Pages {
                v: cx.input::<X>(&kv.v)?,
                v_strides: (kv.v.stride(0), kv.v.stride(1)),
                k_pages: cx.output::<P>(&kv.k_pages)?,
                v_pages: cx.output::<P>(&kv.v_pages)?,
                k_strides: strides(&kv.k_pages),
                v_page_strides: strides(&kv.v_pages),
                page,
                slots,
            })
        }
    };
    let mut scratch = Scratch::new();
    let weights = scratch.slice::<f32>(if op.norm.is_some() { 2 * head_dim } else { 0 });
    if let Some(norm) = &op.norm {
        widen(cx, &norm.q, norm.weight_offset, &mut weights[..head_dim])?;
        widen(cx, &norm.k, norm.weight_offset, &mut weights[head_dim..])?;
    }
    let k = if pages.is_some() { cx.input::<X>(&op.k)?.cast_mut() } else { cx.output::<X>(&op.k)? };
    let plan = Plan {
        q: Heads {
            base: cx.output::<X>(&op.q)?,
            token: op.q.stride(0),
            head: op.q.stride(1),
            count: heads_q,
        },
        k: Heads { base: k, token: op.k.stride(0), head: op.k.stride(1), count: heads_kv },
        pages,
        angles,
        head_dim,
        norm: op.norm.is_some().then_some(weights),
        eps: op.norm.as_ref().map_or(0.0, |norm| norm.eps),
    };
    let grain = if parallel { (HEADS_PER_TASK / (heads_q + 2 * heads_kv).max(1)).max(1) } else { tokens };
    cx.pool.run_ranges(tokens, grain, |tokens, worker| {
        let scratch = worker.scratch.slice::<f32>(plan.angles.scratch(head_dim));
        cx.isa.run(Tokens { plan: &plan, tokens, scratch });
    });
    Ok(())
}

struct Tokens<'a, X, P> {
    plan: &'a Plan<'a, X, P>,
    tokens: std::ops::Range<usize>,
    scratch: &'a mut [f32],
}

/// Sines and cosines of one token, and working memory of one head.
pub(super) struct Turn<'a> {
    sin: &'a mut [f32],
    cos: &'a mut [f32],
    a: &'a mut [f32],
    b: &'a mut [f32],
    quadrants: &'a mut [i32],
    /// A head.
    pub(super) head: &'a mut [f32],
}

impl<'a> Turn<'a> {
    pub(super) fn new(pairs: usize, scratch: &'a mut [f32]) -> Self {
        let size = pairs.next_multiple_of(MAX_LANES);
        let (sin, rest) = scratch.split_at_mut(size);
        let (cos, rest) = rest.split_at_mut(size);
        let (a, rest) = rest.split_at_mut(size);
        let (b, rest) = rest.split_at_mut(size);
        let (quadrants, head) = rest.split_at_mut(size);
        Self { sin, cos, a, b, quadrants: bytemuck::cast_slice_mut(quadrants), head }
    }
}

impl<X: StoreElem, P: Kept> Kernel for Tokens<'_, X, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { plan, tokens, scratch } = self;
        let mut turn = Turn::new(plan.angles.pairs(), scratch);
        let norms = plan.norm.map(|norm| norm.split_at(plan.head_dim));
        for token in tokens {
            angles(s, &plan.angles, token, &mut turn);
            for head in 0..plan.q.count {
                // SAFETY: token and head are indices of the view; this task alone has this token.
                unsafe {
                    let at = plan.q.base.add(token * plan.q.token + head * plan.q.head);
                    turn_head(s, plan, &mut turn, norms.map(|n| n.0), at.cast_const(), at);
                }
            }
            for head in 0..plan.k.count {
                // SAFETY: as above.
                let at = unsafe { plan.k.base.add(token * plan.k.token + head * plan.k.head) };
                let Some(pages) = &plan.pages else {
                    // SAFETY: as above.
                    unsafe { turn_head(s, plan, &mut turn, norms.map(|n| n.1), at.cast_const(), at) };
                    continue;
                };
                let slot = pages.slots[token];
                if slot < 0 {
                    continue;
                }
                let (page, slot) = (slot as usize / pages.page, slot as usize % pages.page);
                let place = |strides: &[usize; 3]| page * strides[0] + slot * strides[1] + head * strides[2];
                // SAFETY: `run` checked the slot; no other task writes it.
                unsafe {
                    let to = pages.k_pages.add(place(&pages.k_strides));
                    turn_head(s, plan, &mut turn, norms.map(|n| n.1), at.cast_const(), to);
                    let from = pages.v.add(token * pages.v_strides.0 + head * pages.v_strides.1);
                    P::keep(s, from, pages.v_pages.add(place(&pages.v_page_strides)), plan.head_dim);
                }
            }
        }
    }
}

/// Sines and cosines of the angles of one token, scaling included.
///
/// The reduction to `|r| <= pi/4` runs in f64 with pi/2 in three parts, the products with the first two exact for
/// quotients below 2^31, so that `r` is the exact one rounded to f32; larger angles go through the scalar functions.
#[inline(always)]
pub(super) fn angles<S: Simd>(s: S, of: &Angles, token: usize, turn: &mut Turn) {
    /// Adding it rounds to an integer and leaves that in the low bits.
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    const PARTS: [f64; 3] = [1.570_796_012_878_418, 3.139_164_164_167_596e-7, 6.223_372_171_896_613e-14];
    const LARGEST: f32 = 2e9;
    let pairs = of.inv_freq.len();
    let mut large = false;
    for p in 0..pairs {
        let axis = of.pair_axis.map_or(0, |axis| axis[p] as usize);
        let angle = of.positions[axis * of.axis_stride + token] as f32 * of.inv_freq[p];
        turn.a[p] = angle;
        large |= angle.abs() > LARGEST;
        let exact = f64::from(angle);
        let t = exact * std::f64::consts::FRAC_2_PI + MAGIC;
        let n = t - MAGIC;
        turn.b[p] = (((exact - n * PARTS[0]) - n * PARTS[1]) - n * PARTS[2]) as f32;
        turn.quadrants[p] = t.to_bits() as i32;
    }
    for p in (0..pairs).step_by(S::LANES) {
        // SAFETY: the slices are padded to whole vectors.
        unsafe {
            let r = s.load(turn.b.as_ptr().add(p));
            let quadrant = s.load_i(turn.quadrants.as_ptr().add(p));
            let z = s.mul(r, r);
            let mut sin = s.splat(-1.949_631_7e-4);
            sin = s.fma(sin, z, s.splat(8.331_984e-3));
            sin = s.fma(sin, z, s.splat(-0.166_666_51));
            let sin = s.fma(s.mul(sin, z), r, r);
            let mut cos = s.splat(2.443_916_9e-5);
            cos = s.fma(cos, z, s.splat(-1.388_737_3e-3));
            cos = s.fma(cos, z, s.splat(4.166_664_6e-2));
            cos = s.fma(cos, z, s.splat(-0.5));
            let cos = s.fma(cos, z, s.splat(1.0));
            // Odd quadrants swap the two; bit 1 of the quadrant negates the sine, that of the next one the cosine.
            let odd = s.to_float(s.and_i(quadrant, s.splat_i(1)));
            let odd = s.lt(s.splat(0.5), odd);
            let minus = |q: S::I| s.shl_i::<30>(s.and_i(q, s.splat_i(2)));
            let (sine, cosine) = (s.select(odd, cos, sin), s.select(odd, sin, cos));
            let sine = s.of_bits(s.xor_i(s.to_bits(sine), minus(quadrant)));
            let cosine = s.of_bits(s.xor_i(s.to_bits(cosine), minus(s.add_i(quadrant, s.splat_i(1)))));
            s.store(turn.sin.as_mut_ptr().add(p), s.mul(sine, s.splat(of.scaling)));
            s.store(turn.cos.as_mut_ptr().add(p), s.mul(cosine, s.splat(of.scaling)));
        }
    }
    if large {
        for p in (0..pairs).filter(|&p| turn.a[p].abs() > LARGEST) {
            let (sin, cos) = f64::from(turn.a[p]).sin_cos();
            turn.sin[p] = sin as f32 * of.scaling;
            turn.cos[p] = cos as f32 * of.scaling;
        }
    }
}

/// Normalizes and turns one head.
///
/// # Safety
/// `from` is readable for `head_dim` elements, and `to` writable for those that such a head takes; they are equal or apart.
#[inline(always)]
unsafe fn turn_head<S: Simd, X: Elem, Y: Kept, A, B>(
    s: S,
    plan: &Plan<A, B>,
    turn: &mut Turn,
    weight: Option<&[f32]>,
    from: *const X,
    to: *mut Y,
) {
    let hd = plan.head_dim;
    let head = turn.head.as_mut_ptr();
    // SAFETY: `head` has `head_dim` elements, and `from` too.
    unsafe { f32::keep(s, from, head, hd) };
    if let Some(weight) = weight {
        // SAFETY: `head` and `weight` have `head_dim` elements.
        unsafe { normalize(s, head, weight.as_ptr(), hd, plan.eps) };
    }
    rotate(s, &plan.angles, turn, false);
    // SAFETY: `head` has `head_dim` elements, and `to` room for them.
    unsafe { Y::keep(s, turn.head.as_ptr(), to, hd) };
}

/// Turns the head in the working memory by the angles of the token, scaling included; `back` the other way.
#[inline(always)]
pub(super) fn rotate<S: Simd>(s: S, angles: &Angles, turn: &mut Turn, back: bool) {
    let interleaved = angles.style == RopeStyle::Interleaved;
    let pairs = angles.pairs();
    let head = turn.head.as_mut_ptr();
    let (mut a, mut b) = (head, head.wrapping_add(pairs));
    if interleaved {
        for p in 0..pairs {
            turn.a[p] = turn.head[2 * p];
            turn.b[p] = turn.head[2 * p + 1];
        }
        (a, b) = (turn.a.as_mut_ptr(), turn.b.as_mut_ptr());
    }
    if back {
        // The other way round is the same of swapped elements.
        std::mem::swap(&mut a, &mut b);
    }
    for p in (0..pairs).step_by(S::LANES) {
        let n = (pairs - p).min(S::LANES);
        // SAFETY: `p + n <= pairs`, and `2 * pairs <= head_dim`.
        unsafe {
            let (sin, cos) = (s.load_n(turn.sin.as_ptr().add(p), n), s.load_n(turn.cos.as_ptr().add(p), n));
            let (x, y) = (s.load_n(a.add(p), n), s.load_n(b.add(p), n));
            s.store_n(a.add(p), s.fnma(y, sin, s.mul(x, cos)), n);
            s.store_n(b.add(p), s.fma(x, sin, s.mul(y, cos)), n);
        }
    }
    if interleaved {
        for p in 0..pairs {
            turn.head[2 * p] = turn.a[p];
            turn.head[2 * p + 1] = turn.b[p];
        }
    }
}

/// `x[d] *= weight[d] / sqrt(mean(x^2) + eps)`
///
/// # Safety
/// `x` and `weight` have `n` elements.
#[inline(always)]
unsafe fn normalize<S: Simd>(s: S, x: *mut f32, weight: *const f32, n: usize, eps: f32) {
    let mut squares = s.zero();
    for d in (0..n).step_by(S::LANES) {
        let len = (n - d).min(S::LANES);
        // SAFETY: `d + len <= n`.
        let v = unsafe { s.load_n(x.add(d), len) };
        squares = s.fma(v, v, squares);
    }
    let scale = s.splat(1.0 / (s.sum(squares) / n as f32 + eps).sqrt());
    for d in (0..n).step_by(S::LANES) {
        let len = (n - d).min(S::LANES);
        // SAFETY: `d + len <= n`.
        unsafe {
            let w = s.mul(s.load_n(weight.add(d), len), scale);
            s.store_n(x.add(d), s.mul(s.load_n(x.add(d), len), w), len);
        }
    }
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conformance::run_cpu;
    use crate::cpu::isa::Isa;
    use crate::cpu::pool::Pool;

    #[test]
    fn conforms() {
        let report = run_cpu::<Rope>(&Isa::available(), &Arc::new(Pool::new(3)), 7);
        assert!(report.failed.is_empty(), "{} failed:\n{}", report.failed.len(), report.failed.join("\n"));
        assert!(report.passed > 0);
    }
}
