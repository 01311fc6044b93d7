//! bitsandbytes' 4-bit values: NF4 and FP4.

use ocelli_kernels::quant::{bnb_fp4, nf4};
use ocelli_kernels::{Code, DType, View, Weights};
use safetensors::Dtype;
use serde::Deserialize;

use super::super::{Scope, WeightError};
use super::made::{Codes, Floats, Planes, Zeros, decoded, element, word};

/// The JSON of a matrix, `weight.quant_state.bitsandbytes__nf4`.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// A stored f32.
fn f32_at(bytes: &[u8], index: usize) -> f32 {
    f32::from_bits(word(bytes, index))
}

/// NF4 and FP4, their scales 32-bit floats or, doubly quantized, codes of a table. Blocks run over the rows as one.
pub(super) fn four_bits(
    here: &Scope<'_>,
    n: usize,
    k: usize,
    bias: Option<View>,
) -> Result<Weights, WeightError> {
    let checkpoint = here.checkpoint();
    let kinds = [("nf4", Code::Nf4, nf4::VALUES), ("fp4", Code::BnbFp4, bnb_fp4::VALUES)];
    let state_name = |kind: &str| format!("weight.quant_state.bitsandbytes__{kind}");
    let Some((kind, code, values)) = kinds.into_iter().find(|(kind, ..)| here.has(&state_name(kind))) else {
        return Err(here.absent(&here.path(state_name("nf4"))));
    };
    let name = state_name(kind);
    let length = here.info(&name).map_or(0, |info| info.len());
    let state: State = serde_json::from_slice(here.bytes(&name, &[Dtype::U8], &[length])?)
        .map_err(|error| here.fault(&name, format!("expected JSON of a quantization state: {error}")))?;
    if state.quant_type != kind || state.blocksize == 0 {
        let reason =
            format!("expected {kind} in blocks, found {} in blocks of {}", state.quant_type, state.blocksize);
        return Err(here.fault(&name, reason));
    }
    if state.shape != [n, k] {
        return Err(here.wrong_shape(&here.path(&name), &[n, k], &state.shape));
    }
    // The same bytes may be stored as another type.
    let count = (n * k).div_ceil(2);
    let bytes = here.raw("weight")?;
    if bytes.len().abs_diff(count) >= 4 || bytes.len() < count {
        return Err(here.fault("weight", format!("expected {count} bytes of codes, found {}", bytes.len())));
    }
    let table = here.bytes("weight.quant_map", &[Dtype::F32], &[16])?;
    if !checkpoint.is_planned() && (0..16).any(|i| f32_at(table, i) != values[i]) {
        return Err(here.fault("weight.quant_map", format!("expected the values of {kind}")));
    }
    let blocks = (n * k).div_ceil(state.blocksize);
    let scales = scales(here, &state, blocks)?;
    // The first of two codes is in the high half.
    let field = |i: usize| u32::from(bytes[i / 2] >> (4 - i % 2 * 4) & 15);
    if !k.is_multiple_of(state.blocksize) {
        return decoded(here, n, k, bias, &|row, out| {
            for (i, out) in (row * k..).zip(out) {
                *out = values[field(i) as usize] * scales(i / state.blocksize);
            }
        });
    }
    let each = k / state.blocksize;
    let scale = |row: usize, group: usize, to: &mut [u8]| {
        to.copy_from_slice(&scales(row * each + group).to_le_bytes());
    };
    // Rows of an even number of codes begin at a byte.
    let row = |row: usize, out: &mut [u32]| {
        let codes = element(bytes, k / 2, row);
        for (out, four) in out.iter_mut().zip(codes.chunks(4)) {
            let mut all = [0; 4];
            all[..four.len()].copy_from_slice(four);
            let word = u32::from_le_bytes(all);
            *out = (word >> 4 & 0x0f0f_0f0f) | (word & 0x0f0f_0f0f) << 4;
        }
    };
    Planes {
        code,
        group: state.blocksize,
        codes: Codes::Rows(&row),
        scales: Floats::Each(DType::F32, &scale),
        factor: 1.0,
        zeros: Zeros::None,
    }
    .weights(here, n, k, bias)
}

/// The scale of each of so many blocks.
fn scales<'a>(
    here: &'a Scope<'_>,
    state: &State,
    blocks: usize,
) -> Result<Box<dyn Fn(usize) -> f32 + Sync + 'a>, WeightError> {
    let (Some(size), Some(offset)) = (state.nested_blocksize, state.nested_offset) else {
        let bytes = here.bytes("weight.absmax", &[Dtype::F32], &[blocks])?;
        return Ok(Box::new(move |block| f32_at(bytes, block)));
    };
    if size == 0 {
        return Err(here.fault("weight.absmax", "expected blocks of scales, found blocks of 0".into()));
    }
    let codes = here.bytes("weight.absmax", &[Dtype::U8], &[blocks])?;
    let table = here.bytes("weight.nested_quant_map", &[Dtype::F32], &[256])?;
    let largest = here.bytes("weight.nested_absmax", &[Dtype::F32], &[blocks.div_ceil(size)])?;
    Ok(Box::new(move |block| f32_at(table, codes[block].into()) * f32_at(largest, block / size) + offset))
}
