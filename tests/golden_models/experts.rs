//! Experts in each published format: the small models with random codes in place of their experts give what the same weights in f32
//! give, one module for each expert or one tensor for all.

use std::collections::BTreeMap;
use std::path::Path;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::Request;
use ocelli_engine::weights::{Checkpoint, TensorFile, sources};
use ocelli_engine::{Ctx, Precision, Prompt};
use ocelli_kernels::Device;
use ocelli_kernels::quant::nf4;
use serde_json::{Value, json};

use super::golden;
use super::published::Folder;
use super::stages::{Stages, cpu, decoded, equal_stages, stages_of};

/// A tensor of a file.
#[derive(Clone)]
pub(super) struct Tensor {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// Numbers that look random.
pub(super) struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From 0 to 1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// What a tensor is filled with.
enum Fill {
    /// Any bytes.
    Bytes,
    /// Bytes whose bits are all of these.
    Bits(u8),
    /// Bytes of this one and those after it, so many.
    From(u8, u8),
    /// Floats between half of this and this, of the tensor's type.
    Scale(f32),
    /// This.
    Is(Vec<u8>),
}

use Fill::{Bits, Bytes, From, Is, Scale};

/// The tensors of a matrix `[n, k]`: name, type, shape, and what it is filled with.
type Parts = Vec<(&'static str, &'static str, Vec<usize>, Fill)>;

/// A published way to store a matrix.
pub(super) struct Way {
    /// Its name in the list of those that are read.
    pub source: &'static str,
    /// What `config.json` says.
    pub config: fn() -> Value,
    parts: fn(usize, usize) -> Parts,
}

/// Weights that share a scale: as many as divide a row of each matrix here.
fn group(k: usize) -> usize {
    [32, 16, 8].into_iter().find(|&size| k.is_multiple_of(size)).unwrap_or(k)
}

pub(super) fn none() -> Value {
    json!({})
}

fn i32s(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

pub(super) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Codes of FP8 below 2, and no NaN.
const FP8: Fill = Bits(0xbf);

const MLX: Way = Way {
    source: "affine groups of MLX",
    config: || json!({"quantization": {"group_size": 32, "bits": 4}}),
    parts: |n, k| {
        vec![
            ("weight", "U32", vec![n, k / 8], Bytes),
            ("scales", "BF16", vec![n, k / group(k)], Scale(0.01)),
            ("biases", "BF16", vec![n, k / group(k)], Scale(-0.08)),
        ]
    },
};

const MLX_FLOATS: Way = Way {
    source: "MXFP4, MXFP8 or NVFP4 of MLX",
    config: || json!({"quantization": {"group_size": 16, "bits": 4, "mode": "nvfp4"}}),
    parts: |n, k| {
        vec![
            ("weight", "U32", vec![n, k / 8], Bytes),
            ("scales", "U8", vec![n, k.div_ceil(16)], From(0x08, 8)),
        ]
    },
};

/// FP8 in blocks that end where gate and up do.
const FP8_BLOCKS: Way = Way {
    source: "FP8 (E4M3)",
    config: || json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 8]}}),
    parts: |n, k| {
        vec![
            ("weight", "F8_E4M3", vec![n, k], FP8),
            ("weight_scale_inv", "F32", vec![n / 8, k / 8], Scale(0.05)),
        ]
    },
};

const MODELOPT: Way = Way {
    source: "NVFP4 of ModelOpt",
    config: || json!({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}),
    parts: |n, k| {
        vec![
            ("weight", "U8", vec![n, k / 2], Bytes),
            ("weight_scale", "F8_E4M3", vec![n, k.div_ceil(16)], From(0x30, 16)),
            ("weight_scale_2", "F32", vec![], Is(f32s(&[0.01]))),
            ("input_scale", "F32", vec![], Is(f32s(&[0.5]))),
        ]
    },
};

