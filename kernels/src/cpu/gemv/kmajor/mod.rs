//! Weights that lie along `n`: GPTQ's and AWQ's files as they are.
//!
//! A line of the packed plane has codes of many columns of `out`, so sums are made for all columns of a strip side by side: a line is
//! read once, front to back, and adds its products to the sums, which stay in L1. At the end of a group they are scaled and added to
//! what the strip has so far. `k` is cut into pieces as well, so that a strip is wide enough for memory and jobs are many; pieces are
//! added up in their order, whatever thread made them. Cuts depend on the shape alone.

mod awq;
mod gptq;
mod ordered;

use super::super::gemm::GemmArgs;
use super::super::isa::Isa;
use super::super::pool::Pool;
use super::super::scratch::Scratch;
use super::super::simd::{Kernel, MAX_LANES, Simd};
use super::x::{Layout, X};
use super::{add_bias, finish};
use crate::quant::kmajor::cpu::KMajorRows;
use crate::spec::KMajor;

/// Bytes of a line of a strip: what is read without a jump.
const LINE_BYTES: usize = 4096;
/// The same of AWQ, whose lines are read several at a time.
const AWQ_LINE_BYTES: usize = 2048;
/// The same of act-order, whose scales of all groups stay in L1 with the sums.
const ORDER_LINE_BYTES: usize = 512;
/// Bytes of codes of one column of a piece: what a job reads is this times the columns of a strip.
const PIECE_BYTES: usize = 512;
/// Strips that keep the threads busy.
const ENOUGH: usize = 16;
/// Lines that are asked for ahead of their use.
const AHEAD: usize = 4;
/// Columns that are added up and finished together.
const FINISH: usize = 1024;

/// Whether [`gemv_k_major`] takes such a matrix: whole vectors of columns, whole words of `k`, groups of whole words.
pub fn fits_k_major(n: usize, k: usize, group: usize) -> bool {
    n.is_multiple_of(2 * MAX_LANES)
        && k.is_multiple_of(32)
        && (group == 0 || group >= k || group.is_multiple_of(32))
}

/// `out = epilogue(x w^T)`, accumulated in f32, as [`gemv`](super::gemv). `rows[i]` are the weights of `args.parts[i]`, whose source is not
/// used; [`fits_k_major`] holds for each.
///
/// # Safety
/// As [`gemm`](super::super::gemm::gemm), of `rows` instead of the sources.
pub unsafe fn gemv_k_major(isa: Isa, pool: &Pool, args: &GemmArgs, rows: &[KMajorRows]) {
    let (m, k, n, n_out) = (args.m, args.k, args.n(), args.n_out());
    let Some(first) = rows.first().filter(|_| m > 0 && n_out > 0) else {
        return;
    };
    let cuts = Cuts::new(args, first);
    // Zero points are taken off sums of x over a group, or over a piece of one.
    let sums = if first.has_zeros() && first.order.is_null() { first.group.min(cuts.piece) } else { 0 };
    let layout = Layout { sums, ..Layout::fields(1) };
    let (mut of_x, mut of_sums) = (Scratch::new(), Scratch::new());
    // SAFETY: `x` is readable for `m` rows of `k`, says the caller.
    let x = unsafe { X::prepare(isa, args.x, m, k, layout, &mut of_x) };
    let stride = n + MAX_LANES;
    let partial = Partial { ptr: of_sums.slice::<f32>(cuts.pieces * m * stride).as_mut_ptr(), stride, m };
    pool.run_apart(cuts.jobs(), |job, worker| {
        let (part, cols, lines) = cuts.job(args, job);
        let first_col = args.parts[..part].iter().map(|part| part.rows).sum::<usize>() + cols.start;
        let piece = lines.start / cuts.piece;
        let out = partial.at(piece, 0, first_col);
        let work = worker.scratch.slice::<f32>(work_len(&rows[part], cols.len()));
        let (of, from, cols) = (&rows[part], cols.start, cols.len());
        let job = Strip { of, x: &x, sums, from, cols, lines, out, stride, work };
        if first.bits == 4 { isa.run(Bits::<4>(job)) } else { isa.run(Bits::<8>(job)) }
    });
    pool.run(n_out.div_ceil(FINISH), |block, _| {
        let cols = block * FINISH..((block + 1) * FINISH).min(n_out);
        isa.run(Finish { args, partial, pieces: cuts.pieces, from: cols.start, cols: cols.len() });
    });
}

