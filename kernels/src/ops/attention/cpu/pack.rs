//! Conversions between operands of any float type and the panels that the kernels multiply: of f32, or of words of two bf16.

use std::marker::PhantomData;

use half::{bf16, f16};

use super::row::Row;
use super::tasks::{Call, Rows, panel};
use crate::cpu::simd::{Elem, Kernel, MAX_LANES, Simd, StoreElem};
use crate::spec::DType;

/// The conversions for the types of one op.
///
/// The pointers take buffers of at least the size that each function states, and rows and keys of the op.
#[derive(Clone, Copy)]
pub(super) struct Io {
    /// Queries times `factor` as `[head_dim, tile]`, rows along the vectors. As words, elements two by two, without the factor.
    pub(super) queries: unsafe fn(&Call, &Rows, *mut f32),
    /// Keys from the given one on as `[keys / panel, head_dim, panel]`, keys along the vectors. As words, elements two by two.
    pub(super) keys: unsafe fn(&Call, &Rows, usize, usize, *mut f32),
    /// Values from the given one on as `[keys, padded]`; the first so many of them become zeros. As words, keys two by two.
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
            DType::I8 => Self::on::<X, i8>(),
            _ => Self::on::<X, f32>(),
        }
    }

    fn on<X: StoreElem, K: Row>() -> Self {
        Self {
            queries: queries::<One<X>>,
            keys: keys::<Head<K>>,
            values: values::<K>,
            store: store::<X>,
            ahead: ahead::<X, K>,
            ahead_queries: ahead_queries::<X>,
        }
    }

    /// Panels of words, for operands of bf16.
    pub(super) fn words() -> Self {
        let (queries, keys) = (queries::<Two>, keys::<Two>);
        Self { queries, keys, values: value_pairs, ..Self::on::<bf16, bf16>() }
    }

    /// Such words for matrix tiles: queries as above, up to whole tiles; keys as `[keys, words]` and values as `[padded, keys / 2]`, rows
    /// filled up to whole tiles with zeros.
    pub(super) fn tiles() -> Self {
        Self { queries: tile_queries, keys: tile_keys, values: tile_values, ..Self::on::<bf16, bf16>() }
    }
}

/// Words of two that so many values make, up to whole matrix tiles.
pub(super) const fn tile_words(values: usize) -> usize {
    values.div_ceil(2).next_multiple_of(MAX_LANES)
}

/// How the elements of a head fill the lanes of a panel.
trait Lane {
    /// Type of the elements.
    type Of: Copy;
    /// Elements of a lane.
    const PACK: usize;

    /// A vector of elements of a head of `head_dim`, times its scale.
    ///
    /// # Safety
    /// `head` is the first element of such a head.
    #[inline(always)]
    unsafe fn scaled<S: Simd>(_s: S, x: S::V, _head: *const Self::Of, _head_dim: usize) -> S::V {
        x
    }

    /// A vector of the first `n` elements, zeros after them; `n` may be more than a vector holds.
    ///
    /// # Safety
    /// `p` is readable for `n` elements.
    unsafe fn load<S: Simd>(s: S, p: *const Self::Of, n: usize) -> S::V;
}

/// One f32.
struct One<T>(PhantomData<T>);

impl<T: Elem> Lane for One<T> {
    type Of = T;
    const PACK: usize = 1;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const T, n: usize) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { load_up_to(s, p, n) }
    }
}

/// One f32 of a key or a value.
struct Head<T>(PhantomData<T>);

impl<T: Row> Lane for Head<T> {
    type Of = T;
    const PACK: usize = 1;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const T, n: usize) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { load_up_to(s, p, n) }
    }

    #[inline(always)]
    unsafe fn scaled<S: Simd>(s: S, x: S::V, head: *const T, head_dim: usize) -> S::V {
        // SAFETY: as the caller vouches.
        if T::SCALED { s.mul(x, s.splat(unsafe { T::scale(head, head_dim) })) } else { x }
    }
}

/// Two bf16 as they are stored, the first in the low half.
struct Two;