/// Each way to store a matrix that is read; of some, more than one.
pub(super) const WAYS: [Way; 20] = [
    Way {
        source: "compressed-tensors pack-quantized integers",
        config: none,
        parts: |n, k| {
            vec![
                ("weight_packed", "I32", vec![n, k / 8], Bytes),
                ("weight_scale", "BF16", vec![n, k / group(k)], Scale(0.01)),
                ("weight_zero_point", "I32", vec![n / 8, k / group(k)], Bytes),
                ("weight_shape", "I64", vec![2], Is([n as i64, k as i64].map(i64::to_le_bytes).concat())),
            ]
        },
    },
    Way {
        source: "compressed-tensors pack-quantized integers",
        config: none,
        parts: |n, k| {
            vec![
                ("weight_packed", "I32", vec![n, (3 * k).div_ceil(32)], Bytes),
                ("weight_scale", "BF16", vec![n, k / group(k)], Scale(0.02)),
            ]
        },
    },
    Way {
        source: "NVFP4",
        config: none,
        parts: |n, k| {
            vec![
                ("weight_packed", "U8", vec![n, k / 2], Bytes),
                ("weight_scale", "F8_E4M3", vec![n, k.div_ceil(16)], From(0x30, 16)),
                ("weight_global_scale", "F32", vec![1], Scale(100.0)),
            ]
        },
    },
    Way {
        source: "MXFP4",
        config: none,
        parts: |n, k| {
            vec![
                ("weight_packed", "U8", vec![n, k / 2], Bytes),
                ("weight_scale", "U8", vec![n, k.div_ceil(32)], From(120, 3)),
            ]
        },
    },
    MODELOPT,
    FP8_BLOCKS,
    Way {
        source: "FP8 (E4M3)",
        config: none,
        parts: |n, k| {
            vec![
                ("weight", "F8_E4M3", vec![n, k], FP8),
                ("weight_scale", "BF16", vec![n, 1], Scale(0.05)),
                ("input_scale", "BF16", vec![1], Scale(0.05)),
            ]
        },
    },
    Way {
        source: "AWQ integers",
        config: || json!({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}}),
        parts: |n, k| {
            vec![
                ("qweight", "I32", vec![k, n / 8], Bytes),
                ("qzeros", "I32", vec![k / group(k), n / 8], Bytes),
                ("scales", "F16", vec![k / group(k), n], Scale(0.01)),
            ]
        },
    },
    GPTQ,
    Way {
        source: "bitsandbytes LLM.int8() values",
        config: || json!({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true}}),
        parts: |n, k| vec![("weight", "I8", vec![n, k], Bytes), ("SCB", "F32", vec![n], Scale(0.1))],
    },
    Way {
        source: "compressed-tensors int-quantized values",
        config: none,
        parts: |n, k| {
            vec![("weight", "I8", vec![n, k], Bytes), ("weight_scale", "BF16", vec![n, 1], Scale(0.001))]
        },
    },
    Way {
        source: "torchao integers of 4 bits",
        config: none,
        parts: |n, k| {
            vec![
                ("_weight_qdata", "I8", vec![n, k / 2], Bytes),
                ("_weight_scale", "BF16", vec![k / group(k), n], Scale(0.01)),
                ("_weight_zero_point", "BF16", vec![k / group(k), n], Scale(0.02)),
            ]
        },
    },
    Way {
        source: "torchao integers",
        config: none,
        parts: |n, k| {
            vec![
                ("_weight_qdata", "I8", vec![n, k], Bytes),
                ("_weight_scale", "F32", vec![n, 1], Scale(0.001)),
                ("_weight_zero_point", "I8", vec![n, 1], Bits(7)),
            ]
        },
    },
    Way {
        source: "optimum-quanto integers",
        config: none,
        parts: |n, k| {
            vec![
                ("weight._data", "I8", vec![n, k], Bytes),
                ("weight._scale", "BF16", vec![n, 1], Scale(0.001)),
            ]
        },
    },
    MLX_FLOATS,
    Way {
        source: "MXFP4, MXFP8 or NVFP4 of MLX",
        config: || json!({"quantization": {"group_size": 32, "bits": 8, "mode": "mxfp8"}}),
        parts: |n, k| {
            vec![
                ("weight", "U32", vec![n, k / 4], FP8),
                ("scales", "U8", vec![n, k.div_ceil(32)], From(121, 3)),
            ]
        },
    },
    MLX,
    Way {
        source: "bitsandbytes NF4 and FP4",
        config: || json!({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}}),
        parts: |n, k| {
            let state =
                json!({"quant_type": "nf4", "blocksize": group(k), "dtype": "bfloat16", "shape": [n, k]});
            let state = state.to_string().into_bytes();
            vec![
                ("weight", "U8", vec![n * k / 2, 1], Bytes),
                ("weight.absmax", "F32", vec![n * k / group(k)], Scale(0.1)),
                ("weight.quant_map", "F32", vec![16], Is(f32s(nf4::VALUES))),
                ("weight.quant_state.bitsandbytes__nf4", "U8", vec![state.len()], Is(state)),
            ]
        },
    },
    Way {
        source: "HQQ integers",
        config: || json!({"quantization_config": {"quant_method": "hqq"}}),
        parts: |n, k| {
            let count = n * k / group(k);
            vec![
                ("W_q", "U8", vec![count / 2, group(k)], Bytes),
                ("scale", "F16", vec![count, 1], Scale(0.01)),
                ("zero", "F16", vec![count, 1], Scale(8.0)),
                ("nbits", "I32", vec![1], Is(i32s(&[4]))),
                ("group_size", "I32", vec![1], Is(i32s(&[group(k) as i32]))),
                ("axis", "I32", vec![1], Is(i32s(&[1]))),
                ("packing", "U8", vec![7], Is(b"4bit_u8".to_vec())),
                ("shape", "I64", vec![2], Is([n as i64, k as i64].map(i64::to_le_bytes).concat())),
            ]
        },
    },
    Way {
        source: "optimum-quanto integers of 4 bits",
        config: none,
        parts: |n, k| {
            let count = n * k / group(k);
            vec![
                ("weight._data._data", "U8", vec![count / 2, group(k)], Bytes),
                ("weight._scale", "BF16", vec![count, 1], Scale(0.01)),
                ("weight._shift", "BF16", vec![count, 1], Scale(0.08)),
            ]
        },
    },
];

