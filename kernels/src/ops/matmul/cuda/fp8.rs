//! Operands of tensor cores that multiply 8-bit floats: weights as stored, and x rounded by `fp8_x.cu`.

use bytemuck::{Pod, Zeroable};

use super::super::{FP8_SPAN as SPAN, Math, MatmulSpec};
use super::params::rows_aligned;
use crate::buffer::View;
use crate::cuda::{CudaCx, value_type};
use crate::select::Reject;
use crate::spec::{Arch, Caps, Code, DType, Format, Grouped, KernelError};

/// Threads of `fp8_x.cu`, each for this many neighbours.
const THREADS: usize = 128;
const NEIGHBOURS: usize = 8;

/// Why a spec has no such operands, if so.
pub(super) fn reject(spec: &MatmulSpec, caps: &Caps) -> Option<Reject> {
    let arch = caps.cuda.arch;
    if matches!(arch, Arch::Sm80 | Arch::Sm86) {
        return Some(format!("{arch} multiplies no 8-bit floats").into());
    }
    if spec.math != Math::Fp8 {
        return Some("rounds x to 8-bit floats, which math=fp8 allows".into());
    }
    if let Some(why) = spec.reject_fused() {
        return Some(why);
    }
    match spec.w {
        Format::Grouped(Grouped { code: Code::Fp8, group, .. }) => {
            let fits = group == 0 || group >= spec.k || group.is_multiple_of(SPAN as u32);
            if !fits {
                return Some(format!("for groups of multiples of {SPAN}").into());
            }
            (!spec.k.is_multiple_of(16)).then(|| "for k of multiples of 16".into())
        }
        _ => Some("for fp8 weights".into()),
    }
}

/// What tensor cores reach with 8-bit floats beside their rate with 16 bits.
pub(super) const RATE: f32 = 2.0;

/// Microseconds that it takes to round x.
pub(super) fn est_us(spec: &MatmulSpec, caps: &Caps) -> f32 {
    let bytes = spec.m as f64 * f64::from(spec.k) * (spec.x.size() + 1) as f64;
    2.0 + caps.cuda.estimate_us(bytes, 0.0, 1.0)
}

/// x in working memory (slots 0 and 2).
pub(super) struct Rounded {
    /// Codes, four a word: `[m, 32 groups]`, zeros after k.
    pub codes: View,
    /// Scales: f32 `[groups, m]`.
    pub scales: View,
}

/// `Params` of `fp8_x.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    codes: u64,
    scales: u64,
    x_stride: i64,
    rows: i32,
    k: i32,
    groups: i32,
    scale_stride: i32,
    x_type: u32,
    x_aligned: u32,
}

/// Rounds x.
pub(super) fn rounded(x: &View, cx: &mut CudaCx<'_>) -> Result<Rounded, KernelError> {
    let (m, k) = (x.size(0), x.size(1));
    let groups = k.div_ceil(SPAN);
    let words = groups * SPAN / 4;
    let codes = cx.scratch(0, m * words, DType::I32)?.reshape(&[m, words])?;
    let scales = cx.scratch(2, groups * m, DType::F32)?.reshape(&[groups, m])?;
    let mut kernel = cx.kernel("ops/matmul/fp8_x.cu");
    kernel.dependent();
    let address = kernel.address(x)?;
    let params = Params {
        x: address,
        codes: kernel.address(&codes)?,
        scales: kernel.address(&scales)?,
        x_stride: x.stride(0) as i64,
        rows: m as i32,
        k: k as i32,
        groups: groups as i32,
        scale_stride: m as i32,
        x_type: value_type(Some(x)),
        x_aligned: u32::from(rows_aligned(address, x)),
    };
    let blocks = (m * groups * SPAN / NEIGHBOURS).div_ceil(THREADS);
    kernel.launch([blocks as u32, 1, 1], THREADS as u32, &params)?;
    Ok(Rounded { codes, scales })
}
