//! Matrix multiplication with weights as they are stored: `out = epilogue(x w^T)`, f32 accumulation.
//!
//! `x: [m, k]` row-major, `w: [n, k]` row-major in any format, `out: [m, n]`.
//!
//! The loops follow BLIS (Van Zee and van de Geijn, 2015), with these choices:
//!
//! - A job is a strip of columns of `out` times a block of its rows; threads claim jobs. Within a job nothing is shared,
//!   so there is no barrier, and with one row block every weight is decoded once.
//! - A strip of `w` is decoded block by block of `k` into panels `[KC][NR]`, which stay in L2: a [`PanelSource`] writes f32
//!   (or words, see [`micro::Dot`]) transposed, so the micro-kernel loads whole vectors of columns.
//! - `x` is copied in blocks `[MC][KC]` that stay in L2, or, where that takes arithmetic, as a whole before the strips, with a row stride known at compile time that keeps rows apart in
//!   the L1 sets; the micro-kernel broadcasts from them, so they need no transposition.
//! - The micro-kernel fills the registers: 14 x 32 on AVX-512, 6 x 16 on AVX2; the last rows get a kernel of their height.
//!   On Intel's matrix tiles it is 32 x 32, of four tiles of sums, see `amx`.
//! - Tiles are accumulated over blocks of `k` in a buffer in L2, and finished (bias, activation, gate, residual, rounding)
//!   by [`epilogue`] while they are still in L1.

#[cfg(target_arch = "x86_64")]
mod amx;
mod bf16;
pub mod epilogue;
mod int8;
pub mod micro;
pub mod pack;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub use self::amx::gemm_amx;
pub(crate) use self::bf16::Bf16;
pub use self::bf16::gemm_bf16;
use std::ops::Range;
use std::sync::OnceLock;

use self::epilogue::Finish;
pub use self::int8::{Int8Panel, Int8Source, gemm_int8};
use self::micro::DotF32;
pub(crate) use self::pack::DenseRows;
pub use self::pack::{Dense, PanelSource, RowLoader, pack_rows};
use super::isa::{Isa, Level};
use super::pool::{Pool, Worker};
use super::scratch::Scratch;
use super::simd::{Kernel, Simd};
use crate::ops::Activation;
use crate::spec::{DType, Format};

/// A row-major matrix of f32, bf16 or f16 that is read.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// First element.
    pub ptr: *const u8,
    /// Element type: a float.
    pub dtype: DType,
    /// Elements from one row to the next.
    pub stride: usize,
}

/// A row-major matrix of f32, bf16 or f16 that is written.
#[derive(Clone, Copy, Debug)]
pub struct OperandMut {
    /// First element.
    pub ptr: *mut u8,
    /// Element type: a float.
    pub dtype: DType,
    /// Elements from one row to the next.
    pub stride: usize,
}

/// Rows of `x` that are computed while they are packed.
pub trait RowSource: Sync {
    /// Writes columns `col..col + n` of rows `row..row + rows` to rows of `stride` values.
    ///
    /// # Safety
    /// The rows and columns exist; `to` is writable at those places.
    unsafe fn pack(&self, row: usize, rows: usize, col: usize, n: usize, to: *mut f32, stride: usize);
}

/// Which row of the residual is added to a row of `out`.
#[derive(Clone, Copy, Debug)]
pub enum ResidualRow {
    /// The row of the same number.
    Same,
    /// The row of the same number within blocks of so many rows.
    Repeat(usize),
    /// The row that the list names for each row of `out`.
    At(*const i32),
}

impl ResidualRow {
    /// The row for row `row` of `out`.
    ///
    /// # Safety
    /// A list has the entry.
    #[inline(always)]
    unsafe fn of(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::Repeat(rows) => row % rows,
            // SAFETY: as the caller vouches.
            Self::At(list) => unsafe { *list.add(row) as usize },
        }
    }
}

/// Rows of `w` that are stored together.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// Rows of this part.
    pub rows: usize,
    /// Decodes them.
    pub source: &'a dyn PanelSource,
    /// `[rows]`, added to the products.
    pub bias: Option<Operand>,
}