const GPTQ: Way = Way {
    source: "GPTQ integers",
    config: || json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}),
    parts: |n, k| {
        let first_of = |column: usize| (column / group(k)) as i32;
        vec![
            ("qweight", "I32", vec![k / 8, n], Bytes),
            ("qzeros", "I32", vec![k / group(k), n / 8], Bytes),
            ("scales", "F16", vec![k / group(k), n], Scale(0.01)),
            ("g_idx", "I32", vec![k], Is(i32s(&(0..k).map(first_of).collect::<Vec<_>>()))),
        ]
    },
};

/// Floats of a type, between half of `most` and `most`.
fn floats(random: &mut Random, dtype: &str, count: usize, most: f32) -> Vec<u8> {
    let values = (0..count).map(|_| most * (0.5 + 0.5 * random.unit()));
    match dtype {
        "F32" => values.flat_map(f32::to_le_bytes).collect(),
        "F16" => values.flat_map(|value| half::f16::from_f32(value).to_le_bytes()).collect(),
        _ => values.flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect(),
    }
}

fn bytes_of(dtype: &str) -> usize {
    match dtype {
        "I64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" => 2,
        _ => 1,
    }
}

impl Way {
    /// A matrix of random codes.
    pub fn matrix(&self, random: &mut Random, n: usize, k: usize) -> Vec<Tensor> {
        let tensor = |(name, dtype, shape, fill): (&str, &'static str, Vec<usize>, Fill)| {
            let count: usize = shape.iter().product();
            let bytes = match fill {
                Bytes => (0..count * bytes_of(dtype)).map(|_| random.next() as u8).collect(),
                Bits(bits) => (0..count * bytes_of(dtype)).map(|_| random.next() as u8 & bits).collect(),
                From(first, so_many) => {
                    (0..count).map(|_| first + (random.next() % u64::from(so_many)) as u8).collect()
                }
                Scale(most) => floats(random, dtype, count, most),
                Is(bytes) => bytes,
            };
            assert_eq!(bytes.len(), count * bytes_of(dtype), "{}: {name}", self.source);
            Tensor { name: name.to_owned(), dtype, shape, bytes }
        };
        (self.parts)(n, k).into_iter().map(tensor).collect()
    }
}

/// A model whose experts are replaced.
#[derive(Clone)]
pub(super) struct Model {
    family: &'static str,
    /// Tensors of all but experts.
    pub rest: Vec<Tensor>,
    /// The path of the experts of each layer that has some.
    pub layers: Vec<String>,
    pub experts: usize,
    d: usize,
    pub inner: usize,
}

