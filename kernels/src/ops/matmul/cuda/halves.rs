//! Operands of tensor cores: x and dense weights of one 16-bit type, as stored or rounded as the op's `math` allows.

use std::borrow::Cow;

use bytemuck::{Pod, Zeroable};

use super::super::{Matmul, MatmulSpec};
use super::params::rows_aligned;
use crate::buffer::View;
use crate::cuda::{CudaCx, value_type};
use crate::select::Reject;
use crate::spec::{Caps, DType, Format, KernelError};

/// Why a spec has no such operands, if so. Types as stored are exact. bf16 reaches as far as f32, so that any x may become
/// bf16 where activations may be rounded to it, or more coarsely; weights are never rounded.
pub(super) fn reject(spec: &MatmulSpec) -> Option<Reject> {
    if let Some(why) = spec.reject_fused() {
        return Some(why);
    }
    match (spec.x, spec.w) {
        (DType::BF16, Format::Dense(DType::BF16)) | (DType::F16, Format::Dense(DType::F16)) => None,
        (_, Format::Dense(DType::BF16)) if spec.math.takes_bf16() => None,
        (_, Format::Dense(DType::BF16)) => Some("rounds x to bf16, which this math does not allow".into()),
        (_, Format::Dense(DType::F16)) => Some("for x of f16 where weights are f16".into()),
        _ => Some("for dense weights of 16 bits".into()),
    }
}

/// The type of both operands.
pub(super) fn dtype(op: &Matmul) -> DType {
    op.w.format().dense().unwrap_or(DType::BF16)
}

/// Microseconds that it takes to round x, if that is needed.
pub(super) fn est_us(spec: &MatmulSpec, caps: &Caps) -> f32 {
    if spec.w == Format::Dense(spec.x) {
        return 0.0;
    }
    let bytes = spec.m as f64 * f64::from(spec.k) * (spec.x.size() + 2) as f64;
    caps.cuda.estimate_us(bytes, 0.0, 1.0)
}

/// The op with x in the type of its weights: itself, or one whose x was rounded into working memory (slot 0).
pub(super) fn halved<'a>(op: &'a Matmul, cx: &mut CudaCx<'_>) -> Result<Cow<'a, Matmul>, KernelError> {
    if Format::Dense(op.x.dtype()) == op.w.format() || op.x.is_empty() {
        return Ok(Cow::Borrowed(op));
    }
    let x = rounded(&op.x, cx)?;
    Ok(Cow::Owned(Matmul { x, ..op.clone() }))
}

/// Threads of `round.cu`, each for this many neighbours.
const THREADS: usize = 128;
const SPAN: usize = 8;

/// `Params` of `round.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    out: u64,
    x_stride: i64,
    out_stride: i64,
    rows: i32,
    k: i32,
    x_type: u32,
    aligned: u32,
}

/// x as bf16, each row at a multiple of 16 bytes.
fn rounded(x: &View, cx: &mut CudaCx<'_>) -> Result<View, KernelError> {
    let (m, k) = (x.size(0), x.size(1));
    let pitch = k.next_multiple_of(SPAN);
    let out = cx.scratch(0, m * pitch, DType::BF16)?.reshape(&[m, pitch])?;
    let mut kernel = cx.kernel("ops/matmul/round.cu");
    kernel.dependent();
    let address = kernel.address(x)?;
    let params = Params {
        x: address,
        out: kernel.address(&out)?,
        x_stride: x.stride(0) as i64,
        out_stride: pitch as i64,
        rows: m as i32,
        k: k as i32,
        x_type: value_type(Some(x)),
        aligned: u32::from(rows_aligned(address, x)),
    };
    let blocks = (m * (pitch / SPAN)).div_ceil(THREADS);
    kernel.launch([blocks as u32, 1, 1], THREADS as u32, &params)?;
    Ok(out.narrow(1, 0, k)?)
}