/// Operands and shape of one product.
#[derive(Clone, Copy)]
pub struct GemmArgs<'a> {
    /// Rows of `x` and `out`.
    pub m: usize,
    /// Columns of `x` and `w`.
    pub k: usize,
    /// `[m, k]`
    pub x: Operand,
    /// Computes `x` in the place of a stored one, for [`gemm`] and on tiles.
    pub rows: Option<&'a dyn RowSource>,
    /// `w`, stacked by rows.
    pub parts: &'a [Part<'a>],
    /// Applied after the bias; if gated, to the gate.
    pub act: Activation,
    /// The first half of the rows of `w` gates the second: `out: [m, n / 2]`.
    pub gated: bool,
    /// Added last: `[m, n_out]`; may be `out` itself.
    pub residual: Option<Operand>,
    /// Row of the residual for a row of `out`.
    pub residual_row: ResidualRow,
    /// `[m, n_out]`
    pub out: OperandMut,
}

// SAFETY: the pointers are only used as the contract of `gemm` allows: disjoint parts of `out` by different threads.
unsafe impl Sync for GemmArgs<'_> {}

impl GemmArgs<'_> {
    /// Rows of `w`.
    pub fn n(&self) -> usize {
        self.parts.iter().map(|p| p.rows).sum()
    }

    /// Columns of `out`.
    pub fn n_out(&self) -> usize {
        if self.gated { self.n() / 2 } else { self.n() }
    }

    /// Calls `f(part, first row within it, rows, offset from row0)` for the parts that rows `row0..row0 + rows` lie in.
    #[inline(always)]
    fn for_parts(&self, row0: usize, rows: usize, mut f: impl FnMut(&Part, usize, usize, usize)) {
        let mut start = 0;
        for part in self.parts {
            let (lo, hi) = (row0.max(start), (row0 + rows).min(start + part.rows));
            if lo < hi {
                f(part, lo - start, hi - lo, lo - row0);
            }
            start += part.rows;
        }
    }
}

/// Words of `k` in one block, at most; a word is one f32, two bf16 or four bytes.
const KC: usize = 1024;
/// Row stride of packed `x` in words: rows of a micro-tile fall into different L1 sets.
const X_STRIDE: usize = KC + 16;
/// Rows that a job has at least, if rows are split at all.
const MIN_ROWS: usize = 256;
/// Rows of `x` that are packed ahead at a time.
const AHEAD_ROWS: usize = 2048;
/// Bytes that rows packed ahead take at most, unless [`MIN_ROWS`] take more.
const AHEAD_BYTES: usize = 64 << 20;
/// Fewer rows are packed by each strip: another parallel section would cost more.
const MIN_AHEAD: usize = 32;
/// Bytes of unfinished sums of a job.
const SUM_BYTES: usize = 2 << 20;
/// Vectors per panel.
const NV: usize = 2;

/// Rows of a micro-tile at a level: 2 rows of accumulators, 2 panel vectors and a broadcast fill the registers.
const fn mr(level: Level) -> usize {
    match level {
        Level::Avx512 => 14,
        Level::Avx2 => 6,
        Level::Neon => 12,
        Level::Scalar => 2,
    }
}

/// Sizes of the blocks that stay in L2.
struct Blocking {
    /// Words of `k` in one block.
    kc: usize,
    /// Rows in one block of `x`.
    mc: usize,
    /// Bytes of decoded weights that a job works with at a time.
    strip_bytes: usize,
}

impl Blocking {
    fn of(level: Level) -> Blocking {
        let most = l2_bytes() * 3 / 5;
        match level {
            // A tile of 14 x 32 sums takes its operands from L2 faster than it multiplies them, and long blocks of `k` save
            // passes over the unfinished sums.
            Level::Avx512 => Blocking { kc: KC, mc: 56, strip_bytes: most },
            // Panel and rows of a tile fit in L1.
            _ => Blocking { kc: KC / 4, mc: 192, strip_bytes: most.min(3 << 18) },
        }
    }
}

/// Size of the second-level cache; 1 MiB where the system does not say.
fn l2_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let text =
            std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size").unwrap_or_default();
        let kib = text.trim().strip_suffix('K').and_then(|k| k.parse::<usize>().ok()).unwrap_or(1024);
        kib.clamp(256, 4096) << 10
    })
}

/// How the product is cut into jobs.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Columns of `out` per panel.
    per_panel: usize,
    /// Panels in all.
    panels: usize,
    /// Panels per job.
    strip: usize,
    /// Rows per job.
    rows: usize,
    /// Words of `k`.
    words: usize,
    /// Words per block of `k`.
    kc: usize,
    /// Rows per block of `x`.
    mc: usize,
}

