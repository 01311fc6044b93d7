//! Products of bf16 on Intel's matrix tiles (AMX): an instruction adds the products of 16 rows of 32 values with 32 values of 16
//! columns to 16 x 16 sums.
//!
//! A panel of words of two is what the instruction wants as its second operand, 16 words of 16 columns at a time, and packed rows of
//! `x` are what it wants as its first. Both are filled up with zeros to whole tiles along `k`.
//!
//! Values of `x` that bf16 does not hold are split: the leading 8 bits, the next 8, the last 8, each a bf16 number, and their sum is
//! the value. Three instructions then make the exact products with weights of bf16, in 48 cycles where f32 multiply-adds on two ports take
//! 256. Values below 2^-126 count as zero. Where `x` may be rounded, weights of other types are split in two instead: their leading 8
//! bits and the next 8, rounded, which is finer than what the rounding of `x` leaves.

use std::arch::asm;

use half::{bf16, f16};

use super::super::isa::Isa;
use super::super::pool::Pool;
use super::super::simd::{Elem, Kernel, MAX_LANES, Simd, StoreElem};
use super::super::tiles::{InUse, SIDE, Tiles};
use super::{Arithmetic, Bf16, GemmArgs, Level, NV, Part, X_STRIDE, XBlock, drive};
use crate::spec::DType;

/// Rows of a micro-tile: two tiles of `x` and two of the panel make four of sums.
const ROWS: usize = 2 * SIDE;
/// Bytes from one packed row of `x` to the next.
const X_BYTES: usize = 4 * X_STRIDE;
/// Bytes from one word of a panel, or one row of sums, to the next.
const PANEL_BYTES: usize = 4 * NV * SIDE;

/// As [`gemm`](super::gemm); `round` allows that `x` is rounded to bf16, and weights to 16 bits. False, and nothing done, unless there are
/// tiles, `x` is stored, and weights are stored as bf16 or may be rounded.
///
/// # Safety
/// As [`gemm`](super::gemm).
pub unsafe fn gemm_amx(isa: Isa, pool: &Pool, args: &GemmArgs, round: bool) -> bool {
    let stored = args.parts.iter().all(|part| part.source.as_bf16().is_some());
    if !isa.amx() || args.rows.is_some() || !(stored || round) {
        return false;
    }
    match (stored, round) {
        (false, _) => drive(isa, pool, args, Amx::<true> { pieces: 2 }),
        (true, true) => drive(isa, pool, args, Amx::<false> { pieces: 1 }),
        (true, false) => drive(isa, pool, args, Amx::<false> { pieces: pieces(args.x.dtype) }),
    }
    true
}

/// Numbers of bf16 that a value of a type is the sum of.
const fn pieces(dtype: DType) -> usize {
    match dtype {
        DType::BF16 => 1,
        DType::F16 => 2,
        _ => 3,
    }
}

/// `SPLIT_W`: weights are split, not `x`.
#[derive(Clone, Copy)]
struct Amx<const SPLIT_W: bool> {
    /// Numbers of bf16 that stand for a value of `x`, or a weight: a block or panel has those of all its values one after the other.
    pieces: usize,
}

impl<const SPLIT_W: bool> Amx<SPLIT_W> {
    /// Those of a value of `x`.
    const fn of_x(self) -> usize {
        if SPLIT_W { 1 } else { self.pieces }
    }
}

impl<const SPLIT_W: bool> Arithmetic for Amx<SPLIT_W> {
    const PACK: usize = 2;

    fn run<K: Kernel>(self, isa: Isa, kernel: K) -> K::Output {
        // SAFETY: `gemm_amx` has seen that there are tiles.
        let _tiles = unsafe { InUse::begin(isa) };
        isa.run_bf16(kernel)
    }

    fn packs_ahead(self, _: &GemmArgs) -> bool {
        true
    }

    fn mr(self, _: Level) -> usize {
        ROWS
    }

