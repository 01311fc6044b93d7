//! Layouts that quantized copies are written in: names, types and shapes of a module's tensors.

use ocelli_kernels::quant::nf4;
use ocelli_kernels::{DType, Format, Grouped, Zero};
use serde_json::json;

use super::writer::Item;

/// Whose layout a copy has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// compressed-tensors: `pack-quantized`, `float-quantized`, `mxfp4-pack-quantized` and `nvfp4-pack-quantized`.
    #[default]
    CompressedTensors,
    /// MLX: affine groups, `mxfp4`, `mxfp8` and `nvfp4`.
    Mlx,
    /// bitsandbytes: NF4.
    Bitsandbytes,
}

/// The tensors of a module: first the planes of its format, in order, then those whose bytes are known.
pub(super) struct Tensors {
    pub items: Vec<Item>,
    pub constants: Vec<Vec<u8>>,
}

fn item(module: &str, name: &str, dtype: &str, size: usize, shape: Vec<usize>) -> Item {
    let bytes = (shape.iter().product::<usize>() * size) as u64;
    Item { name: format!("{module}.{name}"), dtype: dtype.into(), align: size as u64, shape, bytes }
}

impl Layout {
    /// What files of it say of themselves.
    pub(super) const fn metadata(self) -> &'static str {
        match self {
            Self::Mlx => "mlx",
            Self::CompressedTensors | Self::Bitsandbytes => "pt",
        }
    }

    /// Whether experts lie in tensors of all of them.
    pub(super) const fn stacks_experts(self) -> bool {
        matches!(self, Self::Mlx)
    }

    /// Whether scales that lie in 8 bits are multiplied with one of the matrix.
    pub(super) const fn has_factor(self) -> bool {
        matches!(self, Self::CompressedTensors)
    }

    /// The tensors of a matrix `[n, k]` of one of the formats that this layout has.
    pub(super) fn tensors(self, module: &str, n: usize, k: usize, grouped: Grouped, factor: f32) -> Tensors {
        let format = Format::Grouped(grouped);
        let groups = format.groups(k);
        let (words, bytes) = (k * grouped.code.bits() / 32, k * grouped.code.bits() / 8);
        let scale = grouped.scale;
        let floats =
            |name: &str| item(module, name, &scale.name().to_uppercase(), scale.size(), vec![n, groups]);
        match self {
            Self::Mlx => {
                let mut items = vec![item(module, "weight", "U32", 4, vec![n, words])];
                match scale.is_float() {
                    true => items.push(floats("scales")),
                    false => items.push(item(module, "scales", "U8", 1, vec![n, groups])),
                }
                if grouped.zero == Zero::Offset {
                    items.push(floats("biases"));
                }
                Tensors { items, constants: Vec::new() }
            }
            Self::Bitsandbytes => {
                let blocks = n * groups;
                let state = json!({"quant_type": "nf4", "blocksize": grouped.group, "dtype": "bfloat16", "shape": [n, k]});
                let state = state.to_string().into_bytes();
                let map: Vec<u8> = nf4::VALUES.iter().flat_map(|value| value.to_le_bytes()).collect();
                let items = vec![
                    item(module, "weight", "U8", 1, vec![n * bytes, 1]),
                    item(module, "weight.absmax", "F32", 4, vec![blocks]),
                    item(module, "weight.quant_map", "F32", 4, vec![16]),
                    item(module, "weight.quant_state.bitsandbytes__nf4", "U8", 1, vec![state.len()]),
                ];
                Tensors { items, constants: vec![map, state] }
            }
            Self::CompressedTensors => Self::compressed(module, n, k, grouped, factor),
        }
    }

    fn compressed(module: &str, n: usize, k: usize, grouped: Grouped, factor: f32) -> Tensors {
        let planes = Format::Grouped(grouped).planes(n, k);
        let plane = |at: usize, name: &str| {
            let plane = &planes[at];
            let dtype = plane.dtype.name().to_uppercase();
            item(module, name, &dtype, plane.dtype.size(), vec![plane.rows, plane.cols])
        };
        let groups = planes[1].cols;
        if grouped.code.is_int() {
            let mut items = vec![plane(0, "weight_packed"), plane(1, "weight_scale")];
            if grouped.zero == Zero::Codes {
                items.push(plane(2, "weight_zero_point"));
            }
            items.push(item(module, "weight_shape", "I64", 8, vec![2]));
            let shape = [(n as i64).to_le_bytes(), (k as i64).to_le_bytes()];
            return Tensors { items, constants: vec![shape.as_flattened().to_vec()] };
        }
        let packed = item(module, "weight_packed", "U8", 1, vec![n, k / 2]);
        match grouped.scale {
            DType::E4M3 => {
                let scales = item(module, "weight_scale", "F8_E4M3", 1, vec![n, groups]);
                let whole = item(module, "weight_global_scale", "F32", 4, vec![1]);
                Tensors {
                    items: vec![packed, scales, whole],
                    constants: vec![(1.0 / factor).to_le_bytes().to_vec()],
                }
            }
            DType::E8M0 => {
                let scales = item(module, "weight_scale", "U8", 1, vec![n, groups]);
                Tensors { items: vec![packed, scales], constants: Vec::new() }
            }
            _ => {
                let weight = item(module, "weight", "F8_E4M3", 1, vec![n, k]);
                Tensors { items: vec![weight, plane(1, "weight_scale")], constants: Vec::new() }
            }
        }
    }

    /// Brings a plane's bytes to how the layout has them.
    pub(super) fn arrange(self, plane: usize, bytes: &mut [u8]) {
        if self == Self::Bitsandbytes && plane == 0 {
            // The first of two codes is in the high half.
            bytes.iter_mut().for_each(|byte| *byte = byte.rotate_left(4));
        }
    }
}