impl Plan {
    /// For `m` rows of `x`.
    fn new<A: Arithmetic>(
        args: &GemmArgs,
        arithmetic: A,
        m: usize,
        level: Level,
        lanes: usize,
        threads: usize,
    ) -> Plan {
        let (nr, mr) = (NV * lanes, arithmetic.mr(level));
        let per_panel = if args.gated { lanes } else { nr };
        let words = args.k.div_ceil(A::PACK);
        let blocking = Blocking::of(level);
        let kc = words.div_ceil(words.div_ceil(blocking.kc).max(1)).next_multiple_of(32).clamp(32, KC);
        let panels = args.n_out().div_ceil(per_panel).max(1);
        // As few strips as L2 allows: `x` is copied once per strip.
        let strips = panels
            .div_ceil((blocking.strip_bytes / (arithmetic.panel_len(kc, nr) * 4)).max(1))
            .next_multiple_of(threads);
        let strip = panels.div_ceil(strips.min(panels));
        let strips = panels.div_ceil(strip);
        // Enough jobs that threads finish together, but blocks of a few hundred rows: weights are decoded once per block.
        let wanted = if threads == 1 { 1 } else { (3 * threads).div_ceil(strips) };
        let blocks = wanted.min(m / MIN_ROWS).max(1);
        let most =
            if words <= kc { usize::MAX / 2 } else { (SUM_BYTES / (strip * nr * 4)).max(mr) / mr * mr };
        let rows = m.div_ceil(blocks.max(m.div_ceil(most))).next_multiple_of(mr);
        let mc = (blocking.mc / mr * mr).max(mr);
        Plan { per_panel, panels, strip, rows, words, kc, mc }
    }

    fn strips(&self) -> usize {
        self.panels.div_ceil(self.strip)
    }
}

/// `out = epilogue(x w^T)`, exact products of the operands as stored, accumulated in f32.
///
/// # Safety
/// Every pointer is valid for its matrix, elements need no alignment beyond their type's, `out` overlaps nothing but an
/// identical `residual`, and the sources produce the rows that `parts` states.
pub unsafe fn gemm(isa: Isa, pool: &Pool, args: &GemmArgs) {
    drive(isa, pool, args, F32);
}

/// Numbers of bf16 that a number of f32 is the sum of.
const PIECES: usize = 3;

/// Numbers of bf16 that a value of a type is the sum of.
pub(crate) const fn pieces(dtype: DType) -> usize {
    match dtype {
        DType::BF16 => 1,
        DType::F16 => 2,
        _ => PIECES,
    }
}

/// Pieces of a value of `x`, of so many, that are multiplied with a piece of a weight, counted from 0: together with all pieces before
/// them they have the bits of an f32.
const fn pairs(of_x: usize, piece: usize) -> usize {
    if of_x < PIECES - piece { of_x } else { PIECES - piece }
}

/// Products of bf16 that an [exact](gemm_exact) one on tiles is made of.
#[must_use]
pub fn products_on_tiles(x: DType, w: Format) -> usize {
    let of_w = if let Format::Dense(dtype) = w { pieces(dtype) } else { PIECES };
    (0..of_w).map(|piece| pairs(pieces(x), piece)).sum()
}

/// [`gemm`], on tiles of bf16 if `tiles`, and if there are some: exact as well, see `amx`.
///
/// # Safety
/// As [`gemm`].
pub unsafe fn gemm_exact(isa: Isa, pool: &Pool, args: &GemmArgs, tiles: bool) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as the caller vouches.
    if tiles && unsafe { gemm_amx(isa, pool, args, false) } {
        return;
    }
    let _ = tiles;
    // SAFETY: as above.
    unsafe { gemm(isa, pool, args) }
}

