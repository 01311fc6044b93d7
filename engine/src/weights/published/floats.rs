//! 4-bit floats (E2M1) with scales of 8 bits: MXFP4 and NVFP4. Twice their values are integers, which is how they are stored here,
//! with half of the scale.

use ocelli_kernels::quant::e4m3;
use ocelli_kernels::{Code, DType, View, Weights};
use safetensors::Dtype;

use super::super::{Scope, WeightError};
use super::made::{Made, element, pack};

/// Twice what a code stands for, with 128 added.
const TWICE: [u8; 16] = [128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116];

/// Columns that share a scale.
const NV_GROUP: usize = 16;
const MX_GROUP: usize = 32;

/// compressed-tensors `nvfp4-pack-quantized`: the scale of the matrix divides.
pub(super) fn nvfp4(
    here: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    here.refuse_rotations()?;
    let whole = number(here, "weight_global_scale")?;
    let scales = nv_scales(here, "weight_scale", &[Dtype::F8_E4M3], n, k)?;
    let scale = |row: usize, group: usize| 0.5 * (scales(row, group) / whole);
    made(here, ("weight_packed", &[Dtype::U8], k.div_ceil(2)), n, k, bias, NV_GROUP, &scale)
}

/// NVIDIA ModelOpt: the scale of the matrix multiplies.
pub(super) fn modelopt_nvfp4(
    here: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    let whole = number(here, "weight_scale_2")?;
    let scales = nv_scales(here, "weight_scale", &[Dtype::F8_E4M3], n, k)?;
    let scale = |row: usize, group: usize| 0.5 * (scales(row, group) * whole);
    made(here, ("weight", &[Dtype::U8], k.div_ceil(2)), n, k, bias, NV_GROUP, &scale)
}

/// compressed-tensors `mxfp4-pack-quantized`.
pub(super) fn mxfp4(
    here: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    here.refuse_rotations()?;
    let scales = mx_scales(here, "weight_scale", n, k)?;
    let scale = |row: usize, group: usize| scales(row, group);
    made(here, ("weight_packed", &[Dtype::U8], k.div_ceil(2)), n, k, bias, MX_GROUP, &scale)
}

/// MLX's `mxfp4` and `nvfp4` modes, told apart by the number of scales.
pub(super) fn mlx(here: &Scope<'_>, n: usize, k: usize, bias: Option<View>) -> Result<Weights, WeightError> {
    let words = ("weight", &[Dtype::U32][..], (4 * k).div_ceil(32));
    let groups = here.info("scales").and_then(|info| info.shape.get(1).copied());
    if groups == Some(k.div_ceil(NV_GROUP)) {
        let scales = nv_scales(here, "scales", &[Dtype::U8], n, k)?;
        let scale = |row: usize, group: usize| 0.5 * scales(row, group);
        return made(here, words, n, k, bias, NV_GROUP, &scale);
    }
    let scales = mx_scales(here, "scales", n, k)?;
    let scale = |row: usize, group: usize| scales(row, group);
    made(here, words, n, k, bias, MX_GROUP, &scale)
}

/// A tensor of one f32.
fn number(here: &Scope<'_>, name: &str) -> Result<f32, WeightError> {
    let shape = here.info(name).map_or(&[1][..], |info| if info.shape.is_empty() { &[] } else { &[1] });
    let bytes = here.bytes(name, &[Dtype::F32], shape)?;
    let value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    if !value.is_finite() || value == 0.0 {
        return Err(here.fault(name, format!("expected a finite number other than 0, found {value}")));
    }
    Ok(value)
}

/// Scales of E4M3.
fn nv_scales<'a>(
    here: &'a Scope<'_>,
    name: &str,
    types: &[Dtype],
    n: usize,
    k: usize,
) -> Result<impl Fn(usize, usize) -> f32 + Sync + 'a, WeightError> {
    let groups = k.div_ceil(NV_GROUP);
    let bytes = here.bytes(name, types, &[n, groups])?;
    if bytes.iter().any(|byte| byte & 0x7f == 0x7f) {
        return Err(here.fault(name, "a scale is NaN".into()));
    }
    Ok(move |row: usize, group: usize| e4m3::value(bytes[row * groups + group]))
}

/// Half of scales that are powers of two, 2^(e - 127).
fn mx_scales<'a>(
    here: &'a Scope<'_>,
    name: &str,
    n: usize,
    k: usize,
) -> Result<impl Fn(usize, usize) -> f32 + Sync + 'a, WeightError> {
    let groups = k.div_ceil(MX_GROUP);
    let bytes = here.bytes(name, &[Dtype::U8, Dtype::F8_E8M0], &[n, groups])?;
    if bytes.contains(&u8::MAX) {
        return Err(here.fault(name, "a scale is NaN".into()));
    }
    Ok(move |row: usize, group: usize| {
        let e = u32::from(bytes[row * groups + group]);
        // 2^-127 and 2^-128 are below the smallest normal number.
        f32::from_bits(if e < 2 { 1 << (21 + e) } else { (e - 1) << 23 })
    })
}

/// Codes `[n, ...]` of two a byte, the first in the low half; `cols` elements of a row.
fn made(
    here: &Scope<'_>,
    (name, types, cols): (&str, &[Dtype], usize),
    n: usize,
    k: usize,
    bias: Option<View>,
    group: usize,
    scale: &(dyn Fn(usize, usize) -> f32 + Sync),
) -> Result<Weights, WeightError> {
    let codes = here.bytes(name, types, &[n, cols])?;
    let pitch = codes.len() / n.max(1);
    let row = |row: usize, out: &mut [u32]| {
        let codes = element(codes, pitch, row);
        pack(out, 8, (0..k).map(|i| u32::from(TWICE[usize::from(codes[i / 2] >> (i % 2 * 4) & 15)])));
    };
    let group = if group >= k { 0 } else { group };
    let scale =
        |row: usize, group: usize, to: &mut [u8]| to.copy_from_slice(&scale(row, group).to_le_bytes());
    Made { code: Code::Int8, group, scale_type: DType::F32, scale: &scale, zero: None, row: &row }
        .weights(here, n, k, bias)
}
