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
            let sums = std::ptr::null();
            return X { m, k, values: x.ptr.cast(), stride: x.stride, sums, sum_stride: 0 };
        }
        let stride = k.next_multiple_of(layout.fields * MAX_LANES);
        let groups = if layout.sums == 0 { 0 } else { k.div_ceil(layout.sums).next_multiple_of(MAX_LANES) };
        let (values, sums) = scratch.slice::<f32>(m * (stride + groups)).split_at_mut(m * stride);
        isa.run(Prepare { x, k, layout, values, stride, sums, groups, m });
        X { m, k, values: values.as_ptr(), stride, sums: sums.as_ptr(), sum_stride: groups }
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
