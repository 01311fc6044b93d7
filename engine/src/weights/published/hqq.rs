//! HQQ: integers with zero points that are floats.

use ocelli_kernels::{View, Weights};
use safetensors::Dtype;

use super::super::{Scope, WeightError};
use super::made::{Codes, FLOATS, Floats, Planes, Zeros, decoded, element, float, number, pack, wide, word};

/// How many codes a stored element has, from blocks along the first axis, the first in the high bits; and its bytes and type.
struct Packing {
    bits: usize,
    per: usize,
    types: &'static [Dtype],
}

impl Packing {
    fn of(here: &Scope<'_>) -> Result<Self, WeightError> {
        let name = text(here, "packing")?;
        let bytes = &[Dtype::U8][..];
        let (bits, per, types) = match &*name {
            "8bit_u8" => (8, 1, bytes),
            "4bit_u8" => (4, 2, bytes),
            "2bit_u8" => (2, 4, bytes),
            "3bit_32" => (3, 10, &[Dtype::I32][..]),
            _ => {
                return Err(here.fault(
                    "packing",
                    format!("expected 8bit_u8, 4bit_u8, 3bit_32 or 2bit_u8, found {name:?}"),
                ));
            }
        };
        Ok(Self { bits, per, types })
    }

    /// Code `block` of stored element `at`.
    fn code(&self, bytes: &[u8], at: usize, block: usize) -> u32 {
        let all = if self.bits == 3 { word(bytes, at) } else { bytes[at].into() };
        all >> ((self.per - 1 - block) * self.bits) & ((1 << self.bits) - 1)
    }
}

/// `w = (u - z) s`. Groups along rows (`axis` 1) are multiplied as they are; those down the columns (`axis` 0) are decoded.
pub(super) fn load(here: &Scope<'_>, n: usize, k: usize, bias: Option<View>) -> Result<Weights, WeightError> {
    if here.has("shape") && here.checkpoint().ints(&here.path("shape"))? != [n as i64, k as i64] {
        let found = here.checkpoint().ints(&here.path("shape"))?;
        return Err(here.fault("shape", format!("expected [{n}, {k}], found {found:?}")));
    }
    for flag in ["quant_scale", "quant_zero", "view_as_float"] {
        if here.has(flag) && here.raw(flag)?.iter().any(|byte| *byte != 0) {
            return Err(here.unsupported(format!("HQQ with {flag}")));
        }
    }
    let one = |name: &str| -> Result<i64, WeightError> {
        let all = here.checkpoint().ints(&here.path(name))?;
        match *all {
            [value] => Ok(value),
            _ => Err(here.fault(name, format!("expected one integer, found {}", all.len()))),
        }
    };
    let packing = Packing::of(here)?;
    let axis = one("axis")?;
    let group = usize::try_from(one("group_size")?).unwrap_or(0);
    if group == 0 || !(n * k).is_multiple_of(group) || !matches!(axis, 0 | 1) {
        return Err(
            here.unsupported(format!("HQQ in groups of {group} of {n} x {k} weights along axis {axis}"))
        );
    }
    let count = n * k / group;
    let [lines, cols] = if axis == 1 { [count, group] } else { [group, count] };
    let stored = lines.div_ceil(packing.per);
    let codes = here.bytes("W_q", packing.types, &[stored, cols])?;
    let code = |line: usize, col: usize| packing.code(codes, line % stored * cols + col, line / stored);
    let shape = if axis == 1 { [count, 1] } else { [1, count] };
    let scales = here.bytes("scale", &FLOATS, &shape)?;
    let zeros = here.bytes("zero", &FLOATS, &shape)?;
    let types = ["scale", "zero"].map(|name| here.info(name).and_then(|info| float(info.dtype)));
    let (Some(dtype), true) = (types[0], types[0] == types[1]) else {
        return Err(here.fault("zero", "expected the type of `scale`".into()));
    };
    let size = dtype.size();
    if axis == 0 || !k.is_multiple_of(group) {
        return decoded(here, n, k, bias, &|row, out| {
            for (i, out) in (row * k..).zip(out) {
                let (line, col) = (i / cols, i % cols);
                let at = if axis == 1 { line } else { col };
                let [scale, zero] = [scales, zeros].map(|bytes| number(dtype, element(bytes, size, at)));
                *out = (code(line, col) as f32 - zero) * scale;
            }
        });
    }
    let each = k / group;
    let scale =
        |row: usize, at: usize, to: &mut [u8]| to.copy_from_slice(element(scales, size, row * each + at));
    let zero =
        |row: usize, at: usize, to: &mut [u8]| to.copy_from_slice(element(zeros, size, row * each + at));
    let wide = wide(packing.bits);
    let row = |row: usize, out: &mut [u32]| {
        pack(out, wide.bits(), (0..k).map(|i| code(row * each + i / group, i % group)));
    };
    Planes {
        code: wide,
        group,
        codes: Codes::Rows(&row),
        scales: Floats::Each(dtype, &scale),
        factor: 1.0,
        zeros: Zeros::Float(Floats::Each(dtype, &zero)),
    }
    .weights(here, n, k, bias)
}

/// A tensor of ASCII.
fn text(here: &Scope<'_>, name: &str) -> Result<String, WeightError> {
    let length = here.info(name).map_or(0, |info| info.len());
    let bytes = here.bytes(name, &[Dtype::U8], &[length])?;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}
