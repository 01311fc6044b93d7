//! Published ways to store a matrix, a row each: how its tensors are told from others, and how they are read.
//!
//! What lies in a file as kernels want it is used where it lies. The rest is read without a loss into planes of
//! [`Grouped`](ocelli_kernels::Grouped) ([`made`]), which takes memory beside the file; [`Checkpoint::made`](super::Checkpoint::made)
//! counts it.

mod columns;
mod floats;
mod integers;
mod made;

use ocelli_kernels::{View, Weights};
use safetensors::Dtype;

pub(super) use integers::pack_quantized;

use super::{Scope, WeightError};

/// One way to store a matrix.
pub(super) struct Published {
    /// What errors call it.
    pub name: &'static str,
    /// Whether the tensors here are stored so. The first row that says yes is taken.
    pub is: fn(&Scope<'_>) -> bool,
    /// Reads the matrix `[n, k]`, or why that is not done.
    pub load: Result<Load, &'static str>,
}

type Load = fn(&Scope<'_>, usize, usize, Option<View>) -> Result<Weights, WeightError>;

/// All of them.
pub(super) const ALL: &[Published] = &[
    Published {
        name: "compressed-tensors pack-quantized integers",
        is: |here| here.stores("weight_packed", &[Dtype::I32]),
        load: Ok(|here, n, k, bias| here.packed(n, k, bias)),
    },
    Published { name: "NVFP4", is: |here| here.has("weight_global_scale"), load: Ok(floats::nvfp4) },
    Published {
        name: "MXFP4",
        is: |here| here.stores("weight_packed", &[Dtype::U8]),
        load: Ok(floats::mxfp4),
    },
    Published {
        name: "NVFP4 of ModelOpt",
        is: |here| here.has("weight_scale_2"),
        load: Ok(floats::modelopt_nvfp4),
    },
    Published {
        name: "FP8 (E4M3)",
        is: |here| here.is_fp8(),
        load: Ok(|here, n, k, bias| here.fp8(n, k, bias)),
    },
    Published {
        name: "AWQ integers",
        is: |here| here.has("qweight") && columns::is_awq(here),
        load: Ok(columns::awq),
    },
    Published { name: "GPTQ integers", is: |here| here.has("qweight"), load: Ok(columns::gptq) },
    Published {
        name: "bitsandbytes LLM.int8() values",
        is: |here| here.has("SCB"),
        load: Ok(integers::llm_int8),
    },
    Published {
        name: "compressed-tensors int-quantized values",
        is: |here| here.stores("weight", &[Dtype::I8]) && here.has("weight_scale"),
        load: Ok(integers::int_quantized),
    },
    Published {
        name: "torchao integers",
        is: |here| here.stores("_weight_qdata", &[Dtype::I8]) && here.has("_weight_scale"),
        load: Ok(integers::torchao),
    },
    Published {
        name: "optimum-quanto integers",
        is: |here| here.stores("weight._data", &[Dtype::I8]),
        load: Ok(integers::quanto),
    },
    Published {
        name: "MXFP4 or NVFP4 of MLX",
        is: |here| here.stores("scales", &[Dtype::U8]) && !here.has("biases"),
        load: Ok(floats::mlx),
    },
    Published {
        name: "MLX groups",
        is: |here| here.has("scales"),
        load: Err("their groups begin at a number that is no code's"),
    },
    Published {
        name: "bitsandbytes 4-bit values",
        is: |here| here.has("weight.absmax"),
        load: Err("their codes stand for numbers of a table"),
    },
    Published {
        name: "HQQ integers",
        is: |here| here.has("W_q"),
        load: Err("their zero points are no codes"),
    },
    Published {
        name: "torchao values",
        is: |here| here.has("_weight_qdata"),
        load: Err("neither integers of 8 bits nor with scales beside them"),
    },
    Published {
        name: "optimum-quanto values",
        is: |here| here.has("weight._data") || here.has("weight._data._data"),
        load: Err("not integers of 8 bits"),
    },
    Published {
        name: "scaled values",
        is: |here| here.has("weight_scale") || here.has("weight_scale_inv"),
        load: Err("neither integers of 8 bits nor FP8 (E4M3)"),
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
        self.checkpoint().raw(&path)
    }

    /// The error about a tensor.
    fn fault(&self, name: &str, reason: String) -> WeightError {
        WeightError::tensor(self.checkpoint().path(), &self.path(name), reason)
    }
}

/// Names of what is read, for errors.
pub(super) fn supported() -> String {
    let names: Vec<&str> = ALL.iter().filter(|row| row.load.is_ok()).map(|row| row.name).collect();
    format!("supported are F32, BF16, F16, {}", names.join(", "))
}