/// Projections of an expert.
pub(super) const NAMES: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

impl Model {
    pub fn open(family: &'static str) -> Self {
        let file = TensorFile::open(&golden(family).join("model.safetensors")).expect(family);
        let (mut rest, mut layers, mut experts) = (Vec::new(), BTreeMap::new(), 0);
        for name in file.names() {
            let info = file.info(name).expect(name);
            let Some((layer, of)) = name.split_once(".experts.") else {
                let dtype = match info.dtype.to_string().as_str() {
                    "BF16" => "BF16",
                    "F32" => "F32",
                    other => panic!("{name}: {other}"),
                };
                let bytes = file.bytes(name).expect(name).to_vec();
                rest.push(Tensor { name: name.to_owned(), dtype, shape: info.shape.to_vec(), bytes });
                continue;
            };
            // One by one: those of the last; stacked: the first axis.
            let count = of.split('.').next().and_then(|first| first.parse::<usize>().ok());
            experts = experts.max(count.map_or(info.shape[0], |last| last + 1));
            layers.insert(format!("{layer}.experts"), ());
        }
        let config: Value = ModelFiles::dir(golden(family)).require_json("config.json").expect(family);
        let text = config.get("text_config").unwrap_or(&config);
        let size =
            |keys: &[&str]| keys.iter().find_map(|key| text.get(*key)?.as_u64()).expect(family) as usize;
        Self {
            family,
            rest,
            layers: layers.into_keys().collect(),
            experts,
            d: size(&["hidden_size"]),
            inner: size(&["moe_intermediate_size", "intermediate_size"]),
        }
    }

    /// Rows and columns of a projection.
    pub fn size(&self, name: &str) -> [usize; 2] {
        if name == "down_proj" { [self.d, self.inner] } else { [self.inner, self.d] }
    }

    /// Writes a model of these experts; `config` is added to the family's.
    pub fn write(&self, what: &str, experts: Vec<Tensor>, config: &Value) -> Folder {
        let name = format!("ocelli-experts-{}-{what}-{}", self.family, std::process::id());
        let folder = Folder(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&folder.0).expect("a folder");
        for entry in std::fs::read_dir(golden(self.family)).expect("the golden model") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name");
            if path.extension().is_some_and(|kind| kind == "json" || kind == "jinja") {
                std::fs::copy(&path, folder.0.join(name)).expect("a copy");
            }
        }
        let mut all: Value = ModelFiles::dir(golden(self.family)).require_json("config.json").expect("JSON");
        for (key, value) in config.as_object().expect("fields") {
            all[key] = value.clone();
        }
        std::fs::write(folder.0.join("config.json"), all.to_string()).expect("a file");
        let tensors: Vec<Tensor> = self.rest.iter().cloned().chain(experts).collect();
        std::fs::write(folder.0.join("model.safetensors"), file_of(&tensors)).expect("a file");
        folder
    }

    /// Each expert's projections in a way, by layer, expert and name.
    fn matrices(&self, way: &Way, seed: u64) -> Vec<(String, usize, &'static str, Vec<Tensor>)> {
        let mut random = Random(seed);
        let mut all = Vec::new();
        for layer in &self.layers {
            for expert in 0..self.experts {
                for name in NAMES {
                    let [n, k] = self.size(name);
                    all.push((layer.clone(), expert, name, way.matrix(&mut random, n, k)));
                }
            }
        }
        all
    }

    /// The experts of a file in f32, one by one.
    fn dense(&self, checkpoint: &Checkpoint) -> Vec<Tensor> {
        let mut all = Vec::new();
        for layer in &self.layers {
            for expert in 0..self.experts {
                for name in NAMES {
                    let ([n, k], path) = (self.size(name), format!("{layer}.{expert}.{name}"));
                    let read = checkpoint.at(&path).linear_in_order(n, k, false);
                    let (w, order) = read.unwrap_or_else(|error| panic!("{error}"));
                    let mut values = decoded(&w);
                    if let Some(order) = order {
                        let sorted = values.clone();
                        for (row, sorted) in values.chunks_exact_mut(k).zip(sorted.chunks_exact(k)) {
                            order.iter().zip(sorted).for_each(|(&column, w)| row[column as usize] = *w);
                        }
                    }
                    let size = values.iter().fold(0.0f32, |most, w| most.max(w.abs()));
                    assert!(size > 0.005 && size < 1.0, "{path}: weights up to {size}");
                    let name = format!("{path}.weight");
                    all.push(Tensor { name, dtype: "F32", shape: vec![n, k], bytes: f32s(&values) });
                }
            }
        }
        all
    }
}

