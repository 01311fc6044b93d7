//! Single rows of a weight matrix of any format, decoded.

use smallvec::SmallVec;

use super::CpuCx;
use super::isa::Isa;
use super::rows::{InRows, OutRow, copy_row};
use super::simd::{MAX_LANES, Simd};
use crate::buffer::{View, WeightPart, Weights};
use crate::quant::e4m3;
use crate::quant::grouped::field;
use crate::spec::{Code, Format, Grouped, KernelError};

/// The rows of a stacked weight matrix.
pub(crate) struct Table<'a> {
    parts: SmallVec<[(usize, Part<'a>); 3]>,
    k: usize,
}

enum Part<'a> {
    Dense(InRows<'a>),
    Codes(Codes<'a>),
}

/// A plane of packed words.
#[derive(Clone, Copy)]
struct Words {
    base: *const i32,
    stride: usize,
}

struct Codes<'a> {
    code: Code,
    group: usize,
    words: Words,
    scales: InRows<'a>,
    zeros: Option<Words>,
}

// SAFETY: pointers into memory that the views of the matrix keep alive and that ops only read.
unsafe impl Send for Codes<'_> {}
// SAFETY: as above.
unsafe impl Sync for Codes<'_> {}

fn words(cx: &CpuCx, view: &View) -> Result<Words, KernelError> {
    Ok(Words { base: cx.input(view)?, stride: view.stride(0) })
}

impl<'a> Table<'a> {
    /// The rows of `weights`.
    pub(crate) fn new(cx: &CpuCx, weights: &'a Weights) -> Result<Self, KernelError> {
        let k = weights.k();
        let part = |part: &'a WeightPart| {
            let rows = match weights.format() {
                Format::Dense(_) => Part::Dense(InRows::new(cx, &part.planes[0])?),
                format @ Format::Grouped(Grouped { code, .. }) => Part::Codes(Codes {
                    code,
                    group: format.group_len(k).max(1),
                    words: words(cx, &part.planes[0])?,
                    scales: InRows::new(cx, &part.planes[1])?,
                    zeros: part.planes.get(2).map(|view| words(cx, view)).transpose()?,
                }),
            };
            Ok((part.rows, rows))
        };
        let parts = weights.parts().iter().map(part).collect::<Result<_, KernelError>>()?;
        Ok(Self { parts, k })
    }

    /// Writes `scale` times row `row` to `out`, as many elements as both have.
    ///
    /// # Safety
    /// The matrix has more than `row` rows.
    pub(crate) unsafe fn decode(&self, isa: Isa, mut row: usize, scale: f32, out: OutRow<'_>) {
        for (rows, part) in &self.parts {
            if row < *rows {
                match part {
                    // SAFETY: the part has the row, and nobody writes weights.
                    Part::Dense(dense) => copy_row(isa, unsafe { dense.row(row) }, out, scale),
                    Part::Codes(codes) => decode_codes(isa, codes, row, out.part(0, self.k), scale),
                }
                return;
            }
            row -= rows;
        }
    }
}

/// Fields `at..at + n` of a packed row: integers as they are stored, without their offset; floats by their value.
///
/// # Safety
/// The row has these fields; `n <= LANES`.
#[inline(always)]
unsafe fn fields<S: Simd>(s: S, row: *const i32, code: Code, at: usize, n: usize) -> S::V {
    let bytes = row.cast::<u8>();
    // SAFETY: the bytes of the fields lie within the row, as the caller vouches.
    unsafe {
        match code {
            Code::Int8 if n == S::LANES => return s.load_u8(bytes.add(at)),
            Code::Fp8 if n == S::LANES => return e4m3::cpu::load(s, bytes.add(at)),
            Code::Int4 if n == S::LANES && at.is_multiple_of(2) => return s.load_u4(bytes.add(at / 2)),
            _ => {}
        }
        let mut lanes = [0.0; MAX_LANES];
        for (lane, place) in lanes[..n].iter_mut().zip(at..) {
            let byte = *bytes.add(place * code.bits() / 8);
            *lane = match code {
                Code::Int4 => f32::from(byte >> (place % 2 * 4) & 15),
                Code::Int8 => f32::from(byte),
                Code::Fp8 => e4m3::value(byte),
            };
        }
        s.load(lanes.as_ptr())
    }
}

crate::simd_fn! {
    /// Decodes the first elements of a row that the matrix has, as many as `out` takes.
    fn decode_codes<S>(s: S, codes: &Codes<'_>, row: usize, out: OutRow<'_>, scale: f32) {
        // SAFETY: callers vouch for the row, and `Weights::new` checked the planes against it; nobody writes weights.
        unsafe {
            let packed = codes.words.base.add(row * codes.words.stride);
            let scales = codes.scales.row(row);
            for (group, start) in (0..out.len()).step_by(codes.group).enumerate() {
                // Of integers, the field that stands for zero.
                let bits = codes.code.bits();
                let zero = match codes.zeros {
                    Some(zeros) => {
                        let word = *zeros.base.add(row * bits / 32 * zeros.stride + group);
                        f32::from(field(word.into(), row, bits))
                    }
                    None if codes.code.is_int() => (1u32 << (bits - 1)) as f32,
                    None => 0.0,
                };
                let zero = s.splat(zero);
                let factor = s.splat(scales.get(group) * scale);
                let end = out.len().min(start + codes.group);
                for at in (start..end).step_by(S::LANES) {
                    let n = S::LANES.min(end - at);
                    let v = fields(s, packed, codes.code, at, n);
                    out.store(s, at, s.mul(s.sub(v, zero), factor), n);
                }
            }
        }
    }
}
