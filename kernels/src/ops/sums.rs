//! What gradients share: their check, rows that are added to or replaced, and sums over rows whose order depends on no number
//! of threads.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::Range;

use super::check;
use crate::buffer::View;
use crate::cpu::CpuCx;
use crate::cpu::rows::{InRow, InRows};
use crate::cpu::scratch::Scratch;
use crate::cpu::simd::{Elem, Simd, StoreElem};
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, ShapeError, tolerance};

/// The gradients of one op while they are checked: each lies apart from what is read and from those checked before it.
pub(super) struct Checked<'a> {
    /// The gradient of the result, whose place another may take.
    d_out: &'a View,
    others: Vec<(&'a str, &'a View)>,
}

impl<'a> Checked<'a> {
    /// For an op that reads `d_out` and `inputs`.
    pub(super) fn new(d_out: &'a View, inputs: impl IntoIterator<Item = (&'a str, &'a View)>) -> Self {
        Self { d_out, others: inputs.into_iter().collect() }
    }

    /// A gradient that is added to: f32 of this shape.
    pub(super) fn sum(
        &mut self,
        name: &'a str,
        view: Option<&'a View>,
        shape: &[usize],
    ) -> Result<(), ShapeError> {
        let Some(view) = view else { return Ok(()) };
        check::output(name, view, [("d_out", self.d_out)])?;
        self.apart(name, view, shape)
    }

    /// As [`sum`](Self::sum); the gradient may also be the very elements of `d_out`, which it then replaces.
    pub(super) fn sum_or_place(
        &mut self,
        name: &'a str,
        view: Option<&'a View>,
        shape: &[usize],
    ) -> Result<(), ShapeError> {
        let Some(view) = view else { return Ok(()) };
        if !view.same_elements(self.d_out) {
            check::output(name, view, [("d_out", self.d_out)])?;
        }
        self.apart(name, view, shape)
    }

    fn apart(&mut self, name: &'a str, view: &'a View, shape: &[usize]) -> Result<(), ShapeError> {
        check::dtype(name, view, DType::F32)?;
        check::shape(name, view, shape)?;
        check::output(name, view, self.others.iter().copied())?;
        self.others.push((name, view));
        Ok(())
    }
}

/// The rows of a gradient `[rows, cols]`; a vector `[cols]` is one row.
#[derive(Clone, Copy)]
pub(super) struct GradRows<'a> {
    base: *mut f32,
    stride: usize,
    replaces: bool,
    view: PhantomData<&'a View>,
}

// SAFETY: a pointer into memory of a view; the contract of `row` states who may access it.
unsafe impl Send for GradRows<'_> {}
// SAFETY: as above.
unsafe impl Sync for GradRows<'_> {}

impl<'a> GradRows<'a> {
    /// The rows of `view`, f32. They are added to, or replaced if they are the very elements of `d_out`.
    pub(super) fn new(cx: &CpuCx, view: &'a View, d_out: &View) -> Result<Self, KernelError> {
        let stride = if view.layout().rank() < 2 { 0 } else { view.stride(0) };
        let replaces = view.same_elements(d_out);
        Ok(Self { base: cx.output(view)?, stride, replaces, view: PhantomData })
    }

    /// # Safety
    /// The view has more than `row` rows, and no other thread accesses those elements of this one that the caller does.
    #[inline(always)]
    pub(super) unsafe fn row(&self, row: usize) -> GradRow<'a> {
        let base = self.base.wrapping_add(row * self.stride);
        GradRow { base, replaces: self.replaces, view: PhantomData }
    }
}

/// A row of a gradient.
#[derive(Clone, Copy)]
pub(super) struct GradRow<'a> {
    base: *mut f32,
    replaces: bool,
    view: PhantomData<&'a View>,
}

// SAFETY: as for `GradRows`.
unsafe impl Send for GradRow<'_> {}
// SAFETY: as above.
unsafe impl Sync for GradRow<'_> {}

