//! Products of bf16 on Intel's matrix tiles (AMX): an instruction adds the products of 16 rows of 32 values with 32 values of 16
//! columns to 16 x 16 sums.
//!
//! A panel of words of two is what the instruction wants as its second operand, 16 words of 16 columns at a time, and packed rows of
//! `x` are what it wants as its first. Both are filled up with zeros to whole tiles along `k`.
//!
//! Values that bf16 does not hold are split: into their leading 8 bits, the next 8 and the last 8, each a number of bf16, and their sum is
//! the value. Three instructions then make the exact products of f32 with weights of bf16, in 48 cycles where f32 multiply-adds on two
//! ports take 256, and six make those of f32 with any weights as f32 has them: what is left out, products of pieces that begin 24 bits or
//! more below the leading ones, is about the rounding of a product. Where `x` may be rounded, one number of bf16 stands for a value of it, and
//! two for a weight. Values below 2^-126 count as zero, and an infinite `x` that meets a weight of several pieces gives no number.

mod split;

use std::arch::asm;

use half::f16;

use self::split::{Split, SplitRows, split, split_made};
use super::{Arithmetic, Bf16, GemmArgs, Level, NV, PIECES, Part, X_STRIDE, XBlock, drive, pairs, pieces};
use crate::cpu::isa::Isa;
use crate::cpu::pool::Pool;
use crate::cpu::simd::{Kernel, Simd};
use crate::cpu::tiles::{InUse, SIDE, Tiles};
use crate::spec::DType;

/// Rows of a micro-tile: two tiles of `x` and two of the panel make four of sums.
const ROWS: usize = 2 * SIDE;
/// Bytes from one packed row of `x` to the next.
const X_BYTES: usize = 4 * X_STRIDE;
/// Bytes from one word of a panel, or one row of sums, to the next.
const PANEL_BYTES: usize = 4 * NV * SIDE;

/// As [`gemm`](super::gemm); `round` allows that values of `x` are rounded to bf16, and weights to the sum of two of bf16. False, and nothing
/// done, unless there are tiles.
///
/// # Safety
/// As [`gemm`](super::gemm).
pub unsafe fn gemm_amx(isa: Isa, pool: &Pool, args: &GemmArgs, round: bool) -> bool {
    if !isa.amx() {
        return false;
    }
    let of_x = if args.rows.is_some() { PIECES } else { pieces(args.x.dtype) };
    let of_w = args.parts.iter().map(|part| part.source.pieces()).max().unwrap_or(1);
    let (of_x, of_w) = if round { (1, of_w.min(2)) } else { (of_x, of_w) };
    drive(isa, pool, args, Amx { of_x, of_w });
    true
}

/// Pairs of pieces that are multiplied, at most.
const PAIRS: usize = PIECES * (PIECES + 1) / 2;

/// Numbers of bf16 that stand for a value of `x`, and for a weight: a block or a panel has the first ones of all its values, then the
/// second ones, and so on.
#[derive(Clone, Copy)]
struct Amx {
    of_x: usize,
    of_w: usize,
}

