//! Products with few rows of `x`: every weight is read once, as it is stored, and that is what takes the time.
//!
//! - A job is a range of columns of `out`; threads claim jobs. It computes the sums of its columns (of gate and up, where
//!   the product is gated) into a small buffer and finishes them there: bias, activation, gate, residual, rounding.
//! - Sums are made for a few rows of `w` and of `x` at a time: the rows of `w` share the loads of `x`, the rows of `x` share
//!   the decoding of `w`. Each sum has the same order whatever rows it is computed with.
//! - `x` is widened once, by the calling thread, and for packed weights laid out as their fields come out of words, see
//!   [`x`].

mod dense;
mod int;
mod int8;
pub mod x;

pub use dense::DenseDots;
pub use int::{IntDots, fits};
pub use int8::{Int8Dots, Plain, Vnni};
use x::{Layout, X};

use super::gemm::{GemmArgs, Operand, epilogue};
use super::isa::{Isa, Level};
use super::pool::{Pool, Worker};
use super::scratch::Scratch;
use super::simd::{Kernel, Simd};

/// Rows of stored weights that can be multiplied with prepared rows of `x`. One per family of storage formats.
pub trait Dots: Copy + Sync {
    /// Whether a row needs so few registers that 8 are taken together, not 4.
    const WIDE: bool = false;

    /// How `x` has to lie, for rows of `k` weights.
    fn layout(&self, k: usize) -> Layout;

    /// Bytes of a row of `k` weights, scales left out.
    fn row_bytes(&self, k: usize) -> usize;

    /// `x` in that layout.
    ///
    /// # Safety
    /// `x` is readable for `m` rows of `k` as long as the result is used.
    unsafe fn prepare(&self, isa: Isa, x: Operand, m: usize, k: usize, scratch: &mut Scratch) -> X {
        // SAFETY: as the caller vouches.
        unsafe { X::prepare(isa, x, m, k, self.layout(k), scratch) }
    }

    /// Starts a kernel with the instructions that [`dots`](Self::dots) uses.
    fn start<K: Kernel>(&self, isa: Isa, kernel: K) -> K::Output {
        isa.run(kernel)
    }

    /// Values of working memory for `rows` rows, at a level of `lanes` lanes.
    fn work(&self, rows: usize, k: usize, lanes: usize) -> usize {
        let _ = (rows, k, lanes);
        0
    }

    /// Sums of rows `row..row + R` of `w` with rows `m0..m0 + M` of `x`.
    ///
    /// # Safety
    /// The rows exist, with `x.k` columns; `work` is writable for `self.work(R, x.k, LANES)` values.
    unsafe fn dots<S: Simd, const R: usize, const M: usize>(
        &self,
        s: S,
        row: usize,
        x: &X,
        m0: usize,
        work: *mut f32,
    ) -> [[f32; M]; R];
}

/// Rows of `w` taken together at most.
const MAX_ROWS: usize = 8;
/// Bytes of weights that are worth waking a thread for.
const JOB_BYTES: usize = 32 << 10;
/// Columns of one job at most: the buffer of sums stays in L1.
const JOB_COLS: usize = 256;

/// `out = epilogue(x w^T)`, products as `D` makes them, accumulated in f32. `rows[i]` are the weights of
/// `args.parts[i]`, whose source is not used.
///
/// # Safety
/// As [`gemm`](super::gemm::gemm), of `rows` instead of the sources.
pub unsafe fn gemv<D: Dots>(isa: Isa, pool: &Pool, args: &GemmArgs, rows: &[D]) {
    let (m, n_out) = (args.m, args.n_out());
    let Some(first) = rows.first().filter(|_| m > 0 && n_out > 0) else {
        return;
    };
    let mut scratch = Scratch::new();
    // SAFETY: `x` is readable for `m` rows of `k`, says the caller.
    let x = unsafe { first.prepare(isa, args.x, m, args.k, &mut scratch) };
    let col_bytes = first.row_bytes(args.k).max(1) * if args.gated { 2 } else { 1 };
    let cols = job_cols(n_out, col_bytes, pool.threads());
    pool.run(n_out.div_ceil(cols), |job, worker| {
        let col = job * cols;
        first.start(isa, Job { args, rows, x: &x, col, cols: cols.min(n_out - col), worker });
    });
}

/// Columns per job: several jobs a thread, so that a thread that is held up is not waited for; one job where the work is
/// smaller than the cost of sharing it.
fn job_cols(n_out: usize, col_bytes: usize, threads: usize) -> usize {
    let least = JOB_BYTES.div_ceil(col_bytes);
    let even = n_out.div_ceil(if threads == 1 { 1 } else { threads * 4 });
    even.max(least).next_multiple_of(16).min(JOB_COLS)
}

struct Job<'a, D> {
    args: &'a GemmArgs<'a>,
    rows: &'a [D],
    x: &'a X,
    col: usize,
    cols: usize,
    worker: &'a mut Worker,
}

