//! Rows of codes in groups for Rust SIMD kernels.

use half::{bf16, f16};

use crate::buffer::{View, WeightPart};
use crate::cpu::CpuCx;
use crate::cpu::gemm::{Int8Panel, Int8Source, PanelSource, RowLoader, epilogue, pack_rows};
use crate::cpu::isa::Isa;
use crate::cpu::simd::{MAX_LANES, Simd};
use crate::quant::{Decoder, e4m3, e8m0, with_decoder};
use crate::spec::{Code, DType, Format, Grouped, KernelError, Zero};

/// A plane of scales, or of zero points that are floats.
#[derive(Clone, Copy, Debug)]
pub struct Floats {
    /// First value.
    pub ptr: *const u8,
    /// Type of the values.
    pub dtype: DType,
    /// Values from row to row.
    pub stride: usize,
}

impl Floats {
    pub(crate) fn new(cx: &CpuCx, view: &View) -> Result<Self, KernelError> {
        Ok(Self { ptr: view.read_bytes_ptr(cx.id)?, dtype: view.dtype(), stride: view.stride(0) })
    }

    /// One value.
    ///
    /// # Safety
    /// The plane has it.
    #[inline(always)]
    unsafe fn get(&self, row: usize, col: usize) -> f32 {
        let at = row * self.stride + col;
        // SAFETY: as the caller vouches.
        unsafe {
            match self.dtype {
                DType::BF16 => (*self.ptr.cast::<bf16>().add(at)).to_f32(),
                DType::F16 => (*self.ptr.cast::<f16>().add(at)).to_f32(),
                DType::E4M3 => e4m3::value(*self.ptr.add(at)),
                DType::E8M0 => e8m0(*self.ptr.add(at)),
                _ => *self.ptr.cast::<f32>().add(at),
            }
        }
    }

    /// `n` neighbours, zeros after them.
    ///
    /// # Safety
    /// The plane has them; `n <= LANES`.
    #[inline(always)]
    pub unsafe fn load<S: Simd>(&self, s: S, row: usize, col: usize, n: usize) -> S::V {
        let at = row * self.stride + col;
        // SAFETY: as the caller vouches.
        unsafe {
            if self.dtype.is_float() {
                return epilogue::load_any(s, self.dtype, self.ptr, at, n);
            }
            let mut bytes = [0u8; MAX_LANES];
            std::ptr::copy_nonoverlapping(self.ptr.add(at), bytes.as_mut_ptr(), n);
            let v = match self.dtype {
                DType::E4M3 => e4m3::cpu::load(s, bytes.as_ptr()),
                // Exponents go where an f32 has them; the least, 2^-127, becomes zero.
                _ => s.of_bits(s.shl_i::<23>(s.to_int(s.load_u8(bytes.as_ptr())))),
            };
            if n == S::LANES { v } else { s.select(s.first(n), v, s.zero()) }
        }
    }

    /// Asks for the first `n` values of a row, which need not exist.
    #[inline(always)]
    pub fn prefetch<S: Simd>(&self, s: S, row: usize, n: usize) {
        let size = self.dtype.size();
        let start = self.ptr.wrapping_add(row * self.stride * size);
        for at in (0..n * size).step_by(64) {
            s.prefetch(start.wrapping_add(at));
        }
    }
}

/// What groups have beside scales, as [`Zero`] has it.
#[derive(Clone, Copy, Debug)]
pub enum Zeros {
    /// Nothing.
    None,
    /// First word of packed zero points, and words from one row of words to the next.
    Codes(*const i32, usize),
    /// Zero points as floats.
    Values(Floats),
    /// Offsets.
    Offsets(Floats),
}

