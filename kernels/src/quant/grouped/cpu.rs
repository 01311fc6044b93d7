//! Decoders for Rust SIMD kernels.

use half::{bf16, f16};

use crate::cpu::gemm::{Int8Panel, Int8Source, PanelSource, RowLoader, pack_rows};
use crate::cpu::isa::Isa;
use crate::cpu::simd::{MAX_LANES, Simd};
use crate::quant::e4m3;
use crate::spec::{Code, DType};

/// One stored tensor of grouped codes as kernels read it. Of integers `w = (u - z) * s`, `u` the stored field and `z` the stored
/// zero point, or `2^(bits-1)` where there is none; of floats `w = q * s`.
#[derive(Clone, Copy, Debug)]
pub struct GroupedRows {
    /// First word of the packed plane.
    pub packed: *const i32,
    /// Words from row to row.
    pub words: usize,
    /// First scale.
    pub scales: *const u8,
    /// Type of the scales.
    pub scale: DType,
    /// Scales from row to row.
    pub scale_stride: usize,
    /// First word of the zero points, and words from one row of words to the next.
    pub zeros: Option<(*const i32, usize)>,
    /// What a field stands for.
    pub code: Code,
    /// Weights that share a scale.
    pub group: usize,
}

// SAFETY: the pointers are only read through, as the contracts of the unsafe methods state.
unsafe impl Send for GroupedRows {}
// SAFETY: as above.
unsafe impl Sync for GroupedRows {}

impl GroupedRows {
    /// Scale of a group.
    ///
    /// # Safety
    /// The group exists in the planes.
    #[inline(always)]
    pub unsafe fn scale(&self, row: usize, group: usize) -> f32 {
        let at = row * self.scale_stride + group;
        // SAFETY: as the caller vouches.
        unsafe {
            match self.scale {
                DType::BF16 => (*self.scales.cast::<bf16>().add(at)).to_f32(),
                DType::F16 => (*self.scales.cast::<f16>().add(at)).to_f32(),
                _ => *self.scales.cast::<f32>().add(at),
            }
        }
    }

    /// Bits of a weight: 4 or 8.
    #[inline(always)]
    pub const fn bits(&self) -> usize {
        self.code.bits()
    }

    /// Stored value that stands for zero in a group of integers.
    ///
    /// # Safety
    /// The group exists in the planes.
    #[inline(always)]
    pub unsafe fn zero(&self, row: usize, group: usize) -> i32 {
        match self.zeros {
            None => 1 << (self.bits() - 1),
            Some((words, stride)) => {
                let per_word = 32 / self.bits();
                // SAFETY: as the caller vouches; zero points are packed along the rows.
                let word = unsafe { *words.add(row / per_word * stride + group) } as u32;
                (word >> (row % per_word * self.bits()) & ((1 << self.bits()) - 1)) as i32
            }
        }
    }

    /// Stored field of a weight.
    ///
    /// # Safety
    /// The weight exists.
    #[inline(always)]
    unsafe fn field(&self, row: usize, col: usize) -> i32 {
        let per_word = 32 / self.bits();
        // SAFETY: as the caller vouches.
        let word = unsafe { *self.packed.add(row * self.words + col / per_word) } as u32;
        (word >> (col % per_word * self.bits()) & ((1 << self.bits()) - 1)) as i32
    }

    /// `n` weights one by one: for groups that end inside a vector.
    ///
    /// # Safety
    /// The weights exist, `n <= MAX_LANES`.
    #[inline(always)]
    unsafe fn gather<S: Simd>(&self, s: S, row: usize, col: usize, n: usize) -> S::V {
        let mut all = [0.0; MAX_LANES];
        for (i, one) in all.iter_mut().enumerate().take(n) {
            let group = (col + i) / self.group;
            // SAFETY: as the caller vouches.
            unsafe {
                let field = self.field(row, col + i);
                let q = match self.code {
                    Code::Fp8 => e4m3::value(field as u8),
                    _ => (field - self.zero(row, group)) as f32,
                };
                *one = q * self.scale(row, group);
            }
        }
        // SAFETY: `MAX_LANES` values.
        unsafe { s.load(all.as_ptr()) }
    }

    /// A whole vector whose weights share a group.
    ///
    /// # Safety
    /// The weights exist; `col` is a multiple of `LANES`, and so is the group.
    #[inline(always)]
    unsafe fn load_group<S: Simd>(&self, s: S, row: usize, col: usize) -> S::V {
        let group = col / self.group;
        // SAFETY: as the caller vouches; `LANES` fields from a multiple of `LANES` begin at a whole byte.
        unsafe {
            let at = self.packed.add(row * self.words).cast::<u8>().add(col * self.bits() / 8);
            let zero = || s.splat(self.zero(row, group) as f32);
            let q = match self.code {
                Code::Int4 => s.sub(s.load_u4(at), zero()),
                Code::Int8 => s.sub(s.load_u8(at), zero()),
                Code::Fp8 => e4m3::cpu::load(s, at),
            };
            s.mul(q, s.splat(self.scale(row, group)))
        }
    }
}