impl Arithmetic for Amx {
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
        self.of_w * kc.next_multiple_of(SIDE) * nr
    }

    fn x_len(self, rows: usize) -> usize {
        self.of_x * rows * X_STRIDE
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
        let pieces = self.of_x;
        let n = (2 * words).min(args.k - 2 * w0);
        // SAFETY: as the caller vouches; rows of a block have room for whole tiles.
        unsafe {
            let (x, at) = (&args.x, row * args.x.stride + 2 * w0);
            match (args.rows, x.dtype) {
                (Some(source), _) => split_made(s, pieces, source, row, rows, 2 * w0, n, to, i),
                _ if pieces == 1 => Bf16::<true>.pack_x(s, args, row, rows, w0, words, to, i),
                (_, DType::F16) => split(s, pieces, x.ptr.cast::<f16>().add(at), x.stride, rows, n, to, i),
                _ => split(s, pieces, x.ptr.cast::<f32>().add(at), x.stride, rows, n, to, i),
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
            if self.of_w == 1 && part.source.as_bf16().is_some() {
                Bf16::<true>.pack_w(isa, part, k, row, rows, w0, words, to, lane, nr);
            } else {
                let n = (2 * words).min(k - 2 * w0);
                let (to, piece) = (to.add(lane), whole * nr);
                let rows = SplitRows { isa, part, row, rows, col: 2 * w0, n, to, piece, nr };
                match self.of_w {
                    1 => isa.run(Split::<1>(rows)),
                    2 => isa.run(Split::<2>(rows)),
                    _ => isa.run(Split::<PIECES>(rows)),
                }
            }
            for piece in 0..self.of_w {
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
        let (x_bytes, w_bytes) = (x.rows * X_BYTES, steps * SIDE * PANEL_BYTES);
        let (mut offsets, mut count) = ([[0; 2]; PAIRS], 0);
        for of_w in 0..self.of_w {
            for of_x in 0..pairs(self.of_x, of_w) {
                offsets[count] = [of_x * x_bytes, of_w * w_bytes];
                count += 1;
            }
        }
        let x = x.ptr.wrapping_add(i * X_STRIDE);
        let product = Product { x, w, c, steps, pairs: &offsets[..count], first };
        let whole = rows == ROWS || rows == SIDE;
        // SAFETY: as the caller vouches; `run` has begun the use of tiles, and a configuration for fewer rows is taken back.
        unsafe {
            if !whole {
                of_rows(rows).load();
            }
            if rows > SIDE {
                product.run::<true>();
            } else {
                product.run::<false>();
            }
            if !whole {
                of_rows(ROWS).load();
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
struct Product<'a> {
    x: *const u32,
    w: *const u32,
    c: *mut f32,
    /// Tiles along `k`.
    steps: usize,
    /// Bytes from the first piece of `x` and from that of the weights to those that are multiplied.
    pairs: &'a [[usize; 2]],
    first: bool,
}

impl Product<'_> {
    /// The sums; `LOWER`: of more than 16 rows.
    ///
    /// # Safety
    /// The configuration is that of these rows; the operands have the sizes of it.
    #[inline(always)]
    unsafe fn run<const LOWER: bool>(self) {
        let pairs = self.pairs.as_ptr_range();
        // SAFETY: as the caller vouches; code of the compiler does not use the tiles.
        unsafe {
            asm!(
                "test {first:e}, {first:e}",
                "jz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                ".if {lower}",
                "tilezero tmm2",
                "tilezero tmm3",
                ".endif",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{c} + {wide}]",
                "tileloadd tmm1, [{c} + {wide} + 64]",
                ".if {lower}",
                "tileloadd tmm2, [{c} + {wide} + {c_lower}]",
                "tileloadd tmm3, [{c} + {wide} + {c_lower} + 64]",
                ".endif",
                "3:",
                "test {steps}, {steps}",
                "jz 6f",
                "4:",
                "mov {pair}, {pairs}",
                "5:",
                "mov {at}, [{pair} + 8]",
                "add {at}, {w}",
                "tileloadd tmm6, [{at} + {wide}]",
                "tileloadd tmm7, [{at} + {wide} + 64]",
                "mov {at}, [{pair}]",
                "add {at}, {x}",
                "tileloadd tmm4, [{at} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                ".if {lower}",
                "tileloadd tmm5, [{at} + {row} + {x_lower}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                ".endif",
                "add {pair}, 16",
                "cmp {pair}, {end}",
                "jne 5b",
                "add {x}, 64",
                "add {w}, {w_step}",
                "dec {steps}",
                "jnz 4b",
                "6:",
                "tilestored [{c} + {wide}], tmm0",
                "tilestored [{c} + {wide} + 64], tmm1",
                ".if {lower}",
                "tilestored [{c} + {wide} + {c_lower}], tmm2",
                "tilestored [{c} + {wide} + {c_lower} + 64], tmm3",
                ".endif",
                lower = const LOWER as u8,
                first = in(reg) u32::from(self.first),
                c = in(reg) self.c,
                wide = in(reg) PANEL_BYTES,
                row = in(reg) X_BYTES,
                pairs = in(reg) pairs.start,
                end = in(reg) pairs.end,
                pair = out(reg) _,
                x = inout(reg) self.x => _,
                w = inout(reg) self.w => _,
                steps = inout(reg) self.steps => _,
                at = out(reg) _,
                c_lower = const SIDE * PANEL_BYTES,
                x_lower = const SIDE * X_BYTES,
                w_step = const SIDE * PANEL_BYTES,
                options(nostack),
            );
        }
    }
}