/// One stored tensor of grouped codes as kernels read it: `w = (u - z) s + o`, `u` the value of the stored field.
#[derive(Clone, Copy, Debug)]
pub struct GroupedRows {
    /// First word of the packed plane.
    pub packed: *const i32,
    /// Words from row to row.
    pub words: usize,
    /// Scales.
    pub scales: Floats,
    /// What each of them is multiplied with.
    pub factor: f32,
    /// What groups have beside them.
    pub zeros: Zeros,
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
    /// The rows of one part of a matrix with rows of `k`, `None` for floats. A row that is one group counts as one without an end,
    /// whatever its length.
    pub(crate) fn new(
        cx: &CpuCx,
        format: Format,
        k: usize,
        part: &WeightPart,
    ) -> Result<Option<Self>, KernelError> {
        let Format::Grouped(Grouped { code, zero, .. }) = format else { return Ok(None) };
        let words = |view: &View| Ok::<_, KernelError>((cx.input::<i32>(view)?, view.stride(0)));
        let (packed, stride) = words(&part.planes[0])?;
        let zeros = match zero {
            Zero::None => Zeros::None,
            Zero::Codes => {
                let (words, stride) = words(&part.planes[2])?;
                Zeros::Codes(words, stride)
            }
            Zero::Float => Zeros::Values(Floats::new(cx, &part.planes[2])?),
            Zero::Offset => Zeros::Offsets(Floats::new(cx, &part.planes[2])?),
        };
        Ok(Some(Self {
            packed,
            words: stride,
            scales: Floats::new(cx, &part.planes[1])?,
            factor: part.factor,
            zeros,
            code,
            group: if format.groups(k) <= 1 { usize::MAX & !127 } else { format.group_len(k) },
        }))
    }

    /// Whether groups have anything beside a scale.
    #[inline(always)]
    pub const fn has_zeros(&self) -> bool {
        !matches!(self.zeros, Zeros::None)
    }

    /// Scale of a group.
    ///
    /// # Safety
    /// The group exists in the planes.
    #[inline(always)]
    pub unsafe fn scale(&self, row: usize, group: usize) -> f32 {
        // SAFETY: as the caller vouches.
        unsafe { self.scales.get(row, group) * self.factor }
    }

    /// Bits of a weight: 4 or 8.
    #[inline(always)]
    pub const fn bits(&self) -> usize {
        self.code.bits()
    }

    /// Stored value that stands for zero in a group, and what is added to its weights.
    ///
    /// # Safety
    /// The group exists in the planes.
    #[inline(always)]
    pub unsafe fn zero(&self, row: usize, group: usize) -> (f32, f32) {
        // SAFETY: as the caller vouches; zero points that are codes are packed along the rows.
        unsafe {
            match self.zeros {
                Zeros::None => (self.code.centre().unwrap_or_default().into(), 0.0),
                Zeros::Codes(words, stride) => {
                    let word = *words.add(row * self.bits() / 32 * stride + group);
                    (super::field(word.into(), row, self.bits()).into(), 0.0)
                }
                Zeros::Values(values) => (values.get(row, group), 0.0),
                Zeros::Offsets(offsets) => (0.0, offsets.get(row, group)),
            }
        }
    }

    /// Scale and zero point of a group of integers, offsets as zero points too.
    ///
    /// # Safety
    /// The group exists in the planes.
    #[inline(always)]
    unsafe fn pair(&self, row: usize, group: usize) -> (f32, f32) {
        /// A zero point beside which every field vanishes.
        const FAR: f32 = (1u64 << 40) as f32;
        // SAFETY: as the caller vouches.
        let (scale, (zero, offset)) = unsafe { (self.scale(row, group), self.zero(row, group)) };
        match offset {
            0.0 => (scale, zero),
            _ if scale == 0.0 => (offset / FAR, -FAR),
            _ => (scale, -offset / scale),
        }
    }

    /// Stored field of a weight.
    ///
    /// # Safety
    /// The weight exists.
    #[inline(always)]
    unsafe fn field(&self, row: usize, col: usize) -> u8 {
        // SAFETY: as the caller vouches.
        let word = unsafe { *self.packed.add(row * self.words + col * self.bits() / 32) };
        super::field(word.into(), col, self.bits())
    }

    /// First byte of the fields of a row from column `col` on, which begin at a whole byte.
    #[inline(always)]
    fn bytes(&self, row: usize, col: usize) -> *const u8 {
        self.packed.wrapping_add(row * self.words).cast::<u8>().wrapping_add(col * self.bits() / 8)
    }
}

/// Rows with the decoder of their code.
#[derive(Clone, Copy, Debug)]
pub struct Decoded<D>(pub GroupedRows, pub D);

