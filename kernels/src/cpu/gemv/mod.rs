//! Products with few rows of `x`: every weight is read once, as it is stored, and that is what takes the time.
//!
//! - A job is a range of columns of `out`; threads claim jobs, each those of its own run of columns first, so that it reads
//!   memory in order. A job computes the sums of its columns (of gate and up, where the product is gated) into a small buffer
//!   and finishes them there: bias, activation, gate, residual, rounding.
//! - Sums are made for a few rows of `w` and of `x` at a time: the rows of `w` share the loads of `x`, the rows of `x` share
//!   the decoding of `w`. Each sum has the same order whatever rows it is computed with.
//! - `x` is widened once, by the calling thread, and for packed weights laid out as their fields come out of words, see
//!   [`x`].

mod dense;
mod grouped;
mod int8;
pub mod x;

pub use dense::DenseDots;
pub use grouped::{Fp8, GroupedDots, Int, fits};
pub use int8::{Int8Dots, Plain, Vnni};
use x::{Layout, X};

use super::gemm::{GemmArgs, Operand, epilogue};
use super::isa::{Isa, Level};
use super::pool::{Pool, Worker};
use super::scratch::Scratch;
use super::simd::{Kernel, Simd};

/// Rows of stored weights that can be multiplied with prepared rows of `x`. One per family of storage formats.
pub trait Dots: Copy + Sync {
    /// Whether the rows of `w` are taken one by one, for one row of `x`: memory is read in order then, which hardware
    /// prefetches best. Otherwise `ROWS` are taken together, which share the loads of `x`.
    const ALONE: bool = false;

    /// How `x` has to lie, for rows of `k` weights, at a level of `lanes` lanes.
    fn layout(&self, k: usize, lanes: usize) -> Layout;

    /// Bytes of a row of `k` weights, scales left out.
    fn row_bytes(&self, k: usize) -> usize;

    /// `x` in that layout.
    ///
    /// # Safety
    /// `x` is readable for `m` rows of `k` as long as the result is used.
    unsafe fn prepare(&self, isa: Isa, x: Operand, m: usize, k: usize, scratch: &mut Scratch) -> X {
        // SAFETY: as the caller vouches.
        unsafe { X::prepare(isa, x, m, k, self.layout(k, isa.lanes()), scratch) }
    }

    /// Starts a kernel with the instructions that [`dots`](Self::dots) uses.
    fn start<K: Kernel>(&self, isa: Isa, kernel: K) -> K::Output {
        isa.run(kernel)
    }

    /// Values of working memory for `rows` rows of `w` and up to 4 of `x`, at a level of `lanes` lanes.
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
const ROWS: usize = 4;
/// Bytes of weights that are worth waking a thread for.
const JOB_BYTES: usize = 32 << 10;
/// Columns of one job at most: the buffer of sums stays in L1.
const JOB_COLS: usize = 256;
/// Bytes of weights of one job at most, where it has more than 16 columns: threads end at about the same time.
const MOST_BYTES: usize = 1 << 20;

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
    pool.run_apart(n_out.div_ceil(cols), |job, worker| {
        let col = job * cols;
        first.start(isa, Job { args, rows, x: &x, col, cols: cols.min(n_out - col), worker });
    });
}

/// Columns per job: several jobs a thread, so that a thread that is held up is not waited for; one job where the work is
/// smaller than the cost of sharing it.
fn job_cols(n_out: usize, col_bytes: usize, threads: usize) -> usize {
    let least = JOB_BYTES.div_ceil(col_bytes);
    let even = n_out.div_ceil(if threads == 1 { 1 } else { threads * 4 });
    even.min(MOST_BYTES / col_bytes).max(least).next_multiple_of(16).min(JOB_COLS)
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
        let work_len = rows.iter().map(|d| d.work(ROWS, x.k, S::LANES)).max().unwrap_or(0);
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
        while r < count {
            let block = if r + ROWS <= count { ROWS } else { 1 };
            let mut rest = 0;
            if const { vectors::<S>() } && block == ROWS {
                while rest + 4 <= x.m {
                    for at in (r..r + ROWS).step_by(2) {
                        put(
                            d.dots::<S, 2, 4>(s, row + at, x, rest, work),
                            &mut to[rest * stride + at..],
                            stride,
                        );
                    }
                    rest += 4;
                }
            }
            if const { vectors::<S>() && !D::ALONE } && block == ROWS {
                for i in rest..x.m {
                    put(d.dots::<S, ROWS, 1>(s, row + r, x, i, work), &mut to[i * stride + r..], stride);
                }
            } else {
                for at in r..r + block {
                    for i in rest..x.m {
                        put(d.dots::<S, 1, 1>(s, row + at, x, i, work), &mut to[i * stride + at..], stride);
                    }
                }
            }
            r += block;
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

/// Whether there are instances for several rows at a time.
const fn vectors<S: Simd>() -> bool {
    !matches!(S::LEVEL, Level::Scalar)
}

/// How far ahead of byte `at` of a row its line is asked for: `ahead` bytes, and past the end of the row (`row` bytes,
/// `pitch` from row to row) in the row that comes `rows` later, which is read next.
#[inline(always)]
fn distance(at: usize, ahead: usize, row: usize, pitch: usize, rows: usize) -> usize {
    if at + ahead < row { ahead } else { (ahead + rows * pitch).wrapping_sub(row) }
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