impl GradRow<'_> {
    /// The elements from `start` on.
    #[inline(always)]
    pub(super) fn skip(self, start: usize) -> Self {
        Self { base: self.base.wrapping_add(start), ..self }
    }

    /// Adds to element `at`, or puts the value in its place.
    ///
    /// # Safety
    /// The row has this element.
    #[inline(always)]
    pub(super) unsafe fn give_one(&self, at: usize, value: f32) {
        // SAFETY: within the row, as the caller vouches.
        unsafe {
            let to = self.base.add(at);
            *to = if self.replaces { value } else { *to + value };
        }
    }

    /// Adds the first `n` lanes to elements `at..at + n`, or puts them in the place of these.
    ///
    /// # Safety
    /// The row has these elements, `n <= LANES`.
    #[inline(always)]
    pub(super) unsafe fn give<S: Simd>(&self, s: S, at: usize, v: S::V, n: usize) {
        // SAFETY: within the row, as the caller vouches.
        unsafe {
            let to = self.base.add(at);
            let v = if self.replaces { v } else { s.add(load(s, to, n), v) };
            store(s, to, v, n);
        }
    }
}

/// Elements `0..n` at `p`, zero in lanes beyond.
///
/// # Safety
/// `p` is readable for `n <= LANES` values.
#[inline(always)]
pub(super) unsafe fn load<S: Simd>(s: S, p: *const f32, n: usize) -> S::V {
    // SAFETY: as the caller vouches.
    unsafe { if n == S::LANES { f32::load(s, p) } else { f32::load_n(s, p, n) } }
}

/// Stores the first `n` lanes at `p`.
///
/// # Safety
/// `p` is writable for `n <= LANES` values.
#[inline(always)]
pub(super) unsafe fn store<S: Simd>(s: S, p: *mut f32, v: S::V, n: usize) {
    // SAFETY: as the caller vouches.
    unsafe { if n == S::LANES { f32::store(s, p, v) } else { f32::store_n(s, p, v, n) } }
}

/// Sums over rows, formed block of rows by block of rows and then added up, block after block. How rows are cut depends on
/// their number alone, so that any number of threads gives the same bits.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    ptr: *mut f32,
    /// Rows of a block.
    pub rows: usize,
    /// Blocks.
    pub count: usize,
    /// Sums of a block.
    len: usize,
}

// SAFETY: `of` gives each block to one thread, and blocks are added up once all are there.
unsafe impl Send for Blocks {}
// SAFETY: as above.
unsafe impl Sync for Blocks {}

impl Blocks {
    /// Room for `len` sums over each block of `rows` rows, which lives as long as `scratch` is not used otherwise.
    pub(super) fn new(scratch: &mut Scratch, rows: usize, len: usize) -> Self {
        const MOST: usize = 64;
        const ROWS: usize = 16;
        let each = rows.div_ceil(MOST).max(ROWS);
        let count = rows.div_ceil(each);
        Self { ptr: scratch.slice::<f32>(count * len).as_mut_ptr(), rows: each, count, len }
    }

    /// The sums of a block; what they are before the first is stored is not defined.
    pub(super) fn of(&self, block: usize) -> *mut f32 {
        self.ptr.wrapping_add(block * self.len)
    }

    /// Adds sums `from..from + cols` of all blocks to a vector of as many elements, which other threads do not access.
    pub(super) fn add_up(&self, cx: &CpuCx, from: usize, cols: usize, to: GradRow<'_>) {
        assert!(from + cols <= self.len);
        cx.pool.run_ranges(cols, if self.count * cols < 1 << 16 { cols } else { 256 }, |range, _| {
            add_blocks(cx.isa, *self, from, to, range);
        });
    }
}

crate::simd_fn! {
    /// Adds some columns up. The vector and the sums have them.
    fn add_blocks<S>(s: S, sums: Blocks, from: usize, to: GradRow<'_>, columns: Range<usize>) {
        for at in columns.clone().step_by(S::LANES) {
            let n = S::LANES.min(columns.end - at);
            // SAFETY: as the caller vouches; `add_up` checked that blocks have these sums.
            unsafe {
                let mut sum = s.zero();
                for block in 0..sums.count {
                    sum = s.add(sum, load(s, sums.of(block).add(from + at), n));
                }
                to.give(s, at, sum, n);
            }
        }
    }
}

/// A sum in f64, with what bounds its error in f32.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sum {
    value: f64,
    /// Of all terms together, for whatever order.
    size: f64,
    /// Errors of the terms.
    error: f64,
    terms: usize,
}