impl Lane for Two {
    type Of = bf16;
    const PACK: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const bf16, n: usize) -> S::V {
        // SAFETY: as the caller vouches: at most `n` elements are read.
        unsafe {
            if n >= 2 * S::LANES {
                return s.load(p.cast());
            }
            let mut all = [bf16::ZERO; 2 * MAX_LANES];
            std::ptr::copy_nonoverlapping(p, all.as_mut_ptr(), n);
            s.load(all.as_ptr().cast())
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

struct Queries<'a, L: Lane> {
    call: &'a Call<'a>,
    rows: &'a Rows,
    from: *const L::Of,
    to: *mut f32,
}

/// # Safety
/// As [`Io`] says.
unsafe fn queries<L: Lane>(call: &Call, rows: &Rows, to: *mut f32) {
    call.isa.run(Queries::<L> { call, rows, from: call.q.cast(), to });
}

impl<L: Lane> Kernel for Queries<'_, L> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, rows, from, to } = self;
        let (hd, tile, factor) = (call.operands.head_dim, call.geometry.tile, s.splat(call.factor));
        let words = hd.div_ceil(L::PACK);
        for first in (0..rows.count).step_by(S::LANES) {
            for d in (0..words).step_by(S::LANES) {
                let mut block = [s.zero(); MAX_LANES];
                for (lane, v) in block.iter_mut().enumerate().take((rows.count - first).min(S::LANES)) {
                    // SAFETY: a row of the op.
                    unsafe {
                        let row = from.add(rows.at(&call.operands, call.operands.q, first + lane));
                        *v = L::load(s, row.add(L::PACK * d), hd - L::PACK * d);
                    }
                    if L::PACK == 1 {
                        *v = s.mul(*v, factor);
                    }
                }
                // SAFETY: `block` holds a vector for each lane; the buffer has `head_dim` rows of a tile.
                unsafe {
                    s.transpose(block.as_mut_ptr());
                    for (i, v) in block.iter().enumerate().take((words - d).min(S::LANES)) {
                        s.store(to.add((d + i) * tile + first), *v);
                    }
                }
            }
        }
    }
}

struct Keys<'a, L: Lane> {
    call: &'a Call<'a>,
    rows: &'a Rows,
    first: usize,
    count: usize,
    from: *const L::Of,
    to: *mut f32,
}

/// # Safety
/// As [`Io`] says.
unsafe fn keys<L: Lane>(call: &Call, rows: &Rows, first: usize, count: usize, to: *mut f32) {
    call.isa.run(Keys::<L> { call, rows, first, count, from: call.k.cast(), to });
}

impl<L: Lane> Kernel for Keys<'_, L> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, rows, first, count, from, to } = self;
        let (hd, panel) = (call.operands.head_dim, panel::<S>());
        let words = hd.div_ceil(L::PACK);
        // Whole panels are written, zeros where there is no key.
        for j in (0..count.next_multiple_of(panel)).step_by(S::LANES) {
            let have = count.saturating_sub(j).min(S::LANES);
            let mut places = [0; MAX_LANES];
            for (lane, place) in places.iter_mut().enumerate().take(have) {
                *place = call.operands.k_at(&rows.seq, rows.head, first + j + lane);
            }
            // SAFETY: the buffer has room for whole panels.
            let to = unsafe { to.add(j / panel * (words * panel) + j % panel) };
            for d in (0..words).step_by(S::LANES) {
                let mut block = [s.zero(); MAX_LANES];
                for (v, &place) in block.iter_mut().zip(&places).take(have) {
                    // SAFETY: a key of the op.
                    *v = unsafe {
                        let head = from.add(place);
                        L::scaled(s, L::load(s, head.add(L::PACK * d), hd - L::PACK * d), head, hd)
                    };
                }
                // SAFETY: `block` holds a vector for each lane; the panel has `head_dim` rows.
                unsafe {
                    s.transpose(block.as_mut_ptr());
                    for (i, v) in block.iter().enumerate().take((words - d).min(S::LANES)) {
                        s.store(to.add((d + i) * panel), *v);
                    }
                }
            }
        }
    }
}

struct Values<'a, K: Row>(Keys<'a, Head<K>>, usize);

/// # Safety
/// As [`Io`] says.
unsafe fn values<K: Row>(call: &Call, rows: &Rows, first: usize, zeros: usize, count: usize, to: *mut f32) {
    call.isa.run(Values::<K>(Keys { call, rows, first, count, from: call.v.cast(), to }, zeros));
}

impl<K: Row> Kernel for Values<'_, K> {
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
                    let x = load_up_to(s, from.add(d), hd - d);
                    s.store(to.add(d), Head::<K>::scaled(s, x, from, hd));
                }
                // Whole micro-tiles are multiplied: what lies behind the head must not be slow numbers.
                for d in (hd.next_multiple_of(S::LANES)..padded).step_by(S::LANES) {
                    s.store(to.add(d), s.zero());
                }
            }
        }
    }
}