    fn panel_len(self, kc: usize, nr: usize) -> usize {
        let pieces = if SPLIT_W { self.pieces } else { 1 };
        pieces * kc.next_multiple_of(SIDE) * nr
    }

    fn x_len(self, rows: usize) -> usize {
        self.of_x() * rows * X_STRIDE
    }

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
        let pieces = self.of_x();
        let n = (2 * words).min(args.k - 2 * w0);
        // SAFETY: as the caller vouches; rows of a block have room for whole tiles.
        unsafe {
            if pieces == 1 {
                Bf16::<true>.pack_x(s, args, row, rows, w0, words, to, i);
            } else {
                let (x, at) = (&args.x, row * args.x.stride + 2 * w0);
                match x.dtype {
                    DType::F16 => split(s, pieces, x.ptr.cast::<f16>().add(at), x.stride, rows, n, to, i),
                    _ => split(s, pieces, x.ptr.cast::<f32>().add(at), x.stride, rows, n, to, i),
                }
            }
            let rest = words.next_multiple_of(SIDE) - words;
            for piece in 0..pieces {
                for r in i..i + rows {
                    std::ptr::write_bytes(to.row(piece * to.rows + r).add(words), 0, rest);
                }
            }
        }
    }

    #[inline(always)]
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
    ) {
        let whole = words.next_multiple_of(SIDE);
        // SAFETY: as the caller vouches; a panel has room for whole tiles.
        unsafe {
            if SPLIT_W {
                let n = (2 * words).min(k - 2 * w0);
                let (to, piece) = (to.add(lane), whole * nr);
                isa.run(SplitRows { isa, part, row, rows, col: 2 * w0, n, to, piece, nr });
            } else {
                Bf16::<true>.pack_w(isa, part, k, row, rows, w0, words, to, lane, nr);
            }
            for piece in 0..if SPLIT_W { self.pieces } else { 1 } {
                for word in words..whole {
                    std::ptr::write_bytes(to.add((piece * whole + word) * nr + lane), 0, rows);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd>(
        self,
        _: S,
        x: XBlock,
        i: usize,
        rows: usize,
        words: usize,
        w: *const u32,
        c: *mut f32,
        first: bool,
    ) {
        let steps = words.div_ceil(SIDE);
        let product = Product::<SPLIT_W> {
            x: x.ptr.wrapping_add(i * X_STRIDE),
            w,
            c,
            steps,
            pieces: self.pieces,
            piece: if SPLIT_W { steps * SIDE * PANEL_BYTES } else { x.rows * X_BYTES },
            first,
        };
        let whole = rows == ROWS || rows == SIDE;
        // SAFETY: as the caller vouches; `run` has begun the use of tiles, and a configuration for fewer rows is taken back.
        unsafe {
            if !whole {
                of_rows(rows).load();
            }
            if rows > SIDE {
                product.two();
            } else {
                product.one();
            }
            if !whole {
                of_rows(ROWS).load();
            }
        }
    }
}

/// Splits rows of `x` into numbers of bf16, the leading bits first: `pieces` blocks of rows.
///
/// # Safety
/// `rows` rows of `n` values exist; `to` has room for them from row `i` on.
#[inline(always)]
unsafe fn split<S: Simd, T: Elem>(
    s: S,
    pieces: usize,
    from: *const T,
    stride: usize,
    rows: usize,
    n: usize,
    to: XBlock,
    i: usize,
) {
    let (high, most) = (s.splat_i(-65_536), s.splat(f32::MAX));
    for r in 0..rows {
        // SAFETY: as the caller vouches.
        unsafe {
            let from = from.add(r * stride);
            for j in (0..n).step_by(S::LANES) {
                let lanes = S::LANES.min(n - j);
                let mut rest = if lanes == S::LANES {
                    T::load(s, from.add(j))
                } else {
                    T::load_n(s, from.add(j), lanes)
                };
                // Infinities and what is no number stay whole in the first piece.
                let finite = s.le(s.abs(rest), most);
                for piece in 0..pieces {
                    let leading = s.select(finite, s.of_bits(s.and_i(s.to_bits(rest), high)), rest);
                    let to = to.row(piece * to.rows + i + r).cast::<bf16>().add(j);
                    if lanes == S::LANES {
                        s.store_bf16(to, leading);
                    } else {
                        bf16::store_n(s, to, leading, lanes);
                    }
                    rest = s.select(finite, s.sub(rest, leading), s.zero());
                }
            }
            if n % 2 == 1 {
                for piece in 0..pieces {
                    to.row(piece * to.rows + i + r).cast::<bf16>().add(n).write(bf16::ZERO);
                }
            }
        }
    }
}

/// Splits columns `col..col + n` of some rows of weights in two, words of two columns: the second half of each value `piece` words behind.
struct SplitRows<'a> {
    isa: Isa,
    part: &'a Part<'a>,
    row: usize,
    rows: usize,
    col: usize,
    n: usize,
    to: *mut u32,
    piece: usize,
    /// Words from one to the next of a row.
    nr: usize,
}

impl Kernel for SplitRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        /// Columns that are decoded at a time.
        const CHUNK: usize = 128;
        let Self { isa, part, row, rows, col, n, to, piece, nr } = self;
        let mut values = [0.0f32; CHUNK * MAX_LANES];
        let word = |low: S::V, high: S::V| s.of_bits(s.or_i(s.shr_i::<16>(s.to_bits(low)), s.to_bits(high)));
        let leading = |v: S::V| s.of_bits(s.and_i(s.to_bits(v), s.splat_i(-65_536)));
        let rounded = |v: S::V| leading(s.of_bits(s.add_i(s.to_bits(v), s.splat_i(0x8000))));
        for at in (0..n).step_by(CHUNK) {
            let count = CHUNK.min(n - at);
            let from = values.as_mut_ptr();
            // SAFETY: the rows and columns exist; there is room for `CHUNK` columns of a vector of rows, and the panel has the words.
            unsafe {
                part.source.pack(isa, row, rows, col + at, count, from, S::LANES);
                if count % 2 == 1 {
                    s.store(from.add(count * S::LANES), s.zero());
                }
                for pair in 0..count.div_ceil(2) {
                    let from = from.add(2 * pair * S::LANES);
                    let (low, high) = (s.load(from), s.load(from.add(S::LANES)));
                    let (low_1, high_1) = (leading(low), leading(high));
                    let (low_2, high_2) = (rounded(s.sub(low, low_1)), rounded(s.sub(high, high_1)));
                    let to = to.add((at / 2 + pair) * nr).cast::<f32>();
                    s.store_n(to, word(low_1, high_1), rows);
                    s.store_n(to.add(piece), word(low_2, high_2), rows);
                }
            }
        }
    }
}