/// A safetensors file.
pub(super) fn file_of(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    // Wide types first, so that each is aligned.
    let mut order: Vec<&Tensor> = tensors.iter().collect();
    order.sort_by_key(|tensor| std::cmp::Reverse(bytes_of(tensor.dtype)));
    for Tensor { name, dtype, shape, bytes } in order {
        let range = [data.len(), data.len() + bytes.len()];
        data.extend(bytes);
        let old = header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": range}));
        assert!(old.is_none(), "{name} twice");
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &data].concat()
}

/// What each stage gives for a prompt and a few steps after it.
fn stages(folder: &Path, device: &dyn Device) -> Stages {
    let params = SamplingParams { max_tokens: 3, ignore_eos: true, ..SamplingParams::default() };
    let tokens: Vec<u32> = (0..19).map(|i| 7 + i * 37 % 290).collect();
    let request = Request { prompt: Prompt::text(tokens), media: Vec::new(), params };
    stages_of(folder, device, |_| request)
}

/// Fails where two models' stages differ by more than rounding.
pub(super) fn equal(what: &str, got: &Path, expected: &Path, device: &dyn Device) {
    equal_stages(what, &stages(got, device), &stages(expected, device));
}

/// The families that have experts.
const FAMILIES: [&str; 5] = ["qwen3_vl_moe", "qwen3_5_moe", "gemma4_moe", "llama4", "deepseek_ocr2"];

#[test]
fn one_module_for_each_expert() {
    let device = cpu();
    for source in sources() {
        assert!(WAYS.iter().any(|way| way.source == source), "{source}: no experts of it here");
    }
    for (family, (number, way)) in
        FAMILIES.iter().flat_map(|family| WAYS.iter().enumerate().map(move |way| (family, way)))
    {
        let model = Model::open(family);
        let mut experts = Vec::new();
        for (layer, expert, name, tensors) in model.matrices(way, 91 + number as u64) {
            for mut tensor in tensors {
                // The zero points of one expert are all the centre: elsewhere kernels would do without them.
                if tensor.name == "qzeros" && expert == 1 && number % 2 == 0 {
                    tensor.bytes.fill(0x77);
                }
                experts.push(Tensor { name: format!("{layer}.{expert}.{name}.{}", tensor.name), ..tensor });
            }
        }
        let quantized = model.write(&format!("one-{number}"), experts, &(way.config)());
        let checkpoint = Checkpoint::open(&ModelFiles::dir(&quantized.0)).expect("a checkpoint");
        let dense = model.write(&format!("dense-{number}"), model.dense(&checkpoint), &none());
        let sources: Vec<_> = checkpoint.notes().iter().map(|note| note.source).collect();
        assert!(sources.iter().all(|source| *source == Some(way.source)), "{}: {sources:?}", way.source);
        equal(&format!("{family}, {} ({number})", way.source), &quantized.0, &dense.0, &*device);
    }
}

/// The tensors of all experts of a projection as one, the first axis that of experts.
fn joined(all: &[Vec<Tensor>]) -> Vec<Tensor> {
    let join = |at: usize| {
        let first = &all[0][at];
        // What is one for all stays so.
        if first.shape.is_empty() {
            return first.clone();
        }
        let shape = [all.len()].iter().chain(&first.shape).copied().collect();
        let bytes = all.iter().flat_map(|one| one[at].bytes.clone()).collect();
        Tensor { shape, bytes, ..first.clone() }
    };
    (0..all[0].len()).map(join).collect()
}

/// The rows of gate, then those of up.
fn below(gate: &[Tensor], up: &[Tensor]) -> Vec<Tensor> {
    let join = |(gate, up): (&Tensor, &Tensor)| {
        let mut all = gate.clone();
        if let Some(rows) = all.shape.first_mut() {
            *rows *= 2;
            all.bytes.extend(&up.bytes);
        }
        all
    };
    gate.iter().zip(up).map(join).collect()
}

