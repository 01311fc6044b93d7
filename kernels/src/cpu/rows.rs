//! Rows of float operands, whatever their type, as f32 vectors.
//!
//! The type is matched at each vector: a branch that is always predicted, where a kernel per combination of types would
//! be compiled dozens of times.

use std::marker::PhantomData;

use half::{bf16, f16};

use super::CpuCx;
use super::simd::{Elem, Simd, StoreElem};
use crate::buffer::View;
use crate::spec::{DType, KernelError};

#[derive(Clone, Copy)]
enum Base {
    F32(*mut f32),
    BF16(*mut bf16),
    F16(*mut f16),
}

// SAFETY: a pointer into memory of a view; the contracts of `InRows::row` and `OutRows::row` state who may access it.
unsafe impl Send for Base {}
// SAFETY: as above.
unsafe impl Sync for Base {}

impl Base {
    fn add(self, elements: usize) -> Self {
        match self {
            Self::F32(p) => Self::F32(p.wrapping_add(elements)),
            Self::BF16(p) => Self::BF16(p.wrapping_add(elements)),
            Self::F16(p) => Self::F16(p.wrapping_add(elements)),
        }
    }
}

/// The rows of an operand `[rows, cols]` that is read; a vector `[cols]` is one row.
#[derive(Clone, Copy)]
pub(crate) struct InRows<'a> {
    base: Base,
    stride: usize,
    cols: usize,
    view: PhantomData<&'a View>,
}

impl<'a> InRows<'a> {
    /// The rows of `view`, which must hold floats.
    pub(crate) fn new(cx: &CpuCx, view: &'a View) -> Result<Self, KernelError> {
        let base = match view.dtype() {
            DType::BF16 => Base::BF16(cx.input::<bf16>(view)?.cast_mut()),
            DType::F16 => Base::F16(cx.input::<f16>(view)?.cast_mut()),
            _ => Base::F32(cx.input::<f32>(view)?.cast_mut()),
        };
        let (stride, cols) = shape(view);
        Ok(Self { base, stride, cols, view: PhantomData })
    }

    /// # Safety
    /// The view has more than `row` rows, and no other thread writes this one meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn row(&self, row: usize) -> InRow<'a> {
        InRow { base: self.base.add(row * self.stride), len: self.cols, view: PhantomData }
    }
}

/// The rows of an operand `[rows, cols]` that is written; a vector `[cols]` is one row.
#[derive(Clone, Copy)]
pub(crate) struct OutRows<'a> {
    base: Base,
    stride: usize,
    cols: usize,
    view: PhantomData<&'a View>,
}

impl<'a> OutRows<'a> {
    /// The rows of `view`, which must hold floats.
    pub(crate) fn new(cx: &CpuCx, view: &'a View) -> Result<Self, KernelError> {
        let base = match view.dtype() {
            DType::BF16 => Base::BF16(cx.output::<bf16>(view)?),
            DType::F16 => Base::F16(cx.output::<f16>(view)?),
            _ => Base::F32(cx.output::<f32>(view)?),
        };
        let (stride, cols) = shape(view);
        Ok(Self { base, stride, cols, view: PhantomData })
    }

    /// # Safety
    /// The view has more than `row` rows, and no other thread accesses this one meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn row(&self, row: usize) -> OutRow<'a> {
        OutRow { base: self.base.add(row * self.stride), len: self.cols, view: PhantomData }
    }
}

/// Distance of rows and length of a row.
fn shape(view: &View) -> (usize, usize) {
    match view.layout().rank() {
        0 => (0, 1),
        1 => (0, view.size(0)),
        rank => (view.stride(rank - 2), view.size(rank - 1)),
    }
}

/// A row that is read.
#[derive(Clone, Copy)]
pub(crate) struct InRow<'a> {
    base: Base,
    len: usize,
    view: PhantomData<&'a View>,
}