/// Configuration for so many rows of `x`: 0 to 3 are sums, 4 and 5 rows of `x`, 6 and 7 columns of a panel.
const fn of_rows(rows: usize) -> Tiles {
    let side = SIDE as u8;
    let (upper, lower) = if rows > SIDE { (side, (rows - SIDE) as u8) } else { (rows as u8, side) };
    Tiles::of([upper, upper, lower, lower, upper, lower, side, side])
}

/// One micro-tile of sums.
struct Product<const SPLIT_W: bool> {
    x: *const u32,
    w: *const u32,
    c: *mut f32,
    /// Tiles along `k`.
    steps: usize,
    /// Numbers that stand for a value of `x`, or a weight, and bytes from one to the next.
    pieces: usize,
    piece: usize,
    first: bool,
}

impl<const SPLIT_W: bool> Product<SPLIT_W> {
    /// Sums of more than 16 rows.
    ///
    /// # Safety
    /// The configuration is that of these rows; the operands have the sizes of it.
    #[inline(always)]
    unsafe fn two(self) {
        // SAFETY: as the caller vouches; code of the compiler does not use the tiles.
        unsafe {
            asm!(
                "test {first:e}, {first:e}",
                "jz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{c} + {wide}]",
                "tileloadd tmm1, [{c} + {wide} + 64]",
                "tileloadd tmm2, [{c} + {wide} + {c_lower}]",
                "tileloadd tmm3, [{c} + {wide} + {c_lower} + 64]",
                "3:",
                "test {steps}, {steps}",
                "jz 6f",
                "4:",
                "mov {left}, {pieces}",
                ".if {split_w}",
                "tileloadd tmm4, [{x} + {row}]",
                "tileloadd tmm5, [{x} + {row} + {x_lower}]",
                "mov {at}, {w}",
                "5:",
                "tileloadd tmm6, [{at} + {wide}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{at} + {wide} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                ".else",
                "tileloadd tmm6, [{w} + {wide}]",
                "tileloadd tmm7, [{w} + {wide} + 64]",
                "mov {at}, {x}",
                "5:",
                "tileloadd tmm4, [{at} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{at} + {row} + {x_lower}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                ".endif",
                "add {at}, {piece}",
                "dec {left}",
                "jnz 5b",
                "add {x}, 64",
                "add {w}, {w_step}",
                "dec {steps}",
                "jnz 4b",
                "6:",
                "tilestored [{c} + {wide}], tmm0",
                "tilestored [{c} + {wide} + 64], tmm1",
                "tilestored [{c} + {wide} + {c_lower}], tmm2",
                "tilestored [{c} + {wide} + {c_lower} + 64], tmm3",
                split_w = const SPLIT_W as u8,
                first = in(reg) u32::from(self.first),
                c = in(reg) self.c,
                wide = in(reg) PANEL_BYTES,
                row = in(reg) X_BYTES,
                pieces = in(reg) self.pieces,
                piece = in(reg) self.piece,
                x = inout(reg) self.x => _,
                w = inout(reg) self.w => _,
                steps = inout(reg) self.steps => _,
                at = out(reg) _,
                left = out(reg) _,
                c_lower = const SIDE * PANEL_BYTES,
                x_lower = const SIDE * X_BYTES,
                w_step = const SIDE * PANEL_BYTES,
                options(nostack),
            );
        }
    }

