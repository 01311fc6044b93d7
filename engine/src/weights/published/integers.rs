//! Integers of 8 bits, one a byte, and pack-quantized ones of odd widths.

use ocelli_kernels::{Code, DType, View, Weights};
use safetensors::Dtype;

use super::super::{Scope, WeightError};
use super::made::{Codes, FLOATS, Floats, Planes, Zeros, code, element, float, pack, widened, word};

/// bitsandbytes' LLM.int8(): the scale of a row is its largest weight, which stands for 127.
pub(super) fn llm_int8(
    here: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    let largest = here.bytes("SCB", &[Dtype::F32], &[n])?;
    if here.has("weight_format") && here.raw("weight_format")? != [0] {
        return Err(
            here.unsupported("LLM.int8() values in the order of a GPU's tiles (weight_format)".into())
        );
    }
    let codes = here.bytes("weight", &[Dtype::I8], &[n, k])?;
    let scale = |row: usize, _: usize, to: &mut [u8]| {
        let at = element(largest, 4, row);
        to.copy_from_slice(&(f32::from_le_bytes([at[0], at[1], at[2], at[3]]) / 127.0).to_le_bytes());
    };
    let row = |row: usize, out: &mut [u32]| bytes(element(codes, k, row), out);
    planes(Code::Int8, 0, &row, Floats::Each(DType::F32, &scale)).weights(here, n, k, bias)
}

/// compressed-tensors `int-quantized`. What a file says of activations is not applied: they stay as they are, which is nearer to the
/// model before it was quantized.
pub(super) fn int_quantized(
    here: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    here.refuse_rotations()?;
    scaled(here, ["weight", "weight_scale", "weight_zero_point"], n, k, bias)
}

/// torchao's `Int8Tensor` and `IntxUnpackedToInt8Tensor`.
pub(super) fn torchao(
    here: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    scaled(here, ["_weight_qdata", "_weight_scale", "_weight_zero_point"], n, k, bias)
}

/// optimum-quanto's `qint8`.
pub(super) fn quanto(
    here: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    scaled(here, ["weight._data", "weight._scale", ""], n, k, bias)
}

/// Integers, scales and zero points of these names; one scale for all, for a row, or for equal groups of it.
fn scaled(
    here: &Scope<'_>,
    [name, scales, zeros]: [&str; 3],
    n: usize,
    k: usize,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    let path = here.path(scales);
    let Some(info) = here.info(scales) else { return Err(here.checkpoint().missing(&path, &path)) };
    let (rows, groups) = match *info.shape {
        [] | [1] => (1, 1),
        [rows] => (rows, 1),
        [rows, groups] => (rows, groups),
        _ => return Err(here.wrong_shape(&path, &[n, 1], info.shape)),
    };
    if !(rows == n || rows == 1) || groups == 0 || !k.is_multiple_of(groups) {
        return Err(here.wrong_shape(&path, &[n, 1], info.shape));
    }
    let stored = here.bytes(scales, &FLOATS, info.shape)?;
    let dtype = float(info.dtype).unwrap_or(DType::F32);
    let place = |row: usize, group: usize| if rows == 1 { group } else { row * groups + group };
    let scale = |row: usize, group: usize, to: &mut [u8]| {
        to.copy_from_slice(element(stored, dtype.size(), place(row, group)));
    };
    let group = if groups == 1 { 0 } else { k / groups };
    let codes = here.bytes(name, &[Dtype::I8], &[n, k])?;
    let row = |row: usize, out: &mut [u32]| bytes(element(codes, k, row), out);
    let made = planes(Code::Int8, group, &row, Floats::Each(dtype, &scale));
    if zeros.is_empty() || !here.has(zeros) {
        return made.weights(here, n, k, bias);
    }
    let stored = here.bytes(zeros, &[Dtype::I8], info.shape)?;
    let zero = |row: usize, group: usize| u32::from(stored[place(row, group)] ^ 0x80);
    Planes { zeros: Zeros::Codes(&zero), ..made }.weights(here, n, k, bias)
}

/// compressed-tensors `pack-quantized` of 2, 3, 5, 6 and 7 bits, or with columns in activation order, `[n, k]`: in a dense stream, or, as old writers had it, as many as
/// fit a word. Zero points are a stream down the rows, or bytes.
pub(in super::super) fn pack_quantized(
    here: &Scope<'_>,
    [n, k]: [usize; 2],
    bits: usize,
    group: usize,
    zero: bool,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    let groups = if group == 0 { usize::from(k > 0) } else { k.div_ceil(group) };
    let per_word = 32 / bits;
    let words = here.info("weight_packed").map_or(0, |info| info.shape[1]);
    let dense = words == (k * bits).div_ceil(32);
    let codes = here.bytes("weight_packed", &[Dtype::I32], &[n, words])?;
    let dtype = here.info("weight_scale").and_then(|info| float(info.dtype)).unwrap_or(DType::F32);
    let stored = here.bytes("weight_scale", &FLOATS, &[n, groups])?;
    let scale = |row: usize, group: usize, to: &mut [u8]| {
        to.copy_from_slice(element(stored, dtype.size(), row * groups + group));
    };
    let (wide, up) = widened(bits);
    let order = super::columns::sorted(here, "weight_g_idx", k)?;
    let place = |i: usize| order.as_ref().map_or(i, |order| order[i]);
    let row = |row: usize, out: &mut [u32]| {
        let codes = element(codes, 4 * words, row);
        let padded = |i: usize| word(codes, i / per_word) >> (i % per_word * bits) & ((1 << bits) - 1);
        let one = |i: usize| if dense { code(codes, bits, i) } else { padded(i) };
        pack(out, wide.bits(), (0..k).map(|i| one(place(i)) + up));
    };
    let made = planes(wide, group, &row, Floats::Each(dtype, &scale));
    if !zero {
        return made.weights(here, n, k, bias);
    }
    if here.stores("weight_zero_point", &[Dtype::I8]) {
        let stored = here.bytes("weight_zero_point", &[Dtype::I8], &[n, groups])?;
        let centre = 1 << (wide.bits() - 1);
        let zero = |row: usize, group: usize| (i32::from(stored[row * groups + group] as i8) + centre) as u32;
        return Planes { zeros: Zeros::Codes(&zero), ..made }.weights(here, n, k, bias);
    }
    let lines = (n * bits).div_ceil(32);
    let stored = here.bytes("weight_zero_point", &[Dtype::I32], &[lines, groups])?;
    let columns: Vec<Vec<u8>> = (0..groups)
        .map(|group| (0..lines).flat_map(|line| word(stored, line * groups + group).to_le_bytes()).collect())
        .collect();
    let zero = |row: usize, group: usize| code(&columns[group], bits, row) + up;
    Planes { zeros: Zeros::Codes(&zero), ..made }.weights(here, n, k, bias)
}

/// Planes with rows that are made, and nothing beside the scales.
fn planes<'a>(
    code: Code,
    group: usize,
    row: &'a (dyn Fn(usize, &mut [u32]) + Sync),
    scales: Floats<'a>,
) -> Planes<'a> {
    Planes { code, group, codes: Codes::Rows(row), scales, factor: 1.0, zeros: Zeros::None }
}

/// Signed bytes of a row as codes, 128 added.
fn bytes(codes: &[u8], out: &mut [u32]) {
    for (out, four) in out.iter_mut().zip(codes.chunks(4)) {
        let mut all = [0x80; 4];
        all[..four.len()].copy_from_slice(four);
        *out = u32::from_le_bytes(all) ^ 0x8080_8080;
    }
}
