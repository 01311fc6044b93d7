//! Packing: weights of any format to panels, activations to blocks.

use half::{bf16, f16};

use super::super::isa::Isa;
use super::super::simd::{Elem, Kernel, MAX_LANES, Simd};
use super::Operand;
use crate::spec::DType;

/// Rows of weights that can be decoded into panels. One per storage format; see [`pack_rows`] for how to write one.
pub trait PanelSource: Sync {
    /// Decodes `k` columns from `col`, a multiple of 32, of rows `row..row + rows`: value (r, i) goes to
    /// `to[i * stride + r]`.
    ///
    /// # Safety
    /// The rows and columns exist; `rows` is at most the level's lanes; `to` is writable at those places.
    unsafe fn pack(
        &self,
        isa: Isa,
        row: usize,
        rows: usize,
        col: usize,
        k: usize,
        to: *mut f32,
        stride: usize,
    );

    /// Numbers of bf16 that each weight is the sum of, at most.
    fn pieces(&self) -> usize {
        super::PIECES
    }

    /// The matrix itself, if it is stored as bf16: (first element, elements from row to row).
    fn as_bf16(&self) -> Option<(*const bf16, usize)> {
        None
    }

    /// The rows as integers, if they are stored as such.
    fn as_int8(&self) -> Option<&dyn super::Int8Source> {
        None
    }
}

/// Loads vectors of consecutive values of one row: the part of a [`PanelSource`] that knows the format.
pub trait RowLoader: Copy {
    /// Values `col..col + LANES` of `row`.
    ///
    /// # Safety
    /// The values exist; `col` is a multiple of `LANES`.
    unsafe fn load<S: Simd>(&self, s: S, row: usize, col: usize) -> S::V;
    /// Values `col..col + n` of `row`, zeros after them.
    ///
    /// # Safety
    /// The values exist; `col` is a multiple of `LANES`, `n < LANES`.
    unsafe fn load_n<S: Simd>(&self, s: S, row: usize, col: usize, n: usize) -> S::V;
    /// Asks for the memory that holds (`row`, `col`), which may lie past the end of the row.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, row: usize, col: usize) {
        let _ = (s, row, col);
    }
}

/// [`PanelSource::pack`] by means of a [`RowLoader`]: loads `LANES` rows at a time and transposes in registers.
///
/// # Safety
/// As [`PanelSource::pack`].
pub unsafe fn pack_rows<L: RowLoader>(
    isa: Isa,
    loader: L,
    row: usize,
    rows: usize,
    col: usize,
    k: usize,
    to: *mut f32,
    stride: usize,
) {
    isa.run(PackRows { loader, row, rows, col, k, to, stride });
}

struct PackRows<L> {
    loader: L,
    row: usize,
    rows: usize,
    col: usize,
    k: usize,
    to: *mut f32,
    stride: usize,
}

impl<L: RowLoader> Kernel for PackRows<L> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { loader, row, rows, col, k, to, stride } = self;
        let mut v = [s.zero(); MAX_LANES];
        let mut i = 0;
        // SAFETY: rows `row..row + rows` and columns `col..col + k` exist; `to` is writable for `rows` values at each of
        // `k` multiples of `stride`.
        unsafe {
            if rows == S::LANES {
                while i + S::LANES <= k {
                    for (r, v) in v.iter_mut().enumerate().take(S::LANES) {
                        loader.prefetch(s, row + r, col + i + 8 * S::LANES);
                        *v = loader.load(s, row + r, col + i);
                    }
                    s.transpose(v.as_mut_ptr());
                    for (j, v) in v.iter().enumerate().take(S::LANES) {
                        s.store(to.add((i + j) * stride), *v);
                    }
                    i += S::LANES;
                }
            }
            while i < k {
                let n = S::LANES.min(k - i);
                v = [s.zero(); MAX_LANES];
                for (r, v) in v.iter_mut().enumerate().take(rows) {
                    *v = if n == S::LANES {
                        loader.load(s, row + r, col + i)
                    } else {
                        loader.load_n(s, row + r, col + i, n)
                    };
                }
                s.transpose(v.as_mut_ptr());
                for (j, v) in v.iter().enumerate().take(n) {
                    s.store_n(to.add((i + j) * stride), *v, rows);
                }
                i += n;
            }
        }
    }
}

