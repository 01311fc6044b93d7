//! Products with few rows of `x`: every weight is read once, as it is stored, and that is what takes the time.
//!
//! - Memory is read along fronts that lie far apart, each in the order of addresses: that keeps prefetchers and channels busy,
//!   which few rows side by side do not. A thread has its own fronts, see `Fronts`. A job takes some rows of each front of a
//!   thread; threads claim jobs, their own first. It computes the sums of its columns (of gate and up, where the product is
//!   gated) into a small buffer and finishes them there: bias, activation, gate, residual, rounding.
//! - Sums are made for a few rows of `w`, one of each front, and of `x` at a time: the rows of `w` share the loads of `x`, the
//!   rows of `x` share the decoding of `w`. Each sum has the same order whatever rows it is computed with.
//! - `x` is widened once, by the calling thread, and for packed weights laid out as their fields come out of words, see
//!   [`x`].

mod dense;
mod grouped;
mod int8;
mod kmajor;
pub mod x;

pub use dense::DenseDots;
pub use grouped::{GroupedDots, fits};
pub use int8::{Int8Dots, Plain, Vnni};
pub use kmajor::{fits_k_major, gemv_k_major};
use x::{Layout, X};

use super::gemm::{GemmArgs, Operand, epilogue};
use super::isa::{Isa, Level};
use super::pool::{Pool, Worker};
use super::scratch::Scratch;
use super::simd::{Kernel, Simd};

/// Rows of stored weights that can be multiplied with prepared rows of `x`. One per family of storage formats.
pub trait Dots: Copy + Sync {
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

    /// Sums of `rows` of `w`, which are in one format, with rows `m0..m0 + M` of `x`. The row after each is read next.
    ///
    /// # Safety
    /// The rows exist, with `x.k` columns; `work` is writable for `self.work(R, x.k, LANES)` values.
    unsafe fn dots<S: Simd, const R: usize, const M: usize>(
        s: S,
        rows: &[Row<'_, Self>; R],
        x: &X,
        m0: usize,
        work: *mut f32,
    ) -> [[f32; M]; R];
}

/// A row of a stored tensor.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a, D> {
    /// The tensor.
    pub of: &'a D,
    /// Number of the row in it.
    pub row: usize,
}

/// Rows of `w` taken together: one of each front of a thread.
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
    let halves = if args.gated { 2 } else { 1 };
    let fronts = Fronts::new(n_out, first.row_bytes(args.k).max(1) * halves, pool.threads(), ROWS / halves);
    pool.run_apart(fronts.jobs(), |job, worker| {
        first.start(isa, Job { args, rows, x: &x, fronts, job, worker });
    });
}

/// How columns of `out` are shared: `each` fronts a thread, equal runs of columns one after the other, of which a job takes the
/// next `step` columns each.
#[derive(Clone, Copy, Debug)]
struct Fronts {
    n_out: usize,
    threads: usize,
    each: usize,
    step: usize,
}

impl Fronts {
    /// Several jobs a thread, so that a thread that is held up is not waited for; one thread where the work is smaller than the
    /// cost of sharing it. `col_bytes` of weights make a column.
    fn new(n_out: usize, col_bytes: usize, threads: usize, each: usize) -> Self {
        let least = JOB_BYTES.div_ceil(col_bytes);
        let threads = threads.min(n_out.div_ceil(least)).max(1);
        let even = n_out.div_ceil(if threads == 1 { 1 } else { threads * 4 });
        let cols = even.min((MOST_BYTES / col_bytes).max(16)).max(least).min(JOB_COLS);
        Self { n_out, threads, each, step: cols.div_ceil(each) }
    }

    /// Columns of a front.
    fn front(&self, front: usize) -> std::ops::Range<usize> {
        let count = self.threads * self.each;
        self.n_out * front / count..self.n_out * (front + 1) / count
    }

    fn jobs_of_thread(&self) -> usize {
        self.n_out.div_ceil(self.threads * self.each).div_ceil(self.step)
    }

    fn jobs(&self) -> usize {
        self.threads * self.jobs_of_thread()
    }

    /// Columns that a job takes of front `i` of its thread; none where the front is done.
    fn of_job(&self, job: usize, i: usize) -> std::ops::Range<usize> {
        let (thread, nth) = (job / self.jobs_of_thread(), job % self.jobs_of_thread());
        let front = self.front(thread * self.each + i);
        let start = (front.start + nth * self.step).min(front.end);
        start..(start + self.step).min(front.end)
    }
}

struct Job<'a, D> {
    args: &'a GemmArgs<'a>,
    rows: &'a [D],
    x: &'a X,
    fronts: Fronts,
    job: usize,
    worker: &'a mut Worker,
}