/// Runs the jobs of a product.
fn drive<A: Arithmetic>(isa: Isa, pool: &Pool, args: &GemmArgs, arithmetic: A) {
    if args.m == 0 || args.n_out() == 0 {
        return;
    }
    let ahead = args.m >= MIN_AHEAD && arithmetic.packs_ahead(args);
    let mut scratch = Scratch::new();
    let row_bytes = 4 * arithmetic.x_len(1) * args.k.div_ceil(A::PACK * KC).max(1);
    let most = if ahead { (AHEAD_BYTES / row_bytes).clamp(MIN_ROWS, AHEAD_ROWS) } else { args.m };
    for row0 in (0..args.m).step_by(most) {
        let m = most.min(args.m - row0);
        let (level, lanes) = (isa.level(), isa.run(Lanes));
        let plan = Plan::new(args, arithmetic, m, level, lanes, pool.threads());
        let x = ahead.then(|| pack_ahead(isa, pool, args, arithmetic, &plan, row0, m, &mut scratch));
        let blocks = m.div_ceil(plan.rows);
        pool.run(plan.strips() * blocks, |job, worker| {
            let (strip, block) = (job / blocks, job % blocks);
            let rows = row0 + block * plan.rows..row0 + m.min((block + 1) * plan.rows);
            arithmetic.run(isa, Job { isa, args, plan, strip, rows, x, worker, arithmetic });
        });
    }
}

/// Packs `m` rows of `x` from `row0`, all blocks of `k`, on all threads.
fn pack_ahead<A: Arithmetic>(
    isa: Isa,
    pool: &Pool,
    args: &GemmArgs,
    arithmetic: A,
    plan: &Plan,
    row0: usize,
    m: usize,
    scratch: &mut Scratch,
) -> Ahead {
    /// Rows of a job.
    const ROWS: usize = 16;
    let planes = plan.words.div_ceil(plan.kc);
    let len = arithmetic.x_len(m);
    let ahead = Ahead { ptr: scratch.slice::<u32>(planes * len).as_mut_ptr(), row0, rows: m, len };
    let jobs = m.div_ceil(ROWS);
    pool.run(planes * jobs, |job, _| {
        let (plane, i) = (job / jobs, job % jobs * ROWS);
        let kc = plan.kc.min(plan.words - plane * plan.kc);
        let rows = i..m.min(i + ROWS);
        arithmetic.run(isa, PackX { args, arithmetic, ahead, plane, rows, w0: plane * plan.kc, words: kc });
    });
    ahead
}

/// Rows of `x` that are packed for all strips: a block of all of them for each block of `k`.
#[derive(Clone, Copy)]
struct Ahead {
    ptr: *mut u32,
    /// First of the rows.
    row0: usize,
    rows: usize,
    /// Words from one block of `k` to the next.
    len: usize,
}

// SAFETY: threads write disjoint rows, and read after all are written.
unsafe impl Send for Ahead {}
// SAFETY: as above.
unsafe impl Sync for Ahead {}

impl Ahead {
    fn plane(&self, plane: usize) -> XBlock {
        XBlock { ptr: self.ptr.wrapping_add(plane * self.len), rows: self.rows }
    }
}

/// Packs some rows of one block of `k`.
struct PackX<'a, A> {
    args: &'a GemmArgs<'a>,
    arithmetic: A,
    ahead: Ahead,
    plane: usize,
    rows: Range<usize>,
    w0: usize,
    words: usize,
}

impl<A: Arithmetic> Kernel for PackX<'_, A> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (to, i) = (self.ahead.plane(self.plane), self.rows.start);
        let row = self.ahead.row0 + i;
        // SAFETY: the planes were sized for these rows and words; operands as `gemm`'s caller vouches.
        unsafe { self.arithmetic.pack_x(s, self.args, row, self.rows.len(), self.w0, self.words, to, i) }
    }
}

/// Packed rows of `x`: row `i` at word `i * X_STRIDE`, and behind the rows what the arithmetic keeps for each.
#[derive(Clone, Copy)]
struct XBlock {
    ptr: *mut u32,
    rows: usize,
}

impl XBlock {
    /// Row `i`.
    ///
    /// # Safety
    /// The row exists.
    #[inline(always)]
    unsafe fn row(self, i: usize) -> *mut u32 {
        // SAFETY: as the caller vouches.
        unsafe { self.ptr.add(i * X_STRIDE) }
    }
}

