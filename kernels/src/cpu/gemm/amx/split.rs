//! Values as sums of numbers of bf16, see the module above.

use half::bf16;

use super::super::{Part, RowSource, XBlock};
use crate::cpu::isa::{Isa, Level};
use crate::cpu::simd::{Elem, Kernel, MAX_LANES, Simd, StoreElem};

/// The largest number that rounds to one of bf16.
const MOST: f32 = f32::from_bits(0x7f7f_7fff);

/// Splits rows of `x` into numbers of bf16, the leading bits first: `pieces` blocks of rows. The last piece is rounded.
///
/// # Safety
/// `rows` rows of `n` values exist; `to` has room for them from row `i` on.
#[inline(always)]
pub(super) unsafe fn split<S: Simd, T: Elem>(
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
                    let leading = if piece + 1 < pieces {
                        s.select(finite, s.of_bits(s.and_i(s.to_bits(rest), high)), rest)
                    } else {
                        rest
                    };
                    let to = to.row(piece * to.rows + i + r).cast::<bf16>().add(j);
                    if lanes == S::LANES {
                        store(s, to, leading);
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

/// Stores a vector rounded to bf16, by the instruction for it, which is where tiles are.
///
/// # Safety
/// `to` is writable for the lanes; the machine has tiles of bf16.
#[inline(always)]
unsafe fn store<S: Simd>(s: S, to: *mut bf16, v: S::V) {
    // SAFETY: as the caller vouches; at this level a vector is `__m512`.
    unsafe {
        if S::LEVEL == Level::Avx512 {
            use std::arch::x86_64::*;
            let v: __m512 = std::mem::transmute_copy(&v);
            let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(v));
            return _mm256_storeu_si256(to.cast(), rounded);
        }
        s.store_bf16(to, v);
    }
}

/// The same of rows that are made: columns `col..col + n` of `rows` rows from `row`.
///
/// # Safety
/// As [`split`].
#[inline(always)]
pub(super) unsafe fn split_made<S: Simd>(
    s: S,
    pieces: usize,
    source: &dyn RowSource,
    row: usize,
    rows: usize,
    col: usize,
    n: usize,
    to: XBlock,
    i: usize,
) {
    /// Rows and columns that are made at a time.
    const CHUNK: (usize, usize) = (16, 256);
    let mut values = [0.0f32; CHUNK.0 * CHUNK.1];
    for r in (0..rows).step_by(CHUNK.0) {
        let rows = CHUNK.0.min(rows - r);
        for j in (0..n).step_by(CHUNK.1) {
            let n = CHUNK.1.min(n - j);
            let made = values.as_mut_ptr();
            // SAFETY: as the caller vouches; columns begin with a whole word.
            unsafe {
                source.pack(row + r, rows, col + j, n, made, CHUNK.1);
                let to = XBlock { ptr: to.ptr.add(j / 2), ..to };
                split(s, pieces, made.cast_const(), CHUNK.1, rows, n, to, i + r);
            }
        }
    }
}

/// Splits columns `col..col + n` of some rows of weights, words of two columns: each next piece of the values `piece` words behind.
pub(super) struct SplitRows<'a> {
    pub isa: Isa,
    pub part: &'a Part<'a>,
    pub row: usize,
    pub rows: usize,
    pub col: usize,
    pub n: usize,
    pub to: *mut u32,
    pub piece: usize,
    /// Words from one to the next of a row.
    pub nr: usize,
}

/// Piece `i` of `COUNT`, of what those before it have left: the first and the last are rounded.
#[inline(always)]
fn piece_of<S: Simd, const COUNT: usize>(s: S, i: usize, rest: S::V) -> S::V {
    let high = s.splat_i(-65_536);
    let leading = s.of_bits(s.and_i(s.to_bits(rest), high));
    if i > 0 && i + 1 < COUNT {
        return leading;
    }
    let rounded = s.of_bits(s.and_i(s.add_i(s.to_bits(rest), s.splat_i(0x8000)), high));
    // What is larger than bf16 has is not rounded up to infinity.
    if i == 0 { s.select(s.le(s.abs(rest), s.splat(MOST)), rounded, leading) } else { rounded }
}

/// Into so many pieces.
pub(super) struct Split<'a, const COUNT: usize>(pub SplitRows<'a>);

impl<const COUNT: usize> Kernel for Split<'_, COUNT> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        /// Columns that are decoded at a time.
        const CHUNK: usize = 128;
        let SplitRows { isa, part, row, rows, col, n, to, piece, nr } = self.0;
        let mut values = [0.0f32; CHUNK * MAX_LANES];
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
                    let mut rest = [s.load(from), s.load(from.add(S::LANES))];
                    let to = to.add((at / 2 + pair) * nr).cast::<f32>();
                    for i in 0..COUNT {
                        let low = piece_of::<S, COUNT>(s, i, rest[0]);
                        let high = piece_of::<S, COUNT>(s, i, rest[1]);
                        let word = s.of_bits(s.or_i(s.shr_i::<16>(s.to_bits(low)), s.to_bits(high)));
                        if rows == S::LANES {
                            s.store(to.add(i * piece), word);
                        } else {
                            s.store_n(to.add(i * piece), word, rows);
                        }
                        rest = [s.sub(rest[0], low), s.sub(rest[1], high)];
                    }
                }
            }
        }
    }
}
