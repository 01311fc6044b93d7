//! `x`, widened and laid out for the weights.

use half::{bf16, f16};

use super::super::gemm::{Operand, epilogue};
use super::super::isa::Isa;
use super::super::scratch::Scratch;
use super::super::simd::{Elem, Kernel, MAX_LANES, Simd};
use crate::spec::DType;

/// The order of a row of `x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Weights that lie in one word, of which a vector takes one field of each word at a time: value
    /// `(v * LANES + lane) * fields + j` goes to `(v * fields + j) * LANES + lane`. 1 keeps the order.
    pub fields: usize,
    /// Consecutive values whose sums are wanted; 0 for none.
    pub sums: usize,
    /// For values rounded to bytes: vectors of words that share a scale, a unit.
    pub vectors: usize,
    /// For values rounded to bytes: what a field that stands for zero is stored as.
    pub half: i32,
    /// For values rounded to bytes: whether sums are wanted for each word too.
    pub small: bool,
}

impl Layout {
    /// `fields` weights a word, no sums.
    pub fn fields(fields: usize) -> Layout {
        Layout { fields, sums: 0, vectors: 1, half: 0, small: false }
    }
}

/// Rows of `x` as f32, padded with zeros to whole vectors of words.
pub struct X {
    /// Rows.
    pub m: usize,
    /// Values per row, without padding.
    pub k: usize,
    values: *const f32,
    stride: usize,
    sums: *const f32,
    sum_stride: usize,
    blocks: Blocks,
}

/// What else there is to a row whose values are rounded to bytes.
#[derive(Clone, Copy)]
struct Blocks {
    units: usize,
    unit_stride: usize,
    scales: *const f32,
    starts: *const i32,
    lane_starts: *const i32,
    lane_stride: usize,
}

// SAFETY: the values are only read once prepared.
unsafe impl Sync for X {}

impl X {
    /// Values of a row, in the order of the layout.
    #[inline(always)]
    pub fn row(&self, i: usize) -> *const f32 {
        self.values.wrapping_add(i * self.stride)
    }

    /// Sums of a row's groups, padded with zeros to whole vectors.
    #[inline(always)]
    pub fn sums(&self, i: usize) -> *const f32 {
        self.sums.wrapping_add(i * self.sum_stride)
    }

    /// Widens `m` rows of `k`. Rows of f32 that keep their order stay where they are.
    ///
    /// # Safety
    /// The operand is readable for these rows as long as the result is used.
    pub unsafe fn prepare(
        isa: Isa,
        x: Operand,
        m: usize,
        k: usize,
        layout: Layout,
        scratch: &mut Scratch,
    ) -> X {
        if layout.fields == 1 && layout.sums == 0 && x.dtype == DType::F32 {
            return X::new(m, k, x.ptr.cast(), x.stride, std::ptr::null(), 0);
        }
        let stride = k.next_multiple_of(layout.fields * MAX_LANES);
        let groups = if layout.sums == 0 { 0 } else { k.div_ceil(layout.sums).next_multiple_of(MAX_LANES) };
        let (values, sums) = scratch.slice::<f32>(m * (stride + groups)).split_at_mut(m * stride);
        isa.run(Prepare { x, k, layout, values, stride, sums, groups, m });
        X::new(m, k, values.as_ptr(), stride, sums.as_ptr(), groups)
    }

    fn new(m: usize, k: usize, values: *const f32, stride: usize, sums: *const f32, sum_stride: usize) -> X {
        let none = Blocks {
            units: 0,
            unit_stride: 0,
            scales: std::ptr::null(),
            starts: std::ptr::null(),
            lane_starts: std::ptr::null(),
            lane_stride: 0,
        };
        X { m, k, values, stride, sums, sum_stride, blocks: none }
    }