impl InRow<'_> {
    /// Elements.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The elements from `start` on.
    #[inline(always)]
    pub(crate) fn skip(self, start: usize) -> Self {
        Self { base: self.base.add(start), len: self.len.saturating_sub(start), ..self }
    }

    /// Elements `at..at + n`, zero in lanes beyond.
    ///
    /// # Safety
    /// `at + n <= len`, `n <= LANES`.
    #[inline(always)]
    pub(crate) unsafe fn load<S: Simd>(&self, s: S, at: usize, n: usize) -> S::V {
        // SAFETY: within the row, as the caller vouches.
        unsafe {
            match self.base {
                Base::F32(p) if n == S::LANES => f32::load(s, p.add(at)),
                Base::F32(p) => f32::load_n(s, p.add(at), n),
                Base::BF16(p) if n == S::LANES => bf16::load(s, p.add(at)),
                Base::BF16(p) => bf16::load_n(s, p.add(at), n),
                Base::F16(p) if n == S::LANES => f16::load(s, p.add(at)),
                Base::F16(p) => f16::load_n(s, p.add(at), n),
            }
        }
    }

    /// Element `at`.
    #[inline(always)]
    pub(crate) fn get(&self, at: usize) -> f32 {
        assert!(at < self.len);
        // SAFETY: within the row.
        unsafe {
            match self.base {
                Base::F32(p) => *p.add(at),
                Base::BF16(p) => (*p.add(at)).to_f32(),
                Base::F16(p) => (*p.add(at)).to_f32(),
            }
        }
    }
}

/// A row that is written.
#[derive(Clone, Copy)]
pub(crate) struct OutRow<'a> {
    base: Base,
    len: usize,
    view: PhantomData<&'a View>,
}

impl OutRow<'_> {
    /// Elements.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The elements from `start` on, at most `len` of them.
    #[inline(always)]
    pub(crate) fn part(self, start: usize, len: usize) -> Self {
        Self { base: self.base.add(start), len: self.len.saturating_sub(start).min(len), ..self }
    }

    /// Stores the first `n` lanes to elements `at..at + n`, rounded to their type.
    ///
    /// # Safety
    /// `at + n <= len`, `n <= LANES`.
    #[inline(always)]
    pub(crate) unsafe fn store<S: Simd>(&self, s: S, at: usize, v: S::V, n: usize) {
        // SAFETY: within the row, as the caller vouches.
        unsafe {
            match self.base {
                Base::F32(p) if n == S::LANES => f32::store(s, p.add(at), v),
                Base::F32(p) => f32::store_n(s, p.add(at), v, n),
                Base::BF16(p) if n == S::LANES => bf16::store(s, p.add(at), v),
                Base::BF16(p) => bf16::store_n(s, p.add(at), v, n),
                Base::F16(p) if n == S::LANES => f16::store(s, p.add(at), v),
                Base::F16(p) => f16::store_n(s, p.add(at), v, n),
            }
        }
    }
}

crate::simd_fn! {
    /// `to = scale * from` over the shorter of both; the very bits where the types are equal and `scale` is 1.
    pub(crate) fn copy_row<S>(s: S, from: InRow<'_>, to: OutRow<'_>, scale: f32) {
        let len = from.len().min(to.len());
        // SAFETY: both rows have `len` elements; ops never let a row that is copied from overlap the one copied to.
        unsafe {
            if scale == 1.0 {
                match (from.base, to.base) {
                    (Base::F32(a), Base::F32(b)) => return b.copy_from_nonoverlapping(a, len),
                    (Base::BF16(a), Base::BF16(b)) => return b.copy_from_nonoverlapping(a, len),
                    (Base::F16(a), Base::F16(b)) => return b.copy_from_nonoverlapping(a, len),
                    _ => {}
                }
            }
            let scale = s.splat(scale);
            for at in (0..len).step_by(S::LANES) {
                let n = S::LANES.min(len - at);
                to.store(s, at, s.mul(from.load(s, at, n), scale), n);
            }
        }
    }
}

/// Rows of `cols` elements for a chunk of work: enough to be worth handing to a thread, few enough to share among all.
pub(crate) fn grain(rows: usize, cols: usize, threads: usize) -> usize {
    const ELEMENTS: usize = 8192;
    ELEMENTS.div_ceil(cols.max(1)).min(rows.div_ceil(threads.max(1))).max(1)
}
