//! Rows of integers that lie along `n` for Rust SIMD kernels.

use super::AWQ_FIELD;
use crate::buffer::WeightPart;
use crate::cpu::CpuCx;
use crate::cpu::gemm::PanelSource;
use crate::cpu::isa::Isa;
use crate::cpu::simd::{Kernel, MAX_LANES, Simd};
use crate::quant::grouped::cpu::{Floats, Zeros};
use crate::quant::int::centre;
use crate::spec::{Format, Grouped, KMajor, KernelError, Zero};

/// One stored tensor of integers along `n` as kernels read it: `w = (u - z) s`, `u` the value of the stored field.
#[derive(Clone, Copy, Debug)]
pub struct KMajorRows {
    /// First word of the packed plane.
    pub packed: *const i32,
    /// Words from line to line.
    pub stride: usize,
    /// Scales: a row for each group.
    pub scales: Floats,
    /// What each of them is multiplied with.
    pub factor: f32,
    /// Zero points: codes with the words from group to group, or floats.
    pub zeros: Zeros,
    /// Of act-order, the group of each column; else null.
    pub order: *const i32,
    /// Bits of a weight: 4 or 8.
    pub bits: usize,
    /// Columns that share a scale, where there is no order.
    pub group: usize,
    /// Groups.
    pub groups: usize,
    /// How the planes lie.
    pub kind: KMajor,
}

// SAFETY: the pointers are only read through, as the contracts of the unsafe methods state.
unsafe impl Send for KMajorRows {}
// SAFETY: as above.
unsafe impl Sync for KMajorRows {}

impl KMajorRows {
    /// The rows of one part of a matrix with rows of `k`; `None` of other formats.
    pub(crate) fn new(
        cx: &CpuCx,
        format: Format,
        k: usize,
        part: &WeightPart,
    ) -> Result<Option<Self>, KernelError> {
        let Format::KMajor(Grouped { code, zero, .. }, kind) = format else { return Ok(None) };
        let planes = &part.planes;
        let zeros = match zero {
            Zero::None => Zeros::None,
            Zero::Codes => Zeros::Codes(cx.input::<i32>(&planes[2])?, planes[2].stride(0)),
            Zero::Float | Zero::Offset => Zeros::Values(Floats::new(cx, &planes[2])?),
        };
        let order = match (kind, planes.last()) {
            (KMajor::ActOrder, Some(order)) => cx.input::<i32>(order)?,
            _ => std::ptr::null(),
        };
        Ok(Some(Self {
            packed: cx.input::<i32>(&planes[0])?,
            stride: planes[0].stride(0),
            scales: Floats::new(cx, &planes[1])?,
            factor: part.factor,
            zeros,
            order,
            bits: code.bits(),
            group: format.group_len(k).max(1),
            groups: format.groups(k),
            kind,
        }))
    }

    /// Whether groups have a zero point beside their scale.
    #[inline(always)]
    pub const fn has_zeros(&self) -> bool {
        !matches!(self.zeros, Zeros::None)
    }

    /// The group of a column.
    ///
    /// # Safety
    /// The column exists.
    #[inline(always)]
    pub unsafe fn group_of(&self, col: usize) -> usize {
        // SAFETY: as the caller vouches; groups of an order are below `groups`, as `Weights` are made.
        if self.order.is_null() { col / self.group } else { (unsafe { *self.order.add(col) }) as usize }
    }

    /// Scales of rows `row..row + n` in a group, zeros after them.
    ///
    /// # Safety
    /// They exist; `n <= LANES`.
    #[inline(always)]
    pub unsafe fn scale<S: Simd>(&self, s: S, group: usize, row: usize, n: usize) -> S::V {
        // SAFETY: as the caller vouches.
        s.mul(unsafe { self.scales.load(s, group, row, n) }, s.splat(self.factor))
    }

