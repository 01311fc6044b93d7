//! What the threads of one op share, and how its work is cut into tasks.

use bytemuck::{Pod, Zeroable};

use super::flash::BLOCK;
use super::operands::{Operands, Seq};
use super::pack::Io;
use crate::cpu::CpuCx;
use crate::cpu::isa::Isa;
use crate::cpu::simd::{Kernel, MAX_LANES, Simd};
use crate::ops::attention::{Attention, AttentionKv};
use crate::spec::{DType, KernelError};

/// One op, resolved: what every task reads.
pub(super) struct Call<'a> {
    pub(super) isa: Isa,
    pub(super) operands: Operands<'a>,
    pub(super) geometry: Geometry,
    pub(super) io: Io,
    /// First elements; their types are those that `io` was made for.
    pub(super) q: *const u8,
    pub(super) k: *const u8,
    pub(super) v: *const u8,
    pub(super) out: *mut u8,
    /// Factor of the queries: scores come out in powers of two, or as arguments of the tanh of a softcap.
    pub(super) factor: f32,
    /// Factor of that tanh, in powers of two; 0 without a softcap.
    pub(super) cap: f32,
    /// Keys of one block, see [`flash`](super::flash).
    pub(super) block: usize,
}

// SAFETY: tasks write disjoint heads of the result and only read the rest.
unsafe impl Sync for Call<'_> {}

impl<'a> Call<'a> {
    pub(super) fn new(op: &'a Attention, cx: &CpuCx) -> Result<Self, KernelError> {
        let (AttentionKv::Packed { k, v, .. } | AttentionKv::Paged { k, v, .. }) = &op.kv;
        let operands = Operands::new(op, cx)?;
        let out = match op.out.dtype() {
            DType::BF16 => cx.output::<half::bf16>(&op.out)?.cast(),
            DType::F16 => cx.output::<half::f16>(&op.out)?.cast(),
            _ => cx.output::<f32>(&op.out)?.cast(),
        };
        let log2_e = std::f32::consts::LOG2_E;
        let (factor, cap) = match op.softcap > 0.0 {
            true => (op.scale / op.softcap, op.softcap * log2_e),
            false => (op.scale * log2_e, 0.0),
        };
        Ok(Self {
            isa: cx.isa,
            geometry: cx.isa.run(Measure { head_dim: operands.head_dim }),
            operands,
            io: Io::new(op.q.dtype(), k.dtype()),
            q: op.q.read_bytes_ptr(cx.id)?,
            k: k.read_bytes_ptr(cx.id)?,
            v: v.read_bytes_ptr(cx.id)?,
            out,
            factor,
            cap,
            block: BLOCK,
        })
    }
}

/// Sizes that follow from the vectors of the level.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    /// Query rows of one tile.
    pub(super) tile: usize,
    /// Keys that lie side by side in a packed panel.
    pub(super) panel: usize,
    /// Head dimension padded to whole vectors and micro-tiles.
    pub(super) padded: usize,
}

/// Vectors of query rows and broadcast elements of one micro-tile. Its sums leave enough registers for operands: with
/// 16 registers, 3 x 4 would take them all, and the compiler then spills sums.
const fn micro_tile<S: Simd>() -> (usize, usize) {
    if S::REGISTERS >= 32 { (3, 8) } else { (2, 6) }
}

/// Query rows of one tile.
pub(super) const fn tile<S: Simd>() -> usize {
    micro_tile::<S>().0 * S::LANES
}

/// Keys that lie side by side in a packed panel: whole vectors and whole micro-tiles.
pub(super) const fn panel<S: Simd>() -> usize {
    let (lanes, rows) = (S::LANES, micro_tile::<S>().1);
    if lanes.is_multiple_of(rows) {
        lanes
    } else if rows.is_multiple_of(lanes) {
        rows
    } else {
        lanes * rows / 2
    }
}

struct Measure {
    head_dim: usize,
}

impl Kernel for Measure {
    type Output = Geometry;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Geometry {
        Geometry {
            tile: tile::<S>(),
            panel: panel::<S>(),
            padded: self.head_dim.next_multiple_of(micro_tile::<S>().1).next_multiple_of(MAX_LANES),
        }
    }
}

/// Query rows of one key head of one sequence: row `r` is query `r / group`, head `r % group` of the group.
#[derive(Clone, Copy)]
pub(in crate::ops::attention) struct Rows {
    pub(in crate::ops::attention) seq: Seq,
    pub(in crate::ops::attention) head: usize,
    pub(in crate::ops::attention) first: usize,
    pub(in crate::ops::attention) count: usize,
}

impl Rows {
    /// The same rows of the key head `more` after this one.
    #[inline(always)]
    pub(in crate::ops::attention) fn of_head(&self, more: usize) -> Self {
        Self { head: self.head + more, ..*self }
    }

    /// Offset of row `r` of these in a view with these token and head strides.
    #[inline(always)]
    pub(in crate::ops::attention) fn at(
        &self,
        operands: &Operands,
        strides: (usize, usize),
        r: usize,
    ) -> usize {
        let (query, head) = ((self.first + r) / operands.group, (self.first + r) % operands.group);
        (self.seq.row + query) * strides.0 + (self.head * operands.group + head) * strides.1
    }

    /// Keys that row `r` of these sees; the end of an empty range may lie before its start.
    #[inline(always)]
    pub(in crate::ops::attention) fn visible(&self, operands: &Operands, r: usize) -> std::ops::Range<usize> {
        operands.visible(&self.seq, (self.first + r) / operands.group)
    }

    /// The keys from the first to the last that any of these rows sees: bounds ascend with the row. `0..0` where there are none.
    pub(in crate::ops::attention) fn hull(&self, operands: &Operands) -> std::ops::Range<usize> {
        let hull = self.visible(operands, 0).start..self.visible(operands, self.count - 1).end;
        if hull.is_empty() { 0..0 } else { hull }
    }
}

/// A part of the work that one thread does at a time.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Task {
    pub(super) cost: u64,
    pub(super) seq: u32,
    pub(super) head: u32,
    /// First row, or first key.
    pub(super) start: u32,
    /// Index among the tasks of the same sequence and head, and how many of them there are.
    pub(super) part: u32,
    pub(super) parts: u32,
    /// Index of the first of them among all parts.
    pub(super) base: u32,
}