/// A dense matrix `[n, k]` of f32, bf16 or f16; values need no alignment.
#[derive(Clone, Copy, Debug)]
pub struct Dense(Operand);

impl Dense {
    /// # Safety
    /// `matrix` stays readable, for all the rows and columns that will be asked for, as long as the value is used.
    pub unsafe fn new(matrix: Operand) -> Dense {
        Dense(matrix)
    }
}

// SAFETY: only reads, of memory that `new`'s caller vouches for.
unsafe impl Sync for Dense {}

impl PanelSource for Dense {
    unsafe fn pack(
        &self,
        isa: Isa,
        row: usize,
        rows: usize,
        col: usize,
        k: usize,
        to: *mut f32,
        stride: usize,
    ) {
        let Operand { ptr, dtype, stride: row_stride } = self.0;
        // SAFETY: as the caller and the caller of `new` vouch.
        unsafe {
            match dtype {
                DType::BF16 => {
                    pack_rows(
                        isa,
                        DenseRows { ptr: ptr.cast::<bf16>(), row_stride },
                        row,
                        rows,
                        col,
                        k,
                        to,
                        stride,
                    );
                }
                DType::F16 => {
                    pack_rows(
                        isa,
                        DenseRows { ptr: ptr.cast::<f16>(), row_stride },
                        row,
                        rows,
                        col,
                        k,
                        to,
                        stride,
                    );
                }
                _ => pack_rows(
                    isa,
                    DenseRows { ptr: ptr.cast::<f32>(), row_stride },
                    row,
                    rows,
                    col,
                    k,
                    to,
                    stride,
                ),
            }
        }
    }

    fn pieces(&self) -> usize {
        super::pieces(self.0.dtype)
    }

    fn as_bf16(&self) -> Option<(*const bf16, usize)> {
        (self.0.dtype == DType::BF16).then_some((self.0.ptr.cast(), self.0.stride))
    }
}

/// Loads rows of a dense matrix.
#[derive(Clone, Copy)]
pub(crate) struct DenseRows<T> {
    /// First element.
    pub ptr: *const T,
    /// Elements from row to row.
    pub row_stride: usize,
}

impl<T: Elem> RowLoader for DenseRows<T> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, row: usize, col: usize) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { T::load(s, self.ptr.add(row * self.row_stride + col)) }
    }
    #[inline(always)]
    unsafe fn load_n<S: Simd>(&self, s: S, row: usize, col: usize, n: usize) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { T::load_n(s, self.ptr.add(row * self.row_stride + col), n) }
    }
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, row: usize, col: usize) {
        s.prefetch_l2(self.ptr.wrapping_add(row * self.row_stride + col));
    }
}

/// Widens `rows` rows of `x` from (`row`, `col`), `n` values each, to rows of `stride` values.
///
/// # Safety
/// The values exist; `to` is writable for the rows.
#[inline(always)]
pub(super) unsafe fn x_f32<S: Simd>(
    s: S,
    x: Operand,
    row: usize,
    rows: usize,
    col: usize,
    n: usize,
    to: *mut f32,
    stride: usize,
) {
    /// # Safety
    /// As the outer function.
    #[inline(always)]
    unsafe fn of<S: Simd, T: Elem>(
        s: S,
        from: *const T,
        from_stride: usize,
        rows: usize,
        n: usize,
        to: *mut f32,
        stride: usize,
    ) {
        for i in 0..rows {
            // SAFETY: as the caller vouches.
            unsafe {
                let (from, to) = (from.add(i * from_stride), to.add(i * stride));
                let mut j = 0;
                while j + S::LANES <= n {
                    // Row segments are too short for the hardware to follow.
                    s.prefetch(from.wrapping_add(from_stride + j));
                    s.store(to.add(j), T::load(s, from.add(j)));
                    j += S::LANES;
                }
                if j < n {
                    s.store_n(to.add(j), T::load_n(s, from.add(j), n - j), n - j);
                }
            }
        }
    }
    let at = row * x.stride + col;
    // SAFETY: as the caller vouches.
    unsafe {
        match x.dtype {
            DType::BF16 => of(s, x.ptr.cast::<bf16>().add(at), x.stride, rows, n, to, stride),
            DType::F16 => of(s, x.ptr.cast::<f16>().add(at), x.stride, rows, n, to, stride),
            _ => of(s, x.ptr.cast::<f32>().add(at), x.stride, rows, n, to, stride),
        }
    }
}
