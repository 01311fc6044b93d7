//! Matrices that are stored with rows and columns exchanged, `[k, n]`: experts of FP8, and of ModelOpt's NVFP4.

use ocelli_kernels::{Code, DType, View, Weights};
use safetensors::Dtype;

use super::super::fp8::{SCALES, USUAL_BLOCK};
use super::super::{Scope, WeightError};
use super::floats::{self, NV_GROUP};
use super::made::{Codes, Floats, Planes, Zeros, element, float};

/// Reads the matrix `[n, k]`.
pub(in super::super) fn load(
    here: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    if here.has("weight_scale_2") {
        return nvfp4(here, n, k, bias);
    }
    if here.is_fp8() {
        return fp8(here, n, k, bias);
    }
    Err(here.unsupported(
        "rows and columns exchanged; of quantized matrices, FP8 and ModelOpt's NVFP4 may be".into(),
    ))
}

/// Writes a column of bytes `[lines, n]` into words, which are zeros before.
fn column(bytes: &[u8], n: usize, at: usize, out: &mut [u32]) {
    for (i, line) in bytes.chunks_exact(n).enumerate() {
        out[i / 4] |= u32::from(line[at]) << (i % 4 * 8);
    }
}

/// Two codes a byte, down the columns, and scales `[k / 16, n]`.
fn nvfp4(here: &Scope<'_>, n: usize, k: usize, bias: Option<View>) -> Result<Weights, WeightError> {
    let factor = floats::number(here, "weight_scale_2")?;
    let codes = here.bytes("weight", &[Dtype::U8], &[k.div_ceil(2), n])?;
    let scales = here.bytes("weight_scale", &[Dtype::F8_E4M3], &[k.div_ceil(NV_GROUP), n])?;
    if !here.checkpoint().is_planned() && scales.iter().any(|byte| byte & 0x7f == 0x7f) {
        return Err(here.fault("weight_scale", "a scale is NaN".into()));
    }
    let row = |row: usize, out: &mut [u32]| column(codes, n, row, out);
    let scale = |row: usize, group: usize, to: &mut [u8]| to[0] = scales[group * n + row];
    Planes {
        code: Code::Fp4,
        group: NV_GROUP,
        codes: Codes::Rows(&row),
        scales: Floats::Each(DType::E4M3, &scale),
        factor,
        zeros: Zeros::None,
    }
    .weights(here, n, k, bias)
}

/// 8-bit floats whose scales are one, one for each output, or those of blocks of `[k, n]`.
fn fp8(here: &Scope<'_>, n: usize, k: usize, bias: Option<View>) -> Result<Weights, WeightError> {
    here.refuse_rotations()?;
    let codes = here.bytes("weight", &[Dtype::F8_E4M3], &[k, n])?;
    let name = SCALES.into_iter().find(|name| here.has(name)).unwrap_or(SCALES[0]);
    let path = here.path(name);
    let Some(info) = here.info(name) else { return Err(here.checkpoint().missing(&path, &path)) };
    let [lines, cols] = match *info.shape {
        [] | [1] => [1, 1],
        [cols] => [1, cols],
        [lines, cols] => [lines, cols],
        _ => return Err(here.wrong_shape(&path, &[1, n], info.shape)),
    };
    let stated = here.checkpoint().quantization().and_then(|q| q.block);
    let blocks = stated.into_iter().chain([[k, n], [k, 1], USUAL_BLOCK]);
    let fits = |[height, width]: &[usize; 2]| {
        *height > 0 && *width > 0 && k.div_ceil(*height) == lines && n.div_ceil(*width) == cols
    };
    let Some([height, width]) = blocks.into_iter().find(fits) else {
        let reason = format!(
            "shape: {:?} scales of [{k}, {n}] weights fit neither one for all, nor one for each output, nor the blocks of \
             config.json, nor blocks of {USUAL_BLOCK:?}",
            info.shape
        );
        return Err(here.fault(name, reason));
    };
    let scales = here.raw(name)?;
    let dtype = match info.dtype {
        Dtype::F8_E8M0 | Dtype::U8 => DType::E8M0,
        other => match float(other) {
            Some(dtype) => dtype,
            None => {
                return Err(here.fault(name, format!("expected F32, BF16, F16 or F8_E8M0, found {other}")));
            }
        },
    };
    if dtype == DType::E8M0 && scales.contains(&u8::MAX) {
        return Err(here.fault(name, "a scale is NaN".into()));
    }
    let row = |row: usize, out: &mut [u32]| column(codes, n, row, out);
    let scale = |row: usize, group: usize, to: &mut [u8]| {
        to.copy_from_slice(element(scales, dtype.size(), group * cols + row / width));
    };
    Planes {
        code: Code::Fp8,
        group: height,
        codes: Codes::Rows(&row),
        scales: Floats::Each(dtype, &scale),
        factor: 1.0,
        zeros: Zeros::None,
    }
    .weights(here, n, k, bias)
}