impl<D: Dots> Kernel for Job<'_, D> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Job { args, rows, x, fronts, job, worker } = self;
        let halves = ROWS / fronts.each;
        // Sums of the columns of each front beside each other, in a row for each row of `x`.
        let apart = fronts.step.next_multiple_of(super::simd::MAX_LANES);
        let stride = fronts.each * apart;
        let half = args.m * stride;
        let work_len = rows.iter().map(|d| d.work(ROWS, x.k, S::LANES)).max().unwrap_or(0);
        let buffer = worker.scratch.slice::<f32>(halves * half + work_len);
        let (sums, work) = buffer.split_at_mut(halves * half);
        let of_fronts: [_; ROWS] = [0, 1, 2, 3].map(|i| fronts.of_job(job, i % fronts.each));
        let place = |i: usize| i / fronts.each * half + i % fronts.each * apart;
        let stack = |i: usize, at: usize| of_fronts[i].start + at + i / fronts.each * fronts.n_out;
        let row = |i: usize, at: usize| self::row(args, rows, stack(i, at));
        let together = of_fronts.iter().map(|cols| cols.len()).min().unwrap_or(0);
        // SAFETY: the rows lie in the stack, `sums` hold `m` rows of sums for each, `work` is as large as any part asks; the columns
        // belong to the product.
        unsafe {
            for at in 0..together {
                let rows: [_; ROWS] = [row(0, at), row(1, at), row(2, at), row(3, at)];
                let to: [_; ROWS] = [place(0) + at, place(1) + at, place(2) + at, place(3) + at];
                row_sums(s, &rows, &to, x, sums, stride, work.as_mut_ptr());
            }
            for (i, cols) in of_fronts.iter().enumerate() {
                for at in together..cols.len() {
                    single_sums(s, row(i, at), place(i) + at, x, sums, stride, work.as_mut_ptr());
                }
                add_bias(args, stack(i, 0), cols.len(), &mut sums[place(i)..], stride);
            }
            for (i, cols) in of_fronts.iter().enumerate().take(fronts.each) {
                finish(s, args, sums.as_ptr().add(i * apart), half, stride, cols.start, cols.len());
            }
        }
    }
}

/// A row of the stack of all parts.
#[inline(always)]
fn row<'a, D>(args: &GemmArgs, of: &'a [D], mut row: usize) -> Row<'a, D> {
    let mut part = 0;
    while part + 1 < of.len() && row >= args.parts[part].rows {
        row -= args.parts[part].rows;
        part += 1;
    }
    Row { of: &of[part], row }
}

/// Sums of rows of `w` with all rows of `x`, in `sums[i * stride + to]` for row `i` of `x`.
///
/// # Safety
/// The rows exist; `work` holds as much as they ask for.
#[inline(always)]
unsafe fn row_sums<S: Simd, D: Dots>(
    s: S,
    rows: &[Row<'_, D>; ROWS],
    to: &[usize; ROWS],
    x: &X,
    sums: &mut [f32],
    stride: usize,
    work: *mut f32,
) {
    // SAFETY: as the caller vouches. Instances are few because each is a kernel of its own for the compiler.
    unsafe {
        if const { !vectors::<S>() } {
            for (row, to) in rows.iter().zip(to) {
                single_sums(s, *row, *to, x, sums, stride, work);
            }
            return;
        }
        let mut done = 0;
        while done + 4 <= x.m {
            for pair in [0, 2] {
                let two = [rows[pair], rows[pair + 1]];
                let found = D::dots::<S, 2, 4>(s, &two, x, done, work);
                put(found, &mut sums[done * stride..], &to[pair..], stride);
            }
            done += 4;
        }
        for i in done..x.m {
            put(D::dots::<S, ROWS, 1>(s, rows, x, i, work), &mut sums[i * stride..], to, stride);
        }
    }
}

/// As [`row_sums`], of one row of `w`.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn single_sums<S: Simd, D: Dots>(
    s: S,
    row: Row<'_, D>,
    to: usize,
    x: &X,
    sums: &mut [f32],
    stride: usize,
    work: *mut f32,
) {
    for i in 0..x.m {
        // SAFETY: as the caller vouches.
        let found = unsafe { D::dots::<S, 1, 1>(s, &[row], x, i, work) };
        put(found, &mut sums[i * stride..], &[to], stride);
    }
}

/// Adds the biases of `count` rows of the stack from `first` on to their sums, for all rows of `x`.
///
/// # Safety
/// The rows exist.
#[inline(always)]
unsafe fn add_bias(args: &GemmArgs, first: usize, count: usize, sums: &mut [f32], stride: usize) {
    let mut start = 0;
    for part in args.parts {
        if let Some(bias) = part.bias {
            for row in first.max(start)..(first + count).min(start + part.rows) {
                // SAFETY: as the caller vouches.
                let add = unsafe { epilogue::read(bias.dtype, bias.ptr, (row - start) * bias.stride) };
                for i in 0..args.m {
                    sums[i * stride + row - first] += add;
                }
            }
        }
        start += part.rows;
    }
}

/// Whether there are instances for several rows at a time.
const fn vectors<S: Simd>() -> bool {
    !matches!(S::LEVEL, Level::Scalar)
}

/// How far ahead of byte `at` of a row its line is asked for: `ahead` bytes, and past the end of the row (`row` bytes,
/// `pitch` from row to row) in the next one.
#[inline(always)]
fn distance(at: usize, ahead: usize, row: usize, pitch: usize) -> usize {
    if at + ahead < row { ahead } else { (ahead + pitch).wrapping_sub(row) }
}

#[inline(always)]
fn put<const R: usize, const M: usize>(found: [[f32; M]; R], sums: &mut [f32], to: &[usize], stride: usize) {
    for i in 0..M {
        for r in 0..R {
            sums[i * stride + to[r]] = found[r][i];
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