struct Lanes;
impl Kernel for Lanes {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

/// The arithmetic of a product: how operands are packed into words, and how tiles of them are multiplied.
///
/// Positions along `k` are in words; see [`micro::Dot`].
trait Arithmetic: Copy + Sync {
    /// Values of `k` in a word.
    const PACK: usize;
    /// Runs a kernel with the instructions that this arithmetic needs.
    fn run<K: Kernel>(self, isa: Isa, kernel: K) -> K::Output {
        isa.run(kernel)
    }
    /// Whether packing `x` takes so much that it is done once, ahead of the strips.
    fn packs_ahead(self, _: &GemmArgs) -> bool {
        false
    }
    /// Rows of a micro-tile.
    fn mr(self, level: Level) -> usize {
        mr(level)
    }
    /// Words that a packed panel of `kc` words takes, with whatever goes with them.
    fn panel_len(self, kc: usize, nr: usize) -> usize {
        kc * nr
    }
    /// Words that a block of `rows` packed rows of `x` takes.
    fn x_len(self, rows: usize) -> usize {
        rows * X_STRIDE
    }
    /// Packs `rows` rows of `x` from (`row`, `w0`), `words` words each, to rows `i..` of a block.
    ///
    /// # Safety
    /// The values exist; so do the rows of the block.
    unsafe fn pack_x<S: Simd>(
        self,
        s: S,
        args: &GemmArgs,
        row: usize,
        rows: usize,
        w0: usize,
        words: usize,
        to: XBlock,
        i: usize,
    );
    /// Packs `rows` rows of a part, from `row` and `w0`, to lanes of a panel of `nr` lanes, from `lane`.
    ///
    /// # Safety
    /// The values exist; `to` has room for a panel of `words` words.
    unsafe fn pack_w(
        self,
        isa: Isa,
        part: &Part,
        k: usize,
        row: usize,
        rows: usize,
        w0: usize,
        words: usize,
        to: *mut u32,
        lane: usize,
        nr: usize,
    );
    /// `c (+)= x w` for rows `i..i + rows` of the block; `first` overwrites `c: [rows][NR]`.
    ///
    /// # Safety
    /// `x` is a packed block that has these rows, `w` a panel of `words` words; `rows` is at most [`Arithmetic::mr`].
    unsafe fn tile<S: Simd>(
        self,
        s: S,
        x: XBlock,
        i: usize,
        rows: usize,
        words: usize,
        w: *const u32,
        c: *mut f32,
        first: bool,
    );
}

#[derive(Clone, Copy)]
struct F32;
impl Arithmetic for F32 {
    const PACK: usize = 1;
    #[inline(always)]
    unsafe fn pack_x<S: Simd>(
        self,
        s: S,
        args: &GemmArgs,
        row: usize,
        rows: usize,
        w0: usize,
        words: usize,
        to: XBlock,
        i: usize,
    ) {
        // SAFETY: as the caller vouches.
        unsafe {
            let to = to.row(i).cast();
            match args.rows {
                Some(source) => source.pack(row, rows, w0, words.min(args.k - w0), to, X_STRIDE),
                None => pack::x_f32(s, args.x, row, rows, w0, words, to, X_STRIDE),
            }
        }
    }
    #[inline(always)]
    unsafe fn pack_w(
        self,
        isa: Isa,
        part: &Part,
        _: usize,
        row: usize,
        rows: usize,
        w0: usize,
        words: usize,
        to: *mut u32,
        lane: usize,
        nr: usize,
    ) {
        // SAFETY: as the caller vouches.
        unsafe { part.source.pack(isa, row, rows, w0, words, to.add(lane).cast(), nr) }
    }
    #[inline(always)]
    unsafe fn tile<S: Simd>(
        self,
        s: S,
        x: XBlock,
        i: usize,
        rows: usize,
        words: usize,
        w: *const u32,
        c: *mut f32,
        first: bool,
    ) {
        // SAFETY: as the caller vouches.
        unsafe { micro::tile(s, DotF32, rows, words, x.row(i), w, c, first) }
    }
}

struct Job<'a, 'b, A> {
    isa: Isa,
    args: &'a GemmArgs<'a>,
    plan: Plan,
    strip: usize,
    rows: Range<usize>,
    /// `x`, if it is packed already.
    x: Option<Ahead>,
    worker: &'b mut Worker,
    arithmetic: A,
}

impl<A: Arithmetic> Kernel for Job<'_, '_, A> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Job { isa, args, plan, strip, rows, x: ahead, worker, arithmetic } = self;
        let mr = arithmetic.mr(S::LEVEL);
        let nr = NV * S::LANES;
        let p0 = strip * plan.strip;
        let panels = plan.strip.min(plan.panels - p0);
        let Range { start: row0, end: rows_end } = rows;
        let single = plan.words <= plan.kc;

