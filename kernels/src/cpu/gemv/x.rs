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
    scales: *const f32,
    lane_sums: *const i32,
    stride: usize,
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
        let none = Blocks { scales: std::ptr::null(), lane_sums: std::ptr::null(), stride: 0 };
        X { m, k, values, stride, sums, sum_stride, blocks: none }
    }

    /// Rounds `m` rows of `k` to bytes. A vector of words, `layout.fields` values a word, shares a scale: the largest value
    /// over 127. Its bytes lie as [`Int8Dots`](super::Int8Dots) takes words apart: those that meet fields 0, 2, 4, 6 of each
    /// word, then those that meet 1, 3, 5, 7; or, for words of four fields, in order.
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
        let padded = k.next_multiple_of(layout.fields * MAX_LANES);
        let (codes, words) = (padded / 4, padded / layout.fields);
        let groups = if layout.sums == 0 { 0 } else { k.div_ceil(layout.sums).next_multiple_of(MAX_LANES) };
        let all = scratch.slice::<f32>(m * (codes + groups + 2 * words));
        let (values, rest) = all.split_at_mut(m * codes);
        let (sums, rest) = rest.split_at_mut(m * groups);
        let (scales, lane_sums) = rest.split_at_mut(m * words);
        let lane_sums: &mut [i32] = bytemuck::cast_slice_mut(lane_sums);
        isa.run(Round {
            x,
            m,
            k,
            layout,
            codes: bytemuck::cast_slice_mut(values),
            sums,
            groups,
            scales,
            lane_sums,
        });
        let blocks = Blocks { scales: scales.as_ptr(), lane_sums: lane_sums.as_ptr(), stride: words };
        X { blocks, ..X::new(m, k, values.as_ptr(), codes, sums.as_ptr(), groups) }
    }

    /// Bytes of a rounded row, four to a value.
    #[inline(always)]
    pub(super) fn codes(&self, i: usize) -> *const i32 {
        self.row(i).cast()
    }

    /// Scale of each vector of words of a rounded row.
    #[inline(always)]
    pub(super) fn scales(&self, i: usize) -> *const f32 {
        self.blocks.scales.wrapping_add(i * self.blocks.stride)
    }

    /// Sum of the bytes that meet each word of a rounded row.
    #[inline(always)]
    pub(super) fn lane_sums(&self, i: usize) -> *const i32 {
        self.blocks.lane_sums.wrapping_add(i * self.blocks.stride)
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
    codes: &'a mut [i8],
    sums: &'a mut [f32],
    groups: usize,
    scales: &'a mut [f32],
    lane_sums: &'a mut [i32],
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Round { x, m, k, layout, codes, sums, groups, scales, lane_sums } = self;
        let fields = layout.fields;
        let block = fields * S::LANES;
        let row_codes = codes.len() / m.max(1);
        let row_words = scales.len() / m.max(1);
        sums.fill(0.0);
        for i in 0..m {
            let from = x.ptr.wrapping_add(i * x.stride * x.dtype.size());
            let codes = &mut codes[i * row_codes..][..row_codes];
            for v in 0..row_codes / block {
                let mut value = [s.zero(); 8];
                let mut most = s.zero();
                for (j, value) in value.iter_mut().enumerate().take(fields) {
                    let at = v * block + j * S::LANES;
                    let n = S::LANES.min(k.saturating_sub(at));
                    if n > 0 {
                        // SAFETY: the values exist.
                        *value = unsafe { epilogue::load_any(s, x.dtype, from, at, n) };
                    }
                    most = s.max(most, s.abs(*value));
                }
                let scale = s.max_lane(most) / 127.0;
                let by = s.splat(if scale > 0.0 { scale } else { 1.0 });
                let mut rounded = [0i32; 8 * MAX_LANES];
                for (j, value) in value.iter().enumerate().take(fields) {
                    // SAFETY: there is room for 8 vectors.
                    unsafe { s.store_i(rounded.as_mut_ptr().add(j * S::LANES), s.to_int(s.div(*value, by))) };
                }
                scales[i * row_words + v] = scale;
                for lane in 0..S::LANES {
                    let mut sum = 0;
                    for j in 0..fields {
                        let q = rounded[lane * fields + j];
                        sum += i32::from(q as i8);
                        let at =
                            if fields == 8 { j % 2 * S::LANES * 4 + lane * 4 + j / 2 } else { lane * 4 + j };
                        codes[v * block + at] = q as i8;
                    }
                    lane_sums[i * row_words + v * S::LANES + lane] = sum;
                }
                if groups > 0 {
                    for (j, q) in rounded.iter().enumerate().take(block.min(k.saturating_sub(v * block))) {
                        sums[i * groups + (v * block + j) / layout.sums] += scale * *q as f32;
                    }
                }
            }
        }
    }
}
