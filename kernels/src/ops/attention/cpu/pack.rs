//! Conversions between operands of any float type and the f32 panels that the kernels multiply.

use half::{bf16, f16};

use super::tasks::{Call, Rows, panel};
use crate::cpu::simd::{Elem, Kernel, MAX_LANES, Simd, StoreElem};
use crate::spec::DType;

/// The conversions for the types of one op.
///
/// The pointers take buffers of at least the size that each function states, and rows and keys of the op.
#[derive(Clone, Copy)]
pub(super) struct Io {
    /// Queries times `factor` as `[head_dim, tile]`, rows along the vectors.
    pub(super) queries: unsafe fn(&Call, &Rows, *mut f32),
    /// Keys from the given one on as `[keys / panel, head_dim, panel]`, keys along the vectors.
    pub(super) keys: unsafe fn(&Call, &Rows, usize, usize, *mut f32),
    /// Values from the given one on as `[keys, padded]`; the first so many of them become zeros.
    pub(super) values: unsafe fn(&Call, &Rows, usize, usize, usize, *mut f32),
    /// Results `[padded, tile]`, rows along the vectors, times a factor for each row.
    pub(super) store: unsafe fn(&Call, &Rows, *const f32, *const f32),
    /// Asks for so many keys and values from the given one on, and, if told so, for the places of the results.
    pub(super) ahead: fn(&Call, &Rows, usize, usize, bool),
    /// Asks for queries.
    pub(super) ahead_queries: fn(&Call, &Rows),
}

impl Io {
    pub(super) fn new(x: DType, kv: DType) -> Self {
        match x {
            DType::BF16 => Self::of::<bf16>(kv),
            DType::F16 => Self::of::<f16>(kv),
            _ => Self::of::<f32>(kv),
        }
    }

    fn of<X: StoreElem>(kv: DType) -> Self {
        match kv {
            DType::BF16 => Self::on::<X, bf16>(),
            DType::F16 => Self::on::<X, f16>(),
            _ => Self::on::<X, f32>(),
        }
    }

    fn on<X: StoreElem, K: Elem>() -> Self {
        Self {
            queries: queries::<X>,
            keys: keys::<K>,
            values: values::<K>,
            store: store::<X>,
            ahead: ahead::<X, K>,
            ahead_queries: ahead_queries::<X>,
        }
    }
}

/// The first `n` elements, zeros after them; `n` may be more than a vector holds.
///
/// # Safety
/// `p` is readable for `n` elements.
#[inline(always)]
unsafe fn load_up_to<S: Simd, T: Elem>(s: S, p: *const T, n: usize) -> S::V {
    // SAFETY: at most `n` elements are read.
    unsafe { if n >= S::LANES { T::load(s, p) } else { T::load_n(s, p, n) } }
}

/// Asks for the cache lines of the elements at each of the places that the function gives for `0..count`.
struct Ahead<F>(usize, F);

impl<T, F: Fn(usize) -> (*const T, usize)> Kernel for Ahead<F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in 0..self.0 {
            let (from, n) = (self.1)(i);
            for at in (0..n * size_of::<T>()).step_by(64) {
                s.prefetch(from.cast::<u8>().wrapping_add(at));
            }
        }
    }
}

fn ahead<X, K>(call: &Call, rows: &Rows, first: usize, count: usize, results: bool) {
    let (operands, hd) = (&call.operands, call.operands.head_dim);
    let (k, v, out) = (call.k.cast::<K>(), call.v.cast::<K>(), call.out.cast_const().cast::<X>());
    let key = |j| (k.wrapping_add(operands.k_at(&rows.seq, rows.head, first + j)), hd);
    let value = |j| (v.wrapping_add(operands.v_at(&rows.seq, rows.head, first + j)), hd);
    call.isa.run(Ahead(count, key));
    call.isa.run(Ahead(count, value));
    if results {
        call.isa.run(Ahead(rows.count, |r| (out.wrapping_add(rows.at(operands, operands.out, r)), hd)));
    }
}

fn ahead_queries<X>(call: &Call, rows: &Rows) {
    let (operands, q) = (&call.operands, call.q.cast::<X>());
    call.isa
        .run(Ahead(rows.count, |r| (q.wrapping_add(rows.at(operands, operands.q, r)), operands.head_dim)));
}

struct Queries<'a, X> {
    call: &'a Call<'a>,
    rows: &'a Rows,
    from: *const X,
    to: *mut f32,
}

/// # Safety
/// As [`Io`] says.
unsafe fn queries<X: Elem>(call: &Call, rows: &Rows, to: *mut f32) {
    call.isa.run(Queries::<X> { call, rows, from: call.q.cast(), to });
}

impl<X: Elem> Kernel for Queries<'_, X> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, rows, from, to } = self;
        let (hd, tile, factor) = (call.operands.head_dim, call.geometry.tile, s.splat(call.factor));
        for first in (0..rows.count).step_by(S::LANES) {
            for d in (0..hd).step_by(S::LANES) {
                let mut block = [s.zero(); MAX_LANES];
                for (lane, v) in block.iter_mut().enumerate().take((rows.count - first).min(S::LANES)) {
                    // SAFETY: a row of the op.
                    unsafe {
                        let row = from.add(rows.at(&call.operands, call.operands.q, first + lane));
                        *v = s.mul(load_up_to(s, row.add(d), hd - d), factor);
                    }
                }
                // SAFETY: `block` holds a vector for each lane; the buffer has `head_dim` rows of a tile.
                unsafe {
                    s.transpose(block.as_mut_ptr());
                    for (i, v) in block.iter().enumerate().take((hd - d).min(S::LANES)) {
                        s.store(to.add((d + i) * tile + first), *v);
                    }
                }
            }
        }
    }
}

