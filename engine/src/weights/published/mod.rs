//! Published ways to store a matrix, a row each: how its tensors are told from others, and how they are read.
//!
//! What lies in a file as kernels want it is used where it lies. The rest is read without a loss into planes of
//! [`Grouped`](ocelli_kernels::Grouped) ([`made`]), which takes memory beside the file; [`Checkpoint::made`](super::Checkpoint::made)
//! counts it.

mod bnb;
mod columns;
mod floats;
mod hqq;
mod integers;
mod made;
mod offsets;
mod turned;

use ocelli_kernels::{View, Weights};
use safetensors::Dtype;

pub(super) use integers::pack_quantized;
use made::FLOATS;
pub(super) use made::{colours_first, of_values, with_planes};
pub(super) use turned::load as load_turned;

use super::{Scope, WeightError};

/// One way to store a matrix.
pub(super) struct Published {
    /// What errors call it.
    pub name: &'static str,
    /// Whether the tensors here are stored so. The first row that says yes is taken.
    pub is: fn(&Scope<'_>) -> bool,
    /// Reads the matrix `[n, k]`, or why that is not done.
    pub load: Result<Load, &'static str>,
    /// The columns of a file that columns of the matrix are, where they may be in another order: those of rows of `k`.
    pub order: Option<Order>,
}

type Load = fn(&Scope<'_>, usize, usize, Option<View>) -> Result<Weights, WeightError>;

type Order = fn(&Scope<'_>, usize, usize) -> Result<Option<Vec<usize>>, WeightError>;

/// All of them.
pub(super) const ALL: &[Published] = &[
    Published {
        name: "compressed-tensors pack-quantized integers",
        is: |here| here.stores("weight_packed", &[Dtype::I32]),
        load: Ok(|here, n, k, bias| here.packed(n, k, bias)),
        order: Some(|here, _, k| columns::sorted(here, "weight_g_idx", k)),
    },
    Published {
        name: "NVFP4",
        is: |here| here.has("weight_global_scale"),
        load: Ok(floats::nvfp4),
        order: None,
    },
    Published {
        name: "MXFP4",
        is: |here| here.stores("weight_packed", &[Dtype::U8]),
        load: Ok(floats::mxfp4),
        order: None,
    },
    Published {
        name: "NVFP4 of ModelOpt",
        is: |here| here.has("weight_scale_2"),
        load: Ok(floats::modelopt_nvfp4),
        order: None,
    },
    Published {
        name: "FP8 (E4M3)",
        is: |here| here.is_fp8(),
        load: Ok(|here, n, k, bias| here.fp8(n, k, bias)),
        order: None,
    },
    Published {
        name: "AWQ integers",
        is: |here| here.has("qweight") && columns::is_awq(here),
        load: Ok(columns::awq),
        order: None,
    },
    Published {
        name: "GPTQ integers",
        is: |here| here.has("qweight"),
        load: Ok(columns::gptq),
        order: Some(|here, n, k| columns::order(here, "g_idx", (n, k))),
    },
    Published {
        name: "bitsandbytes LLM.int8() values",
        is: |here| here.has("SCB"),
        load: Ok(integers::llm_int8),
        order: None,
    },
    Published {
        name: "compressed-tensors int-quantized values",
        is: |here| here.stores("weight", &[Dtype::I8]) && here.has("weight_scale"),
        load: Ok(integers::int_quantized),
        order: None,
    },
    Published {
        name: "torchao integers of 4 bits",
        is: |here| here.has("_weight_qdata") && here.stores("_weight_zero_point", &FLOATS),
        load: Ok(offsets::torchao),
        order: None,
    },
    Published {
        name: "torchao integers",
        is: |here| here.stores("_weight_qdata", &[Dtype::I8]) && here.has("_weight_scale"),
        load: Ok(integers::torchao),
        order: None,
    },
    Published {
        name: "optimum-quanto integers",
        is: |here| here.stores("weight._data", &[Dtype::I8]),
        load: Ok(integers::quanto),
        order: None,
    },
    Published {
        name: "MXFP4, MXFP8 or NVFP4 of MLX",
        is: |here| here.stores("scales", &[Dtype::U8]) && !here.has("biases"),
        load: Ok(floats::mlx),
        order: None,
    },
    Published {
        name: "affine groups of MLX",
        is: |here| here.has("scales"),
        load: Ok(offsets::mlx),
        order: None,
    },
    Published {
        name: "bitsandbytes NF4 and FP4",
        is: |here| here.has("weight.absmax"),
        load: Ok(bnb::four_bits),
        order: None,
    },
    Published { name: "HQQ integers", is: |here| here.has("W_q"), load: Ok(hqq::load), order: None },
    Published {
        name: "optimum-quanto integers of 4 bits",
        is: |here| here.stores("weight._data._data", &[Dtype::U8]),
        load: Ok(offsets::quanto),
        order: None,
    },
    Published {
        name: "torchao values",
        is: |here| here.has("_weight_qdata"),
        load: Err("neither integers of 8 or 4 bits nor with scales beside them"),
        order: None,
    },
    Published {
        name: "optimum-quanto values",
        is: |here| here.has("weight._data") || here.has("weight._data._data"),
        load: Err("not integers of 8 or 4 bits"),
        order: None,
    },
    Published {
        name: "scaled values",
        is: |here| here.has("weight_scale") || here.has("weight_scale_inv"),
        load: Err("neither integers of 8 bits nor FP8 (E4M3)"),
        order: None,
    },
];

impl Scope<'_> {
    /// Whether there is a tensor of this name and one of these types.
    fn stores(&self, name: &str, types: &[Dtype]) -> bool {
        self.info(name).is_some_and(|info| types.contains(&info.dtype))
    }

    /// The bytes of a tensor of one of these types and this shape.
    fn bytes(&self, name: &str, types: &[Dtype], shape: &[usize]) -> Result<&[u8], WeightError> {
        let path = self.path(name);
        let Some(info) = self.info(name) else { return Err(self.checkpoint().missing(&path, &path)) };
        if info.shape != shape {
            return Err(self.wrong_shape(&path, shape, info.shape));
        }
        if !types.contains(&info.dtype) {
            let wanted: Vec<String> = types.iter().map(ToString::to_string).collect();
            return Err(self.fault(name, format!("expected {}, found {}", wanted.join(" or "), info.dtype)));
        }
        self.raw(name)
    }

    /// The error about a tensor.
    fn fault(&self, name: &str, reason: String) -> WeightError {
        WeightError::tensor(self.checkpoint().path(), &self.path(name), reason)
    }
}

/// Names of the ways to store a matrix that are read, in the order in which tensors are asked.
#[must_use]
pub fn sources() -> Vec<&'static str> {
    ALL.iter().filter(|row| row.load.is_ok()).map(|row| row.name).collect()
}

/// Names of what is read, for errors.
pub(super) fn supported() -> String {
    format!("supported are F32, BF16, F16, {}", sources().join(", "))
}