impl<D: Dots> Kernel for Job<'_, D> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Job { args, rows, x, col, cols, worker } = self;
        let halves = if args.gated { 2 } else { 1 };
        let stride = cols.next_multiple_of(super::simd::MAX_LANES);
        let half = args.m * stride;
        let work_len = rows.iter().map(|d| d.work(MAX_ROWS, x.k, S::LANES)).max().unwrap_or(0);
        let buffer = worker.scratch.slice::<f32>(halves * half + work_len);
        let (sums, work) = buffer.split_at_mut(halves * half);
        for h in 0..halves {
            let first = col + h * args.n_out();
            let mut start = 0;
            for (part, d) in args.parts.iter().zip(rows) {
                let (lo, hi) = (first.max(start), (first + cols).min(start + part.rows));
                if lo < hi {
                    let to = &mut sums[h * half + lo - first..(h + 1) * half];
                    // SAFETY: rows `lo..hi` of the stack lie in this part; `to` holds `m` rows of `stride` sums from
                    // column `lo` on; `work` is as large as any part asks.
                    unsafe {
                        part_sums(s, d, part.bias, x, lo - start, hi - lo, to, stride, work.as_mut_ptr())
                    }
                }
                start += part.rows;
            }
        }
        // SAFETY: the columns belong to the product, and the sums to them.
        unsafe { finish(s, args, sums.as_ptr(), half, stride, col, cols) }
    }
}

/// Sums of `count` rows of a part from `row` on, biases added: `to[i * stride + r]` for row `i` of `x`.
///
/// # Safety
/// The rows exist; `to` holds the sums, `work` as much as `d` asks for.
#[inline(always)]
unsafe fn part_sums<S: Simd, D: Dots>(
    s: S,
    d: &D,
    bias: Option<Operand>,
    x: &X,
    row: usize,
    count: usize,
    to: &mut [f32],
    stride: usize,
    work: *mut f32,
) {
    let mut r = 0;
    // SAFETY: as the caller vouches. Instances are few because each is a kernel of its own for the compiler.
    unsafe {
        if const { !matches!(S::LEVEL, Level::Scalar) } {
            let block = if const { D::WIDE } { MAX_ROWS } else { MAX_ROWS / 2 };
            while r + block <= count {
                let mut i = 0;
                while i + 4 <= x.m {
                    for at in (r..r + block).step_by(2) {
                        put(d.dots::<S, 2, 4>(s, row + at, x, i, work), &mut to[i * stride + at..], stride);
                    }
                    i += 4;
                }
                while i < x.m {
                    let to = &mut to[i * stride + r..];
                    if const { D::WIDE } {
                        put(d.dots::<S, MAX_ROWS, 1>(s, row + r, x, i, work), to, stride);
                    } else {
                        put(d.dots::<S, { MAX_ROWS / 2 }, 1>(s, row + r, x, i, work), to, stride);
                    }
                    i += 1;
                }
                r += block;
            }
        }
        while r < count {
            for i in 0..x.m {
                put(d.dots::<S, 1, 1>(s, row + r, x, i, work), &mut to[i * stride + r..], stride);
            }
            r += 1;
        }
        if let Some(b) = bias {
            for r in 0..count {
                let add = epilogue::read(b.dtype, b.ptr, (row + r) * b.stride);
                for i in 0..x.m {
                    to[i * stride + r] += add;
                }
            }
        }
    }
}

#[inline(always)]
fn put<const R: usize, const M: usize>(sums: [[f32; M]; R], to: &mut [f32], stride: usize) {
    for i in 0..M {
        for r in 0..R {
            to[i * stride + r] = sums[r][i];
        }
    }
}

/// Activation, gate, residual and rounding of `cols` columns from `col` on.
///
/// # Safety
/// `sums` holds `m` rows of `stride` values, `half` apart for gate and up; the columns belong to the product.
#[inline(always)]
unsafe fn finish<S: Simd>(
    s: S,
    args: &GemmArgs,
    sums: *const f32,
    half: usize,
    stride: usize,
    col: usize,
    cols: usize,
) {
    for i in 0..args.m {
        for j in (0..cols).step_by(S::LANES) {
            let n = S::LANES.min(cols - j);
            // SAFETY: rows of sums are padded to whole vectors.
            unsafe {
                let at = sums.add(i * stride + j);
                let mut y = epilogue::activate(s, args.act, s.load(at));
                if args.gated {
                    y = s.mul(y, s.load(at.add(half)));
                }
                if let Some(r) = &args.residual {
                    y = s.add(y, epilogue::load_any(s, r.dtype, r.ptr, i * r.stride + col + j, n));
                }
                epilogue::store_any(s, args.out.dtype, args.out.ptr, i * args.out.stride + col + j, y, n);
            }
        }
    }
}