struct ValuePairs<'a>(Keys<'a, Two>, usize);

/// # Safety
/// As [`Io`] says.
unsafe fn value_pairs(call: &Call, rows: &Rows, first: usize, zeros: usize, count: usize, to: *mut f32) {
    call.isa.run(ValuePairs(Keys { call, rows, first, count, from: call.v.cast(), to }, zeros));
}

impl Kernel for ValuePairs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (count, to, padded) = (self.0.count, self.0.to, self.0.call.geometry.padded);
        for j in (0..count).step_by(2) {
            for d in (0..padded).step_by(S::LANES) {
                // SAFETY: the buffer has a row of `padded` words for each two keys.
                unsafe { s.store(to.add(j / 2 * padded + d), self.words(s, j, d)) };
            }
        }
    }
}

impl ValuePairs<'_> {
    /// Elements from `d` on of keys `j` and `j + 1`, a word for each; zeros where there is none.
    #[inline(always)]
    fn words<S: Simd>(&self, s: S, j: usize, d: usize) -> S::V {
        let Self(Keys { call, rows, first, count, from, .. }, zeros) = self;
        let hd = call.operands.head_dim;
        let bits = |j: usize| {
            if !(*zeros..*count).contains(&j) || d >= hd {
                return s.splat_i(0);
            }
            // SAFETY: a value of the op, whose elements before `hd` exist.
            let x = unsafe {
                let from = from.add(call.operands.v_at(&rows.seq, rows.head, first + j));
                load_up_to(s, from.add(d), hd - d)
            };
            s.to_bits(x)
        };
        s.of_bits(s.or_i(s.shr_i::<16>(bits(j)), bits(j + 1)))
    }
}

/// # Safety
/// As [`Io`] says.
unsafe fn tile_queries(call: &Call, rows: &Rows, to: *mut f32) {
    let (hd, tile) = (call.operands.head_dim, call.geometry.tile);
    let words = hd.div_ceil(2);
    // SAFETY: as the caller vouches; heads have at least 32 elements, so whole tiles are no more rows than those.
    unsafe {
        queries::<Two>(call, rows, to);
        std::ptr::write_bytes(to.add(words * tile), 0, (tile_words(hd) - words) * tile);
    }
}

/// # Safety
/// As [`Io`] says.
unsafe fn tile_keys(call: &Call, rows: &Rows, first: usize, count: usize, to: *mut f32) {
    let (hd, from) = (call.operands.head_dim, call.k.cast::<bf16>());
    let words = tile_words(hd);
    let to = to.cast::<bf16>();
    for j in 0..count {
        // SAFETY: a key of the op; the buffer has a row for each.
        unsafe {
            let (from, to) =
                (from.add(call.operands.k_at(&rows.seq, rows.head, first + j)), to.add(2 * j * words));
            std::ptr::copy_nonoverlapping(from, to, hd);
            std::ptr::write_bytes(to.add(hd), 0, 2 * words - hd);
        }
    }
    let whole = count.next_multiple_of(MAX_LANES);
    // SAFETY: the buffer has whole tiles of rows.
    unsafe { std::ptr::write_bytes(to.add(2 * count * words), 0, 2 * (whole - count) * words) };
}

struct TileValues<'a>(ValuePairs<'a>);

/// # Safety
/// As [`Io`] says.
unsafe fn tile_values(call: &Call, rows: &Rows, first: usize, zeros: usize, count: usize, to: *mut f32) {
    let keys = Keys { call, rows, first, count, from: call.v.cast(), to };
    call.isa.run(TileValues(ValuePairs(keys, zeros)));
}

impl Kernel for TileValues<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Keys { call, count, to, .. } = self.0.0;
        let across = tile_words(call.block);
        for pair in (0..tile_words(count)).step_by(S::LANES) {
            for d in (0..call.geometry.padded).step_by(S::LANES) {
                let mut block = [s.zero(); MAX_LANES];
                for (lane, v) in block.iter_mut().enumerate().take(S::LANES) {
                    *v = self.0.words(s, 2 * (pair + lane), d);
                }
                // SAFETY: `block` holds a vector for each lane; the buffer has `padded` rows of words of a block.
                unsafe {
                    s.transpose(block.as_mut_ptr());
                    for (i, v) in block.iter().enumerate().take(S::LANES) {
                        s.store(to.add((d + i) * across + pair), *v);
                    }
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