struct Keys<'a, K> {
    call: &'a Call<'a>,
    rows: &'a Rows,
    first: usize,
    count: usize,
    from: *const K,
    to: *mut f32,
}

/// # Safety
/// As [`Io`] says.
unsafe fn keys<K: Elem>(call: &Call, rows: &Rows, first: usize, count: usize, to: *mut f32) {
    call.isa.run(Keys::<K> { call, rows, first, count, from: call.k.cast(), to });
}

impl<K: Elem> Kernel for Keys<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, rows, first, count, from, to } = self;
        let (hd, panel) = (call.operands.head_dim, panel::<S>());
        // Whole panels are written, zeros where there is no key.
        for j in (0..count.next_multiple_of(panel)).step_by(S::LANES) {
            let have = count.saturating_sub(j).min(S::LANES);
            let mut places = [0; MAX_LANES];
            for (lane, place) in places.iter_mut().enumerate().take(have) {
                *place = call.operands.k_at(&rows.seq, rows.head, first + j + lane);
            }
            // SAFETY: the buffer has room for whole panels.
            let to = unsafe { to.add(j / panel * (hd * panel) + j % panel) };
            for d in (0..hd).step_by(S::LANES) {
                let mut block = [s.zero(); MAX_LANES];
                for (v, &place) in block.iter_mut().zip(&places).take(have) {
                    // SAFETY: a key of the op.
                    *v = unsafe { load_up_to(s, from.add(place + d), hd - d) };
                }
                // SAFETY: `block` holds a vector for each lane; the panel has `head_dim` rows.
                unsafe {
                    s.transpose(block.as_mut_ptr());
                    for (i, v) in block.iter().enumerate().take((hd - d).min(S::LANES)) {
                        s.store(to.add((d + i) * panel), *v);
                    }
                }
            }
        }
    }
}

struct Values<'a, K>(Keys<'a, K>, usize);

/// # Safety
/// As [`Io`] says.
unsafe fn values<K: Elem>(call: &Call, rows: &Rows, first: usize, zeros: usize, count: usize, to: *mut f32) {
    call.isa.run(Values::<K>(Keys { call, rows, first, count, from: call.v.cast(), to }, zeros));
}

impl<K: Elem> Kernel for Values<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Keys { call, rows, first, count, from, to } = self.0;
        let (hd, padded) = (call.operands.head_dim, call.geometry.padded);
        let zeros = self.1.min(count);
        for d in (0..zeros * padded).step_by(S::LANES) {
            // SAFETY: the buffer has `count` rows of `padded` elements, which are whole vectors.
            unsafe { s.store(to.add(d), s.zero()) };
        }
        for j in zeros..count {
            // SAFETY: a value of the op; the buffer has `count` rows of `padded` elements.
            unsafe {
                let from = from.add(call.operands.v_at(&rows.seq, rows.head, first + j));
                let to = to.add(j * padded);
                for d in (0..hd).step_by(S::LANES) {
                    s.store(to.add(d), load_up_to(s, from.add(d), hd - d));
                }
                // Whole micro-tiles are multiplied: what lies behind the head must not be slow numbers.
                for d in (hd.next_multiple_of(S::LANES)..padded).step_by(S::LANES) {
                    s.store(to.add(d), s.zero());
                }
            }
        }
    }
}

struct Store<'a, X> {
    call: &'a Call<'a>,
    rows: &'a Rows,
    from: *const f32,
    factors: *const f32,
    to: *mut X,
}

/// # Safety
/// As [`Io`] says.
unsafe fn store<X: StoreElem>(call: &Call, rows: &Rows, from: *const f32, factors: *const f32) {
    call.isa.run(Store::<X> { call, rows, from, factors, to: call.out.cast() });
}

impl<X: StoreElem> Kernel for Store<'_, X> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, rows, from, factors, to } = self;
        let (hd, tile) = (call.operands.head_dim, call.geometry.tile);
        for first in (0..rows.count).step_by(S::LANES) {
            // SAFETY: there is a factor for each row of the tile.
            let factor = unsafe { s.load(factors.add(first)) };
            for d in (0..hd).step_by(S::LANES) {
                let mut block = [s.zero(); MAX_LANES];
                for (i, v) in block.iter_mut().enumerate().take(S::LANES) {
                    // SAFETY: the buffer has `padded` rows, a multiple of the lanes.
                    *v = unsafe { s.mul(s.load(from.add((d + i) * tile + first)), factor) };
                }
                // SAFETY: `block` holds a vector for each lane.
                unsafe { s.transpose(block.as_mut_ptr()) };
                for (lane, v) in block.iter().enumerate().take((rows.count - first).min(S::LANES)) {
                    // SAFETY: a row of the result that no other task has.
                    unsafe {
                        let row = to.add(rows.at(&call.operands, call.operands.out, first + lane) + d);
                        if hd - d >= S::LANES {
                            X::store(s, row, *v);
                        } else {
                            X::store_n(s, row, *v, hd - d);
                        }
                    }
                }
            }
        }
    }
}