/// Rows and columns of each matrix exchanged.
fn turned(mut tensors: Vec<Tensor>) -> Vec<Tensor> {
    for tensor in &mut tensors {
        let &[rows, cols] = &*tensor.shape else { continue };
        let size = bytes_of(tensor.dtype);
        let places = (0..cols).flat_map(|col| (0..rows).map(move |row| row * cols + col));
        tensor.bytes = places.flat_map(|at| tensor.bytes[at * size..][..size].to_vec()).collect();
        tensor.shape = vec![cols, rows];
    }
    tensors
}

/// How the experts of a layer lie in tensors of all of them.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// A module for each expert, below this of the layer.
    Each(&'static str),
    /// A module for each projection, below this of the layer.
    Modules(&'static str),
    /// Parameters, and what other tensors have after their names for what modules call them.
    Parameters { suffix: fn(&str) -> String, turned: bool },
}

fn with_weight(name: &str) -> String {
    format!("_{name}")
}

fn without_weight(name: &str) -> String {
    format!("_{}", name.trim_start_matches("weight_"))
}

#[test]
fn one_tensor_for_all_experts() {
    const FP8: Way = Way {
        config: || json!({"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}),
        parts: |n, k| {
            vec![
                ("weight", "F8_E4M3", vec![n, k], Bits(0xbf)),
                ("weight_scale", "F32", vec![], Is(f32s(&[0.03]))),
                ("input_scale", "F32", vec![], Is(f32s(&[0.5]))),
            ]
        },
        ..FP8_BLOCKS
    };
    const MLX_3: Way = Way {
        parts: |n, k| {
            vec![
                ("weight", "U32", vec![n, 6 * k / 32], Bytes),
                ("scales", "F16", vec![n, k / group(k)], Scale(0.005)),
                ("biases", "F16", vec![n, k / group(k)], Scale(-0.16)),
            ]
        },
        ..MLX
    };
    let modules = ["switch_mlp", "experts.switch_glu", "experts"].map(Layout::Modules);
    let [switch_mlp, switch_glu, bare] = modules;
    let parameters = |suffix, turned| Layout::Parameters { suffix, turned };
    let device = cpu();
    let all = [
        ("qwen3_vl_moe", &MLX, switch_mlp),
        ("qwen3_5_moe", &MLX_FLOATS, switch_mlp),
        ("deepseek_ocr2", &MLX, switch_mlp),
        ("gemma4_moe", &MLX, switch_glu),
        ("gemma4_moe", &MLX_FLOATS, switch_glu),
        ("llama4", &MLX, bare),
        ("qwen3_5_moe", &MLX_3, switch_mlp),
        ("qwen3_vl_moe", &FP8_BLOCKS, parameters(without_weight, false)),
        ("qwen3_vl_moe", &FP8_BLOCKS, parameters(without_weight, true)),
        ("qwen3_5_moe", &FP8_BLOCKS, parameters(without_weight, false)),
        ("qwen3_5_moe", &FP8, parameters(with_weight, false)),
        ("qwen3_5_moe", &MODELOPT, parameters(with_weight, false)),
        ("gemma4_moe", &FP8_BLOCKS, parameters(without_weight, false)),
        ("llama4", &FP8, parameters(with_weight, true)),
        ("llama4", &MODELOPT, parameters(with_weight, true)),
        ("gemma4_moe", &MODELOPT, Layout::Each("moe.experts")),
    ];
    for (number, (family, way, layout)) in all.into_iter().enumerate() {
        let model = Model::open(family);
        let matrices = model.matrices(way, 17 + number as u64);
        let one_by_one = matrices.iter().flat_map(|(layer, expert, name, tensors)| {
            let named = move |tensor: &Tensor| Tensor {
                name: format!("{layer}.{expert}.{name}.{}", tensor.name),
                ..tensor.clone()
            };
            tensors.iter().map(named)
        });
        let mut stacked = Vec::new();
        for layer in &model.layers {
            let of = |name: &str| -> Vec<Vec<Tensor>> {
                let here = matrices.iter().filter(|(of, _, of_name, _)| of == layer && *of_name == name);
                here.map(|(.., tensors)| tensors.clone()).collect()
            };
            let above = layer.strip_suffix(".experts").expect("experts");
            let [gate, up, down] = NAMES.map(of);
            match layout {
                Layout::Each(place) => {
                    for (name, all) in NAMES.into_iter().zip([gate, up, down]) {
                        for (expert, tensors) in all.into_iter().enumerate() {
                            let path = format!("{above}.{place}.{expert}.{name}");
                            let named =
                                |tensor: Tensor| Tensor { name: format!("{path}.{}", tensor.name), ..tensor };
                            stacked.extend(tensors.into_iter().map(named));
                        }
                    }
                }
                Layout::Modules(place) => {
                    for (name, all) in NAMES.into_iter().zip([gate, up, down]) {
                        let named = |tensor: Tensor| Tensor {
                            name: format!("{above}.{place}.{name}.{}", tensor.name),
                            ..tensor
                        };
                        stacked.extend(joined(&all).into_iter().map(named));
                    }
                }
                Layout::Parameters { suffix, turned: is_turned } => {
                    let gate_up = gate.iter().zip(&up).map(|(gate, up)| below(gate, up)).collect();
                    for (name, all) in [("gate_up_proj", gate_up), ("down_proj", down)] {
                        let all: Vec<Vec<Tensor>> =
                            if is_turned { all.into_iter().map(turned).collect() } else { all };
                        let named = |tensor: Tensor| {
                            let suffix =
                                if tensor.name == "weight" { String::new() } else { suffix(&tensor.name) };
                            Tensor { name: format!("{layer}.{name}{suffix}"), ..tensor }
                        };
                        stacked.extend(joined(&all).into_iter().map(named));
                    }
                }
            }
        }
        let apart = model.write(&format!("apart-{number}"), one_by_one.collect(), &(way.config)());
        let together = model.write(&format!("together-{number}"), stacked, &(way.config)());
        equal(&format!("{family}, {}, {layout:?}", way.source), &together.0, &apart.0, &*device);
    }
}

/// GPTQ's experts whose columns lie in activation order, each in its own.
#[test]
fn columns_in_activation_order() {
    let device = cpu();
    for family in ["qwen3_vl_moe", "llama4"] {
        let model = Model::open(family);
        let experts = |apart: bool| -> Vec<Tensor> {
            let mut all = Vec::new();
            for (layer, expert, name, tensors) in model.matrices(&GPTQ, 5) {
                for mut tensor in tensors {
                    if tensor.name == "g_idx" {
                        let (k, step) = (tensor.shape[0], if apart && name == "up_proj" { 11 } else { 7 });
                        let mut groups = vec![0; k];
                        (0..k).for_each(|i| groups[(i * step + 3 * expert) % k] = (i / group(k)) as i32);
                        tensor.bytes = i32s(&groups);
                    }
                    all.push(Tensor { name: format!("{layer}.{expert}.{name}.{}", tensor.name), ..tensor });
                }
            }
            all
        };
        let quantized = model.write("order", experts(false), &(GPTQ.config)());
        let checkpoint = Checkpoint::open(&ModelFiles::dir(&quantized.0)).expect("a checkpoint");
        let path = format!("{}.1.down_proj", model.layers[0]);
        let [n, k] = model.size("down_proj");
        let (_, order) = checkpoint.at(&path).linear_in_order(n, k, false).expect("a matrix");
        assert!(order.is_some(), "{path}: columns are not in their own order");
        let dense = model.write("unordered", model.dense(&checkpoint), &none());
        equal(&format!("{family}, columns in activation order"), &quantized.0, &dense.0, &*device);

        // Gate and up are one product.
        let apart = model.write("two-orders", experts(true), &(GPTQ.config)());
        let mut cx = Ctx::new(&*device, Precision::default()).expect("a stream");
        let text = match ocelli_models::load(&ModelFiles::dir(&apart.0), &mut cx) {
            Ok(_) => panic!("{family}: two orders of gate and up"),
            Err(error) => error.to_string(),
        };
        assert!(text.contains("experts.0: g_idx: expected one order of columns for gate and up"), "{text}");
    }
}