impl Sum {
    /// Adds a term that is known to within `error`.
    pub(super) fn add(&mut self, term: f64, error: f64) {
        self.value += term;
        self.size += term.abs();
        self.error += error;
        self.terms += 1;
    }

    /// The sum of as many terms as were added, and its error: one addition is rounded once, of two results of 24 bits.
    pub(super) fn result(self) -> (f64, f64) {
        let rounding = match self.terms {
            0 | 1 => 0.0,
            2 => 2.0 * DType::F32.roundoff() * (self.value.abs() + self.error),
            terms => tolerance::dot(terms, self.size + self.error),
        };
        (self.value, self.error + rounding)
    }
}

/// States the elements of a gradient, if it is asked for: the sums and what was there before, or the sums alone where the
/// gradient takes the place of `d_out`.
pub(super) fn expect_sums(
    io: &mut Oracle,
    view: Option<&View>,
    d_out: &View,
    mut sums: Vec<Sum>,
) -> Result<(), KernelError> {
    let Some(view) = view else { return Ok(()) };
    if !view.same_elements(d_out) {
        for (sum, before) in sums.iter_mut().zip(io.read(view)?) {
            sum.add(before, 0.0);
        }
    }
    let (values, errors) = sums.into_iter().map(Sum::result).unzip();
    io.expect(view, values, errors);
    Ok(())
}

/// States the rows of a gradient that terms are added to: row `i` of `[rows.len(), cols]` terms, `term(i, col)` with its error, goes to row
/// `rows[i]`. The others stay.
pub(super) fn expect_rows(
    io: &mut Oracle,
    view: &View,
    rows: impl Iterator<Item = usize>,
    term: impl Fn(usize, usize) -> (f64, f64),
) -> Result<(), KernelError> {
    let (before, cols) = (io.read(view)?, view.size(1));
    let mut sums: BTreeMap<usize, Vec<Sum>> = BTreeMap::new();
    for (from, row) in rows.enumerate() {
        let sums = sums.entry(row).or_insert_with(|| {
            let mut sums = vec![Sum::default(); cols];
            sums.iter_mut().zip(&before[row * cols..]).for_each(|(sum, &before)| sum.add(before, 0.0));
            sums
        });
        for (col, sum) in sums.iter_mut().enumerate() {
            let (term, error) = term(from, col);
            sum.add(term, error);
        }
    }
    let indices = sums.keys().flat_map(|row| row * cols..(row + 1) * cols).collect();
    let (values, errors) = sums.into_values().flatten().map(Sum::result).unzip();
    io.expect_some(view, Some(indices), values, errors);
    Ok(())
}

/// Adds rows to rows of a gradient `[rows, cols]`: `to[place(i)] += scale * from[i]` for `i < count`. Threads share the columns, not the
/// rows, so that a row which is named twice gets both, in their order.
///
/// # Safety
/// `from` has `count` rows and `to` all rows that are named, of `cols` elements; they share no memory.
pub(super) unsafe fn add_rows(
    cx: &CpuCx,
    from: InRows<'_>,
    count: usize,
    cols: usize,
    scale: f32,
    to: GradRows<'_>,
    place: impl Fn(usize) -> usize + Sync,
) {
    let each = cols.div_ceil(cx.pool.threads()).next_multiple_of(64);
    cx.pool.run_ranges(cols, if count * cols < 16384 { cols } else { each }, |columns, _| {
        for i in 0..count {
            // SAFETY: the rows exist, as the caller vouches; no other thread has these columns.
            unsafe {
                let from = from.row(i).skip(columns.start);
                add_row(cx.isa, from, columns.len(), scale, to.row(place(i)).skip(columns.start));
            }
        }
    });
}

crate::simd_fn! {
    /// `to += scale * from`, the first `cols` elements. Both rows have them.
    pub(super) fn add_row<S>(s: S, from: InRow<'_>, cols: usize, scale: f32, to: GradRow<'_>) {
        let scale = s.splat(scale);
        for at in (0..cols).step_by(S::LANES) {
            let n = S::LANES.min(cols - at);
            // SAFETY: as the caller vouches.
            unsafe { to.give(s, at, s.mul(scale, from.load(s, at, n)), n) };
        }
    }
}

#[cfg(all(test, feature = "conformance"))]
mod tests;