        let panel = arithmetic.panel_len(plan.kc, nr);
        let w_len = panels * panel;
        let x_len = if ahead.is_some() { 0 } else { arithmetic.x_len(plan.mc.min(rows_end - row0)) };
        let c_len = if single { mr * nr } else { (rows_end - row0) * nr * panels };
        let scratch = worker.scratch.slice::<u32>(w_len + x_len + c_len + panels * nr);
        let (w, rest) = scratch.split_at_mut(w_len);
        let (x, rest) = rest.split_at_mut(x_len);
        let (c, bias) = rest.split_at_mut(c_len);
        let (w, x, c, bias) =
            (w.as_mut_ptr(), x.as_mut_ptr(), c.as_mut_ptr().cast::<f32>(), bias.as_mut_ptr().cast::<f32>());
        let finish = Finish { args, bias, first: p0 * plan.per_panel, per_panel: plan.per_panel };

        // SAFETY: the buffers were sized above for these panels, rows and words; operands as `gemm`'s caller vouches.
        unsafe {
            let mut pc = 0;
            loop {
                let kc = plan.kc.min(plan.words - pc);
                let (first, last) = (pc == 0, pc + kc == plan.words);
                for p in 0..panels {
                    let bias = first.then(|| bias.add(p * nr));
                    pack_panel(s, isa, arithmetic, args, p0 + p, pc, kc, w.add(p * panel), bias);
                }
                let mut ic = row0;
                while ic < rows_end {
                    let mc = plan.mc.min(rows_end - ic);
                    let (x, at) = match ahead {
                        Some(ahead) => (ahead.plane(pc / plan.kc), ic - ahead.row0),
                        None => {
                            let x = XBlock { ptr: x, rows: mc };
                            arithmetic.pack_x(s, args, ic, mc, pc, kc, x, 0);
                            (x, 0)
                        }
                    };
                    for p in 0..panels {
                        let wp = w.add(p * panel);
                        let mut i = 0;
                        while i < mc {
                            let h = mr.min(mc - i);
                            let tile =
                                if single { c } else { c.add((p * (rows_end - row0) + ic - row0 + i) * nr) };
                            arithmetic.tile(s, x, at + i, h, kc, wp, tile, first);
                            if last {
                                finish.tile(s, tile, ic + i, h, p);
                            }
                            i += h;
                        }
                    }
                    ic += mc;
                }
                pc += kc;
                if pc >= plan.words {
                    break;
                }
            }
        }
    }
}

/// Decodes words `pc..pc + kc` of panel `p` of the product to `w: [kc][NR]`, and its biases to `bias: [NR]`.
///
/// Ungated, the lanes are consecutive rows of `w`. Gated, the first vector holds rows of the gate and the second the
/// rows that they scale, so both accumulators of a column meet in one tile.
///
/// # Safety
/// `w` and `bias` are writable for a panel.
#[inline(always)]
unsafe fn pack_panel<S: Simd, A: Arithmetic>(
    _: S,
    isa: Isa,
    arithmetic: A,
    args: &GemmArgs,
    p: usize,
    pc: usize,
    kc: usize,
    w: *mut u32,
    bias: Option<*mut f32>,
) {
    let nr = NV * S::LANES;
    let n_out = args.n_out();
    for v in 0..NV {
        let col = if args.gated { p * S::LANES } else { p * nr + v * S::LANES };
        let lanes = S::LANES.min(n_out.saturating_sub(col));
        let row = if args.gated { v * n_out + col } else { col };
        let at = v * S::LANES;
        // SAFETY: lanes `at..at + LANES` of each of `words` rows lie within the panel.
        unsafe {
            if lanes < S::LANES {
                for i in 0..arithmetic.panel_len(kc, nr) / nr {
                    std::ptr::write_bytes(w.add(i * nr + at), 0, S::LANES);
                }
            }
            if let Some(bias) = bias {
                std::ptr::write_bytes(bias.add(at), 0, S::LANES);
            }
            args.for_parts(row, lanes, |part, first, rows, lane| {
                arithmetic.pack_w(isa, part, args.k, first, rows, pc, kc, w, at + lane, nr);
                if let (Some(bias), Some(b)) = (bias, &part.bias) {
                    for i in 0..rows {
                        bias.add(at + lane + i).write(epilogue::read(b.dtype, b.ptr, (first + i) * b.stride));
                    }
                }
            });
        }
    }
}
