//! Integers with a float that is added: MLX's affine groups, torchao's `Int4Tensor`, optimum-quanto's `qint4`.

use ocelli_kernels::{Code, DType, View, Weights};
use safetensors::Dtype;

use super::super::{Scope, WeightError};
use super::made::{Codes, FLOATS, Floats, Planes, Zeros, code, element, float, number, pack, wide};

/// MLX's `affine` mode, of 2, 3, 4, 5, 6 and 8 bits: `w = u s + b`. Those of 4 and 8 bits lie as kernels want them.
pub(super) fn mlx(here: &Scope<'_>, n: usize, k: usize, bias: Option<View>) -> Result<Weights, WeightError> {
    let Some(info) = here.info("weight") else { return Err(here.absent(&here.path("weight"))) };
    let stored = info.shape.to_vec();
    let words = stored.get(1).copied().unwrap_or(0);
    let Some(bits) = [4, 8, 2, 3, 5, 6].into_iter().find(|bits| k * bits == 32 * words && k > 0) else {
        return Err(here.wrong_shape(&here.path("weight"), &[n, k.div_ceil(8)], &stored));
    };
    let codes = here.bytes("weight", &[Dtype::U32], &[n, words])?;
    let (scales, group) = groups(here, "scales", n, k)?;
    let (offsets, _) = groups(here, "biases", n, k)?;
    if scales.dtype() != offsets.dtype() || scales.shape() != offsets.shape() {
        let found = format!("{} {:?}", offsets.dtype(), offsets.shape());
        return Err(
            here.fault("biases", format!("expected {} {:?}, found {found}", scales.dtype(), scales.shape()))
        );
    }
    let wide = wide(bits);
    let row = |row: usize, out: &mut [u32]| {
        let codes = element(codes, 4 * words, row);
        pack(out, wide.bits(), (0..k).map(|i| code(codes, bits, i)));
    };
    let codes = match wide.bits() == bits {
        true => Codes::Stored(here.words("weight", n, 4 * words)?),
        false => Codes::Rows(&row),
    };
    Planes {
        code: wide,
        group,
        codes,
        scales: Floats::Stored(scales),
        factor: 1.0,
        zeros: Zeros::Offset(Floats::Stored(offsets)),
    }
    .weights(here, n, k, bias)
}

/// Floats `[n, groups]`, and the columns of a group.
fn groups(here: &Scope<'_>, name: &str, n: usize, k: usize) -> Result<(View, usize), WeightError> {
    let path = here.path(name);
    let Some(info) = here.info(name) else { return Err(here.checkpoint().missing(&path, &path)) };
    match *info.shape {
        [rows, count] if rows == n && count > 0 && k.is_multiple_of(count) && float(info.dtype).is_some() => {
            Ok((here.tensor(name, &[n, count])?, k / count))
        }
        _ => {
            here.bytes(name, &FLOATS, &[n, k.div_ceil(64).max(1)])?;
            Err(here.wrong_shape(&path, &[n, 1], info.shape))
        }
    }
}

/// torchao's `Int4Tensor`: two signed codes a byte, scales and offsets `[groups, n]`.
pub(super) fn torchao(
    here: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    let codes = here.bytes("_weight_qdata", &[Dtype::I8, Dtype::U8], &[n, k.div_ceil(2)])?;
    let path = here.path("_weight_scale");
    let Some(info) = here.info("_weight_scale") else { return Err(here.checkpoint().missing(&path, &path)) };
    let (&[count, rows], Some(dtype)) = (info.shape, float(info.dtype)) else {
        return Err(here.wrong_shape(&path, &[1, n], info.shape));
    };
    if rows != n || count == 0 || !k.is_multiple_of(count) {
        return Err(here.wrong_shape(&path, &[k.div_ceil(128), n], info.shape));
    }
    let scales = here.bytes("_weight_scale", &FLOATS, &[count, n])?;
    let offsets = here.bytes("_weight_zero_point", &[info.dtype], &[count, n])?;
    let at =
        |bytes: &[u8], row: usize, group: usize| number(dtype, element(bytes, dtype.size(), group * n + row));
    // Kernels count codes from 0: eight scales less. Both of 16 bits, that is exact in f32.
    let scale = |row: usize, group: usize, to: &mut [u8]| {
        to.copy_from_slice(&at(scales, row, group).to_le_bytes());
    };
    let offset = |row: usize, group: usize, to: &mut [u8]| {
        to.copy_from_slice(&(at(offsets, row, group) - 8.0 * at(scales, row, group)).to_le_bytes());
    };
    let row = |row: usize, out: &mut [u32]| {
        let codes = element(codes, k.div_ceil(2), row);
        pack(out, 4, (0..k).map(|i| u32::from(codes[i / 2] >> (i % 2 * 4) & 15) ^ 8));
    };
    Planes {
        code: Code::Int4,
        group: k / count,
        codes: Codes::Rows(&row),
        scales: Floats::Each(DType::F32, &scale),
        factor: 1.0,
        zeros: Zeros::Offset(Floats::Each(DType::F32, &offset)),
    }
    .weights(here, n, k, bias)
}

/// optimum-quanto's `qint4`: groups are rows of a matrix `[n k / g, g]`, of which a byte holds one from each half, the first in the low bits;
/// `w = u s - shift`.
pub(super) fn quanto(
    here: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    let path = here.path("weight._data._data");
    let stored = here.info("weight._data._data").map_or(vec![], |info| info.shape.to_vec());
    let &[lines, group] = &*stored else { return Err(here.wrong_shape(&path, &[n, k], &stored)) };
    if group == 0 || !k.is_multiple_of(group) {
        return Err(here.unsupported(format!("groups of {group} weights that cross rows of {k}")));
    }
    let count = n * k / group;
    if count.div_ceil(2) != lines {
        return Err(here.wrong_shape(&path, &[count.div_ceil(2), group], &stored));
    }
    let bytes = here.bytes("weight._data._data", &[Dtype::U8], &[lines, group])?;
    let dtype = here.info("weight._scale").and_then(|info| float(info.dtype)).unwrap_or(DType::F32);
    let scales = here.bytes("weight._scale", &FLOATS, &[count, 1])?;
    let shifts = here.bytes("weight._shift", &FLOATS, &[count, 1])?;
    if scales.len() != shifts.len() {
        return Err(here.fault("weight._shift", format!("expected the type of the scales, {dtype}")));
    }
    let (each, size) = (k / group, dtype.size());
    let scale = |row: usize, group: usize, to: &mut [u8]| {
        to.copy_from_slice(element(scales, size, row * each + group));
    };
    let offset = |row: usize, group: usize, to: &mut [u8]| {
        to.copy_from_slice(element(shifts, size, row * each + group));
        // The sign is the highest bit of each type.
        to[size - 1] ^= 0x80;
    };
    let row = |row: usize, out: &mut [u32]| {
        let one = |i: usize| {
            let line = row * each + i / group;
            let byte = bytes[line % lines * group + i % group];
            u32::from(byte >> (line / lines * 4) & 15)
        };
        pack(out, 4, (0..k).map(one));
    };
    Planes {
        code: Code::Int4,
        group,
        codes: Codes::Rows(&row),
        scales: Floats::Each(dtype, &scale),
        factor: 1.0,
        zeros: Zeros::Offset(Floats::Each(dtype, &offset)),
    }
    .weights(here, n, k, bias)
}