    /// Rounds `m` rows of `k` to bytes. A unit, `layout.vectors` vectors of words with `layout.fields` values a word, shares
    /// a scale: the largest value over 127. Its bytes lie as [`Int8Dots`](super::Int8Dots) takes words apart: those that
    /// meet fields 0, 2, 4, 6 of each word of a vector, then those that meet 1, 3, 5, 7; or, for words of four fields, in
    /// order.
    ///
    /// # Safety
    /// The operand is readable for these rows.
    pub unsafe fn prepare_bytes(
        isa: Isa,
        x: Operand,
        m: usize,
        k: usize,
        layout: Layout,
        scratch: &mut Scratch,
    ) -> X {
        let unit = layout.vectors * layout.fields * isa.lanes();
        let units = k.div_ceil(unit);
        let (codes, words) = (units * unit / 4, units * unit / layout.fields);
        let pad = |values: usize| values.next_multiple_of(MAX_LANES) + MAX_LANES;
        let (code_stride, word_stride, unit_stride) =
            (codes.next_multiple_of(MAX_LANES), pad(words), pad(units));
        let groups = if layout.sums == 0 { 0 } else { k.div_ceil(layout.sums).next_multiple_of(MAX_LANES) };
        let all = scratch.slice::<f32>(m * (code_stride + groups + 2 * unit_stride + word_stride));
        let (values, rest) = all.split_at_mut(m * code_stride);
        let (sums, rest) = rest.split_at_mut(m * groups);
        let (scales, rest) = rest.split_at_mut(m * unit_stride);
        let (starts, lane_starts) = rest.split_at_mut(m * unit_stride);
        let (starts, lane_starts): (&mut [i32], &mut [i32]) =
            (bytemuck::cast_slice_mut(starts), bytemuck::cast_slice_mut(lane_starts));
        let blocks = Blocks {
            units,
            unit_stride,
            scales: scales.as_ptr(),
            starts: starts.as_ptr(),
            lane_starts: lane_starts.as_ptr(),
            lane_stride: word_stride,
        };
        isa.run(Round {
            x,
            m,
            k,
            layout,
            units,
            codes: bytemuck::cast_slice_mut(values),
            sums,
            groups,
            scales,
            starts,
            unit_stride,
            lane_starts,
            lane_stride: word_stride,
        });
        X { blocks, ..X::new(m, k, values.as_ptr(), code_stride, sums.as_ptr(), groups) }
    }

    /// Bytes of a rounded row, four to a value.
    #[inline(always)]
    pub(super) fn codes(&self, i: usize) -> *const i32 {
        self.row(i).cast()
    }

    /// Units of a rounded row.
    #[inline(always)]
    pub(super) fn units(&self) -> usize {
        self.blocks.units
    }

    /// Scale of each unit of a rounded row.
    #[inline(always)]
    pub(super) fn scales(&self, i: usize) -> *const f32 {
        self.blocks.scales.wrapping_add(i * self.blocks.unit_stride)
    }

    /// Sum of the bytes of each unit of a rounded row, times `-half` of the layout.
    #[inline(always)]
    pub(super) fn starts(&self, i: usize) -> *const i32 {
        self.blocks.starts.wrapping_add(i * self.blocks.unit_stride)
    }

    /// Sum of the bytes that meet each word of a rounded row, times `-half` of the layout, where it has `small` set.
    #[inline(always)]
    pub(super) fn lane_starts(&self, i: usize) -> *const i32 {
        self.blocks.lane_starts.wrapping_add(i * self.blocks.lane_stride)
    }
}

struct Prepare<'a> {
    x: Operand,
    m: usize,
    k: usize,
    layout: Layout,
    values: &'a mut [f32],
    stride: usize,
    sums: &'a mut [f32],
    groups: usize,
}

impl Kernel for Prepare<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Prepare { x, m, k, layout, values, stride, sums, groups } = self;
        for i in 0..m {
            let to = &mut values[i * stride..][..stride];
            let size = x.dtype.size();
            let from = x.ptr.wrapping_add(i * x.stride * size);
            // SAFETY: `from` is a row of `k` values of that type, `to` holds it padded.
            unsafe {
                match x.dtype {
                    DType::BF16 => row(s, from.cast::<bf16>(), k, layout.fields, to),
                    DType::F16 => row(s, from.cast::<f16>(), k, layout.fields, to),
                    _ => row(s, from.cast::<f32>(), k, layout.fields, to),
                }
            }
            for g in 0..groups {
                let start = (g * layout.sums).min(k);
                let end = (start + layout.sums).min(k);
                let mut sum = s.zero();
                for at in (start..end).step_by(S::LANES) {
                    // SAFETY: within the row.
                    sum = s.add(sum, unsafe {
                        epilogue::load_any(s, x.dtype, from, at, S::LANES.min(end - at))
                    });
                }
                sums[i * groups + g] = s.sum(sum);
            }
        }
    }
}