    /// Sums of at most 16 rows.
    ///
    /// # Safety
    /// As [`two`](Self::two).
    #[inline(always)]
    unsafe fn one(self) {
        // SAFETY: as there.
        unsafe {
            asm!(
                "test {first:e}, {first:e}",
                "jz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{c} + {wide}]",
                "tileloadd tmm1, [{c} + {wide} + 64]",
                "3:",
                "test {steps}, {steps}",
                "jz 6f",
                "4:",
                "mov {left}, {pieces}",
                ".if {split_w}",
                "tileloadd tmm4, [{x} + {row}]",
                "mov {at}, {w}",
                "5:",
                "tileloadd tmm6, [{at} + {wide}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{at} + {wide} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                ".else",
                "tileloadd tmm6, [{w} + {wide}]",
                "tileloadd tmm7, [{w} + {wide} + 64]",
                "mov {at}, {x}",
                "5:",
                "tileloadd tmm4, [{at} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                ".endif",
                "add {at}, {piece}",
                "dec {left}",
                "jnz 5b",
                "add {x}, 64",
                "add {w}, {w_step}",
                "dec {steps}",
                "jnz 4b",
                "6:",
                "tilestored [{c} + {wide}], tmm0",
                "tilestored [{c} + {wide} + 64], tmm1",
                split_w = const SPLIT_W as u8,
                first = in(reg) u32::from(self.first),
                c = in(reg) self.c,
                wide = in(reg) PANEL_BYTES,
                row = in(reg) X_BYTES,
                pieces = in(reg) self.pieces,
                piece = in(reg) self.piece,
                x = inout(reg) self.x => _,
                w = inout(reg) self.w => _,
                steps = inout(reg) self.steps => _,
                at = out(reg) _,
                left = out(reg) _,
                w_step = const SIDE * PANEL_BYTES,
                options(nostack),
            );
        }
    }
}
