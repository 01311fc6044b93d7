//! What follows the products: bias, activation, gate, residual, rounding to the type of the result.

use half::{bf16, f16};

use super::super::simd::{Elem, Simd, StoreElem, math};
use super::{GemmArgs, NV};
use crate::ops::Activation;
use crate::spec::DType;

/// `act(v)`
#[inline(always)]
pub fn activate<S: Simd>(s: S, act: Activation, v: S::V) -> S::V {
    match act {
        Activation::None => v,
        Activation::GeluTanh => math::gelu_tanh(s, v),
        Activation::GeluErf => math::gelu_erf(s, v),
        Activation::QuickGelu => math::quick_gelu(s, v),
        Activation::Silu => math::silu(s, v),
        Activation::Relu => s.max(v, s.zero()),
    }
}

/// Element `i` of floats of type `dtype`.
///
/// # Safety
/// `p` is readable at `i`; `dtype` is a float.
#[inline(always)]
pub unsafe fn read(dtype: DType, p: *const u8, i: usize) -> f32 {
    // SAFETY: as the caller vouches.
    unsafe {
        match dtype {
            DType::BF16 => p.cast::<bf16>().add(i).read_unaligned().to_f32(),
            DType::F16 => p.cast::<f16>().add(i).read_unaligned().to_f32(),
            _ => p.cast::<f32>().add(i).read_unaligned(),
        }
    }
}

/// The first `n` lanes from element `i` of floats of type `dtype`, zeros after them.
///
/// # Safety
/// `p` is readable from `i` for `n <= LANES` elements; `dtype` is a float.
#[inline(always)]
pub unsafe fn load_any<S: Simd>(s: S, dtype: DType, p: *const u8, i: usize, n: usize) -> S::V {
    /// # Safety
    /// As the outer function.
    #[inline(always)]
    unsafe fn of<S: Simd, T: Elem>(s: S, p: *const T, n: usize) -> S::V {
        // SAFETY: as the caller vouches.
        unsafe { if n == S::LANES { T::load(s, p) } else { T::load_n(s, p, n) } }
    }
    // SAFETY: as the caller vouches.
    unsafe {
        match dtype {
            DType::BF16 => of(s, p.cast::<bf16>().add(i), n),
            DType::F16 => of(s, p.cast::<f16>().add(i), n),
            _ => of(s, p.cast::<f32>().add(i), n),
        }
    }
}

/// Stores the first `n` lanes at element `i` of floats of type `dtype`, rounded to nearest even.
///
/// # Safety
/// `p` is writable from `i` for `n <= LANES` elements; `dtype` is a float.
#[inline(always)]
pub unsafe fn store_any<S: Simd>(s: S, dtype: DType, p: *mut u8, i: usize, v: S::V, n: usize) {
    /// # Safety
    /// As the outer function.
    #[inline(always)]
    unsafe fn of<S: Simd, T: StoreElem>(s: S, p: *mut T, v: S::V, n: usize) {
        // SAFETY: as the caller vouches.
        unsafe { if n == S::LANES { T::store(s, p, v) } else { T::store_n(s, p, v, n) } }
    }
    // SAFETY: as the caller vouches.
    unsafe {
        match dtype {
            DType::BF16 => of(s, p.cast::<bf16>().add(i), v, n),
            DType::F16 => of(s, p.cast::<f16>().add(i), v, n),
            _ => of(s, p.cast::<f32>().add(i), v, n),
        }
    }
}

/// Finishes tiles of one strip.
pub(super) struct Finish<'a> {
    pub args: &'a GemmArgs<'a>,
    /// `[panels][NR]`, in panel order.
    pub bias: *const f32,
    /// Column of `out` where the strip begins.
    pub first: usize,
    /// Columns of `out` per panel.
    pub per_panel: usize,
}

impl Finish<'_> {
    /// Writes the sums `tile: [rows][NR]` of panel `p` to rows `row..row + rows` of `out`.
    ///
    /// # Safety
    /// The rows and the panel belong to the product.
    #[inline(always)]
    pub unsafe fn tile<S: Simd>(&self, s: S, tile: *const f32, row: usize, rows: usize, p: usize) {
        let Self { args, .. } = *self;
        let col0 = self.first + p * self.per_panel;
        let n_out = args.n_out();
        let vectors = if args.gated { 1 } else { NV };
        for v in 0..vectors {
            let col = col0 + v * S::LANES;
            if col >= n_out {
                break;
            }
            let n = S::LANES.min(n_out - col);
            // SAFETY: columns `col..col + n` of the rows belong to the product; tile and bias hold NR columns.
            unsafe {
                let bias = self.bias.add(p * NV * S::LANES + v * S::LANES);
                let b = s.load(bias);
                let up = if args.gated { s.load(bias.add(S::LANES)) } else { b };
                for i in 0..rows {
                    let at = tile.add((i * NV + v) * S::LANES);
                    let mut y = activate(s, args.act, s.add(s.load(at), b));
                    if args.gated {
                        y = s.mul(y, s.add(s.load(at.add(S::LANES)), up));
                    }
                    let row = row + i;
                    if let Some(r) = &args.residual {
                        y = s.add(
                            y,
                            load_any(s, r.dtype, r.ptr, args.residual_row.of(row) * r.stride + col, n),
                        );
                    }
                    store_any(s, args.out.dtype, args.out.ptr, row * args.out.stride + col, y, n);
                }
            }
        }
    }
}