impl<D: Decoder> Decoded<D> {
    /// `n` weights one by one: for groups that end inside a vector.
    ///
    /// # Safety
    /// The weights exist, `n <= LANES`.
    #[inline(always)]
    unsafe fn gather<S: Simd>(&self, s: S, row: usize, col: usize, n: usize) -> S::V {
        let Self(rows, decoder) = self;
        let mut all = [0.0; MAX_LANES];
        for (i, one) in all.iter_mut().enumerate().take(n) {
            let group = (col + i) / rows.group;
            // SAFETY: as the caller vouches.
            unsafe {
                let (zero, offset) = rows.zero(row, group);
                *one = (decoder.one(rows.field(row, col + i)) - zero) * rows.scale(row, group) + offset;
            }
        }
        // SAFETY: `MAX_LANES` values.
        unsafe { s.load(all.as_ptr()) }
    }

    /// Weights `col..col + n`, zeros after them.
    ///
    /// # Safety
    /// The weights exist; `n <= LANES`.
    #[inline(always)]
    pub unsafe fn load_some<S: Simd>(&self, s: S, row: usize, col: usize, n: usize) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe {
            if n < S::LANES || !col.is_multiple_of(S::LANES) {
                self.gather(s, row, col, n)
            } else {
                self.load(s, row, col)
            }
        }
    }
}

impl<D: Decoder> RowLoader for Decoded<D> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, row: usize, col: usize) -> S::V {
        let Self(rows, decoder) = self;
        // SAFETY: as the caller vouches; `LANES` fields from a multiple of `LANES` begin at a whole byte.
        unsafe {
            if !rows.group.is_multiple_of(S::LANES) {
                return self.gather(s, row, col, S::LANES);
            }
            let group = col / rows.group;
            let (zero, offset) = rows.zero(row, group);
            let q = s.sub(decoder.load(s, rows.bytes(row, col)), s.splat(zero));
            let w = s.mul(q, s.splat(rows.scale(row, group)));
            if matches!(rows.zeros, Zeros::Offsets(_)) { s.add(w, s.splat(offset)) } else { w }
        }
    }

    #[inline(always)]
    unsafe fn load_n<S: Simd>(&self, s: S, row: usize, col: usize, n: usize) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { self.gather(s, row, col, n) }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, row: usize, col: usize) {
        s.prefetch(self.0.bytes(row, col));
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
        with_decoder!(self.code, decoder => {
            // SAFETY: as the caller vouches.
            unsafe { pack_rows(isa, Decoded(*self, decoder), row, rows, col, k, to, stride) }
        });
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
        let flip = signed && self.bits() == 8;
        let centre = i32::from(self.code.centre()?) - if flip { 128 } else { 0 };
        (!self.has_zeros()).then_some(centre)
    }

    unsafe fn pack_int8(&self, isa: Isa, to: &Int8Panel, row: usize, rows: usize, col: usize, k: usize) {
        // Fields of 4 bits are non-negative as signed bytes too.
        let flip = to.signed && self.bits() == 8;
        // SAFETY: as the caller vouches.
        unsafe {
            let bytes = Bytes { rows: *self, flip, end: col + k };
            pack_rows(isa, bytes, row, rows, col / 4, k.div_ceil(4), to.words.cast(), to.stride);
            for g in 0..k.div_ceil(to.group) {
                let group = (col + g * to.group) / self.group;
                for r in 0..rows {
                    let (scale, zero) = self.pair(row + r, group);
                    to.scales.add(g * to.stride + r).write(scale);
                    if let Some(zeros) = to.zeros {
                        zeros.add(g * to.stride + r).write(zero - if flip { 128.0 } else { 0.0 });
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
            let at = self.rows.bytes(row, 4 * col);
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
                let u = i32::from(unsafe { self.rows.field(row, 4 * (col + i) + byte) });
                *word |= (u ^ if self.flip { 128 } else { 0 }) << (8 * byte);
            }
        }
        // SAFETY: `MAX_LANES` words.
        unsafe { s.of_bits(s.load_i(words.as_ptr())) }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, row: usize, col: usize) {
        s.prefetch_l2(self.rows.bytes(row, 4 * col));
    }
}