impl RowLoader for GroupedRows {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, row: usize, col: usize) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe {
            if self.group.is_multiple_of(S::LANES) {
                self.load_group(s, row, col)
            } else {
                self.gather(s, row, col, S::LANES)
            }
        }
    }

    #[inline(always)]
    unsafe fn load_n<S: Simd>(&self, s: S, row: usize, col: usize, n: usize) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { self.gather(s, row, col, n) }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, row: usize, col: usize) {
        s.prefetch(self.packed.wrapping_add(row * self.words + col * self.bits() / 32));
    }
}

impl PanelSource for GroupedRows {
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
        // SAFETY: as the caller vouches.
        unsafe { pack_rows(isa, *self, row, rows, col, k, to, stride) }
    }

    fn as_int8(&self) -> Option<&dyn Int8Source> {
        self.code.is_int().then_some(self as &dyn Int8Source)
    }
}

impl Int8Source for GroupedRows {
    fn group(&self) -> usize {
        self.group
    }

    fn zero(&self, signed: bool) -> Option<i32> {
        let flip = signed && self.code == Code::Int8;
        self.zeros.is_none().then_some((1 << (self.bits() - 1)) - if flip { 128 } else { 0 })
    }

    unsafe fn pack_int8(&self, isa: Isa, to: &Int8Panel, row: usize, rows: usize, col: usize, k: usize) {
        // Fields of 4 bits are non-negative as signed bytes too.
        let flip = to.signed && self.code == Code::Int8;
        // SAFETY: as the caller vouches.
        unsafe {
            let bytes = Bytes { rows: *self, flip, end: col + k };
            pack_rows(isa, bytes, row, rows, col / 4, k.div_ceil(4), to.words.cast(), to.stride);
            for g in 0..k.div_ceil(to.group) {
                let group = (col + g * to.group) / self.group;
                for r in 0..rows {
                    to.scales.add(g * to.stride + r).write(self.scale(row + r, group));
                }
                if let Some(zeros) = to.zeros {
                    for r in 0..rows {
                        let zero = self.zero(row + r, group) - if flip { 128 } else { 0 };
                        zeros.add(g * to.stride + r).write(zero as f32);
                    }
                }
            }
        }
    }
}

/// Stored fields as words of four bytes.
#[derive(Clone, Copy)]
struct Bytes {
    rows: GroupedRows,
    /// Whether bytes are to be signed.
    flip: bool,
    /// Columns from here on are zero.
    end: usize,
}

impl RowLoader for Bytes {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, row: usize, col: usize) -> S::V {
        if 4 * (col + S::LANES) > self.end {
            // SAFETY: as the caller vouches.
            return unsafe { self.load_n(s, row, col, S::LANES) };
        }
        // SAFETY: as the caller vouches: `4 * LANES` fields exist, and begin at a whole byte.
        unsafe {
            let at =
                self.rows.packed.add(row * self.rows.words).cast::<u8>().add(4 * col * self.rows.bits() / 8);
            if self.rows.bits() == 8 {
                let words = s.load_i(at.cast());
                return s.of_bits(if self.flip {
                    s.xor_i(words, s.splat_i(0x8080_8080_u32 as i32))
                } else {
                    words
                });
            }
            let mut words = [0i32; MAX_LANES];
            for (i, word) in words.iter_mut().enumerate().take(S::LANES) {
                // Four fields of 4 bits spread to bytes.
                let four = u32::from(at.add(2 * i).cast::<u16>().read_unaligned());
                let two = (four | four << 8) & 0x00ff_00ff;
                *word = ((two | two << 4) & 0x0f0f_0f0f) as i32;
            }
            s.of_bits(s.load_i(words.as_ptr()))
        }
    }

    #[inline(always)]
    unsafe fn load_n<S: Simd>(&self, s: S, row: usize, col: usize, n: usize) -> S::V {
        let mut words = [0i32; MAX_LANES];
        for (i, word) in words.iter_mut().enumerate().take(n) {
            for byte in 0..4.min(self.end.saturating_sub(4 * (col + i))) {
                // SAFETY: as the caller vouches; the column lies before the end.
                let u = unsafe { self.rows.field(row, 4 * (col + i) + byte) };
                *word |= (u ^ if self.flip { 128 } else { 0 }) << (8 * byte);
            }
        }
        // SAFETY: `MAX_LANES` words.
        unsafe { s.of_bits(s.load_i(words.as_ptr())) }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, row: usize, col: usize) {
        s.prefetch_l2(self.rows.packed.wrapping_add(row * self.rows.words + 4 * col * self.rows.bits() / 32));
    }
}
