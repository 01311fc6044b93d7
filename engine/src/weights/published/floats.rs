//! 4-bit floats (E2M1) with scales of 8 bits: MXFP4 and NVFP4. They lie in files as kernels want them.

use ocelli_kernels::{Code, DType, View, Weights};
use safetensors::Dtype;

use super::super::{Scope, WeightError};
use super::made::{Codes, Floats, Planes, Zeros};

/// Columns that share a scale.
pub(super) const NV_GROUP: usize = 16;
const MX_GROUP: usize = 32;

/// compressed-tensors `nvfp4-pack-quantized`: the scale of the matrix divides.
pub(super) fn nvfp4(
    here: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    refuse_others(here)?;
    let factor = 1.0 / number(here, "weight_global_scale")?;
    let scales = nv_scales(here, "weight_scale", &[Dtype::F8_E4M3], n, k)?;
    stored(here, ("weight_packed", &[Dtype::U8], k.div_ceil(2)), [n, k], bias, NV_GROUP, scales, factor)
}

/// NVIDIA ModelOpt: the scale of the matrix multiplies.
pub(super) fn modelopt_nvfp4(
    here: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    let factor = number(here, "weight_scale_2")?;
    let scales = nv_scales(here, "weight_scale", &[Dtype::F8_E4M3], n, k)?;
    stored(here, ("weight", &[Dtype::U8], k.div_ceil(2)), [n, k], bias, NV_GROUP, scales, factor)
}

/// compressed-tensors `mxfp4-pack-quantized`.
pub(super) fn mxfp4(
    here: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    refuse_others(here)?;
    let scales = mx_scales(here, "weight_scale", n, k)?;
    stored(here, ("weight_packed", &[Dtype::U8], k.div_ceil(2)), [n, k], bias, MX_GROUP, scales, 1.0)
}

/// Errors where AutoRound states other codes or scales under the names of these.
fn refuse_others(here: &Scope<'_>) -> Result<(), WeightError> {
    let stated = here.checkpoint().quantization().map_or(["", ""], |q| [&q.data_type, &q.packing]);
    let other = stated.into_iter().find(|stated| stated.contains("mx_int") || stated.contains("e5m3"));
    other.map_or(Ok(()), |other| Err(here.unsupported(format!("weights of AutoRound's `{other}`"))))
}

/// MLX's `mxfp4`, `mxfp8` and `nvfp4` modes, told apart by the sizes of codes and scales.
pub(super) fn mlx(here: &Scope<'_>, n: usize, k: usize, bias: Option<View>) -> Result<Weights, WeightError> {
    let size = |name| here.info(name).and_then(|info| info.shape.get(1).copied());
    if size("weight") == Some(k.div_ceil(4)) {
        let scales = mx_scales(here, "scales", n, k)?;
        here.bytes("weight", &[Dtype::U32], &[n, k.div_ceil(4)])?;
        return Planes {
            code: Code::Fp8,
            group: MX_GROUP,
            codes: Codes::Stored(here.words("weight", n, k.next_multiple_of(4))?),
            scales: Floats::Stored(scales),
            factor: 1.0,
            zeros: Zeros::None,
        }
        .weights(here, n, k, bias);
    }
    let words = ("weight", &[Dtype::U32][..], (4 * k).div_ceil(32));
    let groups = size("scales");
    if groups == Some(k.div_ceil(NV_GROUP)) {
        let scales = nv_scales(here, "scales", &[Dtype::U8], n, k)?;
        return stored(here, words, [n, k], bias, NV_GROUP, scales, 1.0);
    }
    let scales = mx_scales(here, "scales", n, k)?;
    stored(here, words, [n, k], bias, MX_GROUP, scales, 1.0)
}

/// A tensor of one f32.
pub(super) fn number(here: &Scope<'_>, name: &str) -> Result<f32, WeightError> {
    let shape = here.info(name).map_or(&[1][..], |info| if info.shape.is_empty() { &[] } else { &[1] });
    let bytes = here.bytes(name, &[Dtype::F32], shape)?;
    let value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    if !value.is_finite() || value == 0.0 {
        return Err(here.fault(name, format!("expected a finite number other than 0, found {value}")));
    }
    Ok(value)
}

/// Scales of E4M3.
fn nv_scales(here: &Scope<'_>, name: &str, types: &[Dtype], n: usize, k: usize) -> Result<View, WeightError> {
    let groups = k.div_ceil(NV_GROUP);
    let bytes = here.bytes(name, types, &[n, groups])?;
    if !here.checkpoint().is_planned() && bytes.iter().any(|byte| byte & 0x7f == 0x7f) {
        return Err(here.fault(name, "a scale is NaN".into()));
    }
    here.plane(name, &[n, groups], DType::E4M3)
}

/// Scales that are powers of two, 2^(e - 127).
fn mx_scales(here: &Scope<'_>, name: &str, n: usize, k: usize) -> Result<View, WeightError> {
    let groups = k.div_ceil(MX_GROUP);
    let bytes = here.bytes(name, &[Dtype::U8, Dtype::F8_E8M0], &[n, groups])?;
    if !here.checkpoint().is_planned() && bytes.contains(&u8::MAX) {
        return Err(here.fault(name, "a scale is NaN".into()));
    }
    here.plane(name, &[n, groups], DType::E8M0)
}

/// Codes `[n, ...]` of two a byte, the first in the low half; `cols` elements of a row.
fn stored(
    here: &Scope<'_>,
    (name, types, cols): (&str, &[Dtype], usize),
    [n, k]: [usize; 2],
    bias: Option<View>,
    group: usize,
    scales: View,
    factor: f32,
) -> Result<Weights, WeightError> {
    let bytes = here.bytes(name, types, &[n, cols])?.len();
    Planes {
        code: Code::Fp4,
        group,
        codes: Codes::Stored(here.words(name, n, bytes / n.max(1))?),
        scales: Floats::Stored(scales),
        factor,
        zeros: Zeros::None,
    }
    .weights(here, n, k, bias)
}