/// Rows of finished or unfinished sums, for each piece of `k` and row of `x`.
#[derive(Clone, Copy)]
struct Partial {
    ptr: *mut f32,
    stride: usize,
    m: usize,
}

// SAFETY: jobs write strips of their own, and read what earlier sections wrote.
unsafe impl Send for Partial {}
// SAFETY: as above.
unsafe impl Sync for Partial {}

impl Partial {
    fn at(&self, piece: usize, row: usize, col: usize) -> *mut f32 {
        self.ptr.wrapping_add((piece * self.m + row) * self.stride + col)
    }
}

/// How a product is cut: strips of columns, each within a part, and pieces of `k`.
#[derive(Clone, Copy, Debug)]
struct Cuts {
    k: usize,
    /// Columns of a strip at most, a multiple of `2 * MAX_LANES`.
    width: usize,
    strips: usize,
    /// Weights of a piece along `k`: whole groups where they are short.
    piece: usize,
    pieces: usize,
}

impl Cuts {
    fn new(args: &GemmArgs, rows: &KMajorRows) -> Self {
        let per_word = 32 / rows.bits;
        let width = match rows.kind {
            KMajor::Awq => AWQ_LINE_BYTES / 4 * per_word,
            KMajor::Gptq => LINE_BYTES / 4,
            KMajor::ActOrder => ORDER_LINE_BYTES / 4,
        };
        let strips = args.parts.iter().map(|part| part.rows.div_ceil(width)).sum();
        let most = match rows.kind {
            // Each job has scales of all groups made: where strips are jobs enough, `k` is left whole.
            KMajor::ActOrder if strips >= ENOUGH => args.k.max(32),
            _ => PIECE_BYTES * 8 / rows.bits,
        };
        let unit = if rows.order.is_null() && rows.group <= most { rows.group.max(1) } else { 32 };
        let pieces = args.k.div_ceil(most).max(1);
        let piece = args.k.div_ceil(pieces).next_multiple_of(unit).max(unit);
        Self { k: args.k, width, strips, piece, pieces: args.k.div_ceil(piece).max(1) }
    }

    fn jobs(&self) -> usize {
        self.strips * self.pieces
    }

    /// Part, columns in it and columns of `k` of a job: strips of a piece lie beside each other.
    fn job(&self, args: &GemmArgs, job: usize) -> (usize, std::ops::Range<usize>, std::ops::Range<usize>) {
        let (piece, mut strip) = (job / self.strips, job % self.strips);
        let mut part = 0;
        while part + 1 < args.parts.len() && strip >= args.parts[part].rows.div_ceil(self.width) {
            strip -= args.parts[part].rows.div_ceil(self.width);
            part += 1;
        }
        // Strips of a part are about equal.
        let n = args.parts[part].rows;
        let each = n.div_ceil(n.div_ceil(self.width).max(1)).next_multiple_of(2 * MAX_LANES);
        let cols = (strip * each).min(n)..((strip + 1) * each).min(n);
        (part, cols, (piece * self.piece).min(self.k)..((piece + 1) * self.piece).min(self.k))
    }
}

/// Rows of `x` whose sums are made together.
const ROWS: usize = 4;

/// Values of working memory for a strip: sums, of whole vectors of words, and with an order scales and zero points of all groups.
fn work_len(of: &KMajorRows, cols: usize) -> usize {
    let tables = if of.order.is_null() { 0 } else { 2 * of.groups * cols };
    ROWS * cols.next_multiple_of(8 * MAX_LANES) + tables
}

/// The sums of a strip over a piece of `k`.
struct Strip<'a> {
    of: &'a KMajorRows,
    x: &'a X,
    /// Values that each sum of x is of.
    sums: usize,
    from: usize,
    cols: usize,
    lines: std::ops::Range<usize>,
    /// Where sums of the first row of `x` go; others follow at `stride`.
    out: *mut f32,
    stride: usize,
    work: &'a mut [f32],
}

struct Bits<'a, const BITS: usize>(Strip<'a>);

impl<const BITS: usize> Kernel for Bits<'_, BITS> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Strip { of, x, sums, from, cols, lines, out, stride, work } = self.0;
        let mut strip = Sums { of, x, sums, from, cols, out, stride };
        // SAFETY: the strip lies in the part, the piece in `k`; `out` has a row of sums for each of `x`, which no other job writes.
        unsafe {
            let mut m0 = 0;
            while m0 < x.m {
                let rows = if m0 + ROWS <= x.m { ROWS } else { 1 };
                for row in m0..m0 + rows {
                    for col in (0..cols).step_by(S::LANES) {
                        s.store(strip.sum(row, col), s.zero());
                    }
                }
                match rows {
                    ROWS => strip.add::<S, BITS, ROWS>(s, m0, lines.clone(), work),
                    _ => strip.add::<S, BITS, 1>(s, m0, lines.clone(), work),
                }
                m0 += rows;
            }
        }
    }
}