    /// Zero points of rows `row..row + n` in a group, in units of stored fields; anything after them.
    ///
    /// # Safety
    /// They exist; `n <= LANES`.
    #[inline(always)]
    pub unsafe fn zero<S: Simd>(&self, s: S, group: usize, row: usize, n: usize) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe {
            match self.zeros {
                Zeros::Codes(words, stride) => self.along(s, words.add(group * stride), row, n),
                Zeros::Values(values) => values.load(s, group, row, n),
                Zeros::None | Zeros::Offsets(_) => s.splat(centre(self.bits).into()),
            }
        }
    }

    /// Stored fields of rows `row..row + n` in a line of codes along `n`; anything after them.
    ///
    /// # Safety
    /// They exist; `n <= LANES`.
    #[inline(always)]
    unsafe fn along<S: Simd>(&self, s: S, line: *const i32, row: usize, n: usize) -> S::V {
        let (bits, per_word) = (self.bits, 32 / self.bits);
        let first = row / per_word;
        let words = (row + n).div_ceil(per_word) - first;
        // Of each lane the word, counted from that of the first, and how far its field is to be shifted.
        let (word, shift) = match (self.kind, bits) {
            _ if !row.is_multiple_of(per_word) => &self.lanes(row, n),
            (KMajor::Awq, _) => const { &whole_words(4, AWQ_FIELD) },
            (_, 4) => const { &whole_words(4, [0, 1, 2, 3, 4, 5, 6, 7]) },
            _ => const { &whole_words(8, [0, 1, 2, 3, 0, 1, 2, 3]) },
        };
        // SAFETY: the words exist, of `n <= LANES` rows there are no more than that; arrays hold MAX_LANES values.
        unsafe {
            let words = s.load_n(line.add(first).cast(), words.min(S::LANES));
            let words = s.to_bits(s.permute(words, s.load_i(word.as_ptr())));
            let fields = s.shr_lanes_i(words, s.load_i(shift.as_ptr()));
            s.to_float(s.and_i(fields, s.splat_i((1 << bits) - 1)))
        }
    }

    /// As [`whole_words`], from a row within a word on.
    fn lanes(&self, row: usize, n: usize) -> Lanes {
        let (mut word, mut shift) = ([0i32; MAX_LANES], [0i32; MAX_LANES]);
        let per_word = 32 / self.bits;
        for lane in 0..n {
            let at = row + lane;
            let field = if self.kind == KMajor::Awq { AWQ_FIELD[at % 8] } else { at % per_word };
            word[lane] = (at / per_word - row / per_word) as i32;
            shift[lane] = (field * self.bits) as i32;
        }
        (word, shift)
    }
}

/// Of each lane the word that has its code, and how far that is to be shifted.
type Lanes = ([i32; MAX_LANES], [i32; MAX_LANES]);

/// Lanes that begin with a word, whose codes are the fields `order`.
const fn whole_words(bits: usize, order: [usize; 8]) -> Lanes {
    let (mut word, mut shift) = ([0i32; MAX_LANES], [0i32; MAX_LANES]);
    let (mut lane, per_word) = (0, 32 / bits);
    while lane < MAX_LANES {
        word[lane] = (lane / per_word) as i32;
        shift[lane] = (order[lane % per_word] * bits) as i32;
        lane += 1;
    }
    (word, shift)
}

/// The first `n` words from `p` on, zeros after them.
///
/// # Safety
/// `p` is readable for `n <= LANES` words.
#[inline(always)]
pub unsafe fn load_words<S: Simd>(s: S, p: *const i32, n: usize) -> S::I {
    // SAFETY: as the caller vouches.
    unsafe { if n == S::LANES { s.load_i(p) } else { s.to_bits(s.load_n(p.cast(), n)) } }
}

impl PanelSource for KMajorRows {
    unsafe fn pack(
        &self,
        isa: Isa,
        row: usize,
        rows: usize,
        col: usize,
        k: usize,
        to: *mut f32,
        stride: usize,
    ) {
        isa.run(Pack { of: self, row, rows, col, k, to, stride });
    }
}

/// [`PanelSource::pack`]: lines of the file are rows of the panel.
struct Pack<'a> {
    of: &'a KMajorRows,
    row: usize,
    rows: usize,
    col: usize,
    k: usize,
    to: *mut f32,
    stride: usize,
}

impl Kernel for Pack<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { of, row, rows, col, k, to, stride } = self;
        let (per_word, mask) = (32 / of.bits, s.splat_i((1 << of.bits) - 1));
        let (mut group, mut scale, mut zero) = (usize::MAX, s.zero(), s.zero());
        let mut words = s.splat_i(0);
        for i in 0..k {
            let at = col + i;
            // SAFETY: rows `row..row + rows` and columns `col..col + k` exist; `to` is writable for `rows <= LANES` values at each of
            // `k` multiples of `stride`.
            unsafe {
                let own = of.group_of(at);
                if own != group {
                    group = own;
                    (scale, zero) = (of.scale(s, group, row, rows), of.zero(s, group, row, rows));
                }
                let fields = match of.kind {
                    KMajor::Awq => of.along(s, of.packed.add(at * of.stride), row, rows),
                    KMajor::Gptq | KMajor::ActOrder => {
                        if i == 0 || at.is_multiple_of(per_word) {
                            words = load_words(s, of.packed.add(at / per_word * of.stride + row), rows);
                        }
                        let shift = s.splat_i((at % per_word * of.bits) as i32);
                        s.to_float(s.and_i(s.shr_lanes_i(words, shift), mask))
                    }
                };
                let weights = s.mul(s.sub(fields, zero), scale);
                s.store_n(to.add(i * stride), weights, rows);
            }
        }
    }
}