/// One row of `k` values, widened and laid out.
///
/// # Safety
/// `from` is readable for `k` values; `to` holds `k` rounded up to whole vectors of words.
#[inline(always)]
unsafe fn row<S: Simd, T: Elem>(s: S, from: *const T, k: usize, fields: usize, to: &mut [f32]) {
    let load = |at: usize, n: usize| {
        let n = n.min(k.saturating_sub(at));
        // SAFETY: `at + n <= k`.
        unsafe {
            match n {
                0 => s.zero(),
                _ if n == S::LANES => T::load(s, from.add(at)),
                _ => T::load_n(s, from.add(at), n),
            }
        }
    };
    if fields == 1 {
        for at in (0..to.len()).step_by(S::LANES) {
            // SAFETY: `to` holds whole vectors.
            unsafe { s.store(to.as_mut_ptr().add(at), load(at, S::LANES)) }
        }
        return;
    }
    for v in 0..to.len() / (fields * S::LANES) {
        let base = v * fields * S::LANES;
        let mut j = 0;
        while j < fields {
            let n = S::LANES.min(fields - j);
            let mut tile = [s.zero(); MAX_LANES];
            for (lane, one) in tile.iter_mut().enumerate().take(S::LANES) {
                *one = load(base + lane * fields + j, n);
            }
            // SAFETY: the tile holds LANES vectors; `to` holds the vectors `base..base + fields * LANES`.
            unsafe {
                s.transpose(tile.as_mut_ptr());
                for (i, one) in tile.iter().enumerate().take(n) {
                    s.store(to.as_mut_ptr().add(base + (j + i) * S::LANES), *one);
                }
            }
            j += n;
        }
    }
}

struct Round<'a> {
    x: Operand,
    m: usize,
    k: usize,
    layout: Layout,
    units: usize,
    codes: &'a mut [i8],
    sums: &'a mut [f32],
    groups: usize,
    scales: &'a mut [f32],
    starts: &'a mut [i32],
    unit_stride: usize,
    lane_starts: &'a mut [i32],
    lane_stride: usize,
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Round { x, m, k, layout, units, sums, groups, .. } = self;
        let (fields, vectors) = (layout.fields, layout.vectors);
        let block = fields * S::LANES;
        let row_codes = self.codes.len() / m.max(1);
        sums.fill(0.0);
        for i in 0..m {
            let from = x.ptr.wrapping_add(i * x.stride * x.dtype.size());
            let codes = &mut self.codes[i * row_codes..][..row_codes];
            let lane_starts = &mut self.lane_starts[i * self.lane_stride..][..self.lane_stride];
            for u in 0..units {
                let mut value = [s.zero(); 2 * 8];
                let mut most = s.zero();
                for (j, value) in value.iter_mut().enumerate().take(vectors * fields) {
                    let at = u * vectors * block + j * S::LANES;
                    let n = S::LANES.min(k.saturating_sub(at));
                    if n > 0 {
                        // SAFETY: the values exist.
                        *value = unsafe { epilogue::load_any(s, x.dtype, from, at, n) };
                    }
                    most = s.max(most, s.abs(*value));
                }
                let scale = s.max_lane(most) / 127.0;
                let by = s.splat(if scale > 0.0 { scale } else { 1.0 });
                self.scales[i * self.unit_stride + u] = scale;
                let mut total = s.splat_i(0);
                for (v, value) in value.chunks_exact(fields).enumerate().take(vectors) {
                    let v = u * vectors + v;
                    let mut rounded = [0i8; 8 * MAX_LANES];
                    for (j, value) in value.iter().enumerate() {
                        let q = s.to_int(s.div(*value, by));
                        total = s.add_i(total, q);
                        // SAFETY: there is room for 8 vectors.
                        unsafe { s.store_i8(rounded.as_mut_ptr().add(j * S::LANES), q) };
                    }
                    let to = &mut codes[v * block..][..block];
                    if fields == 8 {
                        let (even, odd) = to.split_at_mut(block / 2);
                        for ((pair, even), odd) in rounded.chunks_exact(2).zip(even).zip(odd) {
                            (*even, *odd) = (pair[0], pair[1]);
                        }
                    } else {
                        to.copy_from_slice(&rounded[..block]);
                    }
                    if layout.small {
                        let words = &mut lane_starts[v * S::LANES..][..S::LANES];
                        for (start, word) in words.iter_mut().zip(rounded.chunks_exact(fields)) {
                            *start = -layout.half * word.iter().map(|q| i32::from(*q)).sum::<i32>();
                        }
                    }
                    if groups > 0 {
                        let count = block.min(k.saturating_sub(v * block));
                        for (j, q) in rounded.iter().enumerate().take(count) {
                            sums[i * groups + (v * block + j) / layout.sums] += scale * f32::from(*q);
                        }
                    }
                }
                let mut lanes = [0; MAX_LANES];
                // SAFETY: MAX_LANES values.
                unsafe { s.store_i(lanes.as_mut_ptr(), total) };
                let total: i32 = lanes.iter().sum();
                self.starts[i * self.unit_stride + u] = -layout.half * total;
            }
        }
    }
}