/// A strip with what it has so far.
struct Sums<'a> {
    of: &'a KMajorRows,
    x: &'a X,
    /// Values that each sum of x is of.
    sums: usize,
    from: usize,
    cols: usize,
    out: *mut f32,
    stride: usize,
}

impl Sums<'_> {
    #[inline(always)]
    fn sum(&self, row: usize, col: usize) -> *mut f32 {
        self.out.wrapping_add(row * self.stride + col)
    }

    /// Adds the products of `lines` with rows `m0..m0 + M` of `x`.
    ///
    /// # Safety
    /// The lines exist, begin and end with a word, and groups do so too; `work` is [`work_len`] values.
    #[inline(always)]
    unsafe fn add<S: Simd, const BITS: usize, const M: usize>(
        &mut self,
        s: S,
        m0: usize,
        lines: std::ops::Range<usize>,
        work: &mut [f32],
    ) {
        let x: [*const f32; M] = std::array::from_fn(|i| self.x.row(m0 + i));
        // SAFETY: as the caller vouches.
        unsafe {
            if self.of.kind == KMajor::ActOrder {
                self.ordered::<S, BITS, M>(s, m0, &x, lines, work);
                return;
            }
            let mut from = lines.start;
            while from < lines.end {
                let group = from / self.of.group;
                let to = lines.end.min((group + 1) * self.of.group);
                work[..M * self.width()].fill(0.0);
                match self.of.kind {
                    KMajor::Awq => {
                        self.awq::<S, M>(s, &x, from..to, work);
                        self.scale_awq::<S, M>(s, m0, from, work);
                    }
                    _ => {
                        self.gptq::<S, BITS, M>(s, &x, from..to, work);
                        self.scale_gptq::<S, BITS, M>(s, m0, from, work);
                    }
                }
                from = to;
            }
        }
    }

    /// Values of a row of sums in working memory.
    #[inline(always)]
    fn width(&self) -> usize {
        self.cols.next_multiple_of(8 * MAX_LANES)
    }
}

/// Adds the pieces up and finishes columns.
struct Finish<'a> {
    args: &'a GemmArgs<'a>,
    partial: Partial,
    pieces: usize,
    from: usize,
    cols: usize,
}

impl Kernel for Finish<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { args, partial, pieces, from, cols } = self;
        let n_out = args.n_out();
        for half in 0..if args.gated { 2 } else { 1 } {
            let first = half * n_out + from;
            for row in 0..args.m {
                for at in (0..cols).step_by(S::LANES) {
                    let n = S::LANES.min(cols - at);
                    // SAFETY: rows of sums have room for a vector behind their columns.
                    unsafe {
                        let to = partial.at(0, row, first + at);
                        let mut sum = s.load_n(to, n);
                        for piece in 1..pieces {
                            sum = s.add(sum, s.load_n(partial.at(piece, row, first + at), n));
                        }
                        s.store_n(to, sum, n);
                    }
                }
            }
            let len = (args.m - 1) * partial.stride + cols;
            // SAFETY: these columns are this job's alone.
            unsafe {
                let sums = std::slice::from_raw_parts_mut(partial.at(0, 0, first), len);
                add_bias(args, first, cols, sums, partial.stride);
            }
        }
        // SAFETY: the columns belong to the product.
        unsafe { finish(s, args, partial.at(0, 0, from), n_out, partial.stride, from, cols) }
    }
}

/// What [`Simd::field`] gives a value times.
const fn unit(bits: usize) -> f32 {
    (1u64 << (32 - bits)) as f32
}

/// `count` values, 8 at most, of each row of x from column `at` on, each in all lanes.
///
/// # Safety
/// The values exist.
#[inline(always)]
unsafe fn spread<S: Simd, const M: usize>(
    s: S,
    x: &[*const f32; M],
    at: usize,
    count: usize,
) -> [[S::V; M]; 8] {
    let mut all = [[s.zero(); M]; 8];
    for (j, all) in all.iter_mut().enumerate().take(count) {
        for (one, x) in all.iter_mut().zip(x) {
            // SAFETY: as the caller vouches.
            *one = s.splat(unsafe { *x.add(at + j) });
        }
    }
    all
}
