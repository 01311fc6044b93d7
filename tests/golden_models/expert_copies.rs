//! Quantized copies of models whose experts lie in tensors of all of them: each expert becomes what it becomes where it lies alone, and the
//! copy gives what its own codes give, decoded here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use ocelli_engine::calibration::CalibrationSet;
use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::{
    Calibration, Checkpoint, Layout, QuantizeOptions, QuantizeScheme, Quantized, Rounding, Scaling,
};
use ocelli_kernels::quant::nf4;
use serde_json::{Value, json};

use super::calibrated::{Copy, Questions, drift, pipeline, write};
use super::experts::{Model, NAMES, Random, Tensor, equal, f32s};
use super::golden;
use super::published::Folder;
use super::stages::cpu;

/// A model whose experts are random and of this inner size, as all families store them: in two tensors of a layer, and one by one.
fn models(family: &'static str, inner: Option<usize>, turned: bool) -> (Model, [Folder; 2]) {
    let mut model = Model::open(family);
    let mut config: Value = ModelFiles::dir(golden(family)).require_json("config.json").expect(family);
    if let Some(inner) = inner {
        model.inner = inner;
        config["text_config"]["moe_intermediate_size"] = inner.into();
    }
    let config = json!({"text_config": config["text_config"]});
    let (mut random, mut stacked, mut alone) = (Random(77), Vec::new(), Vec::new());
    for layer in &model.layers {
        let mut of = |name: &'static str| -> Vec<Vec<f32>> {
            let [n, k] = model.size(name);
            let mut matrix = || (0..n * k).map(|_| 0.2 * (random.unit() - 0.5) * random.unit()).collect();
            (0..model.experts).map(|_| matrix()).collect()
        };
        let [gate, up, down] = NAMES.map(&mut of);
        let bytes = |values: &[f32]| -> Vec<u8> {
            values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect()
        };
        for (name, all) in NAMES.into_iter().zip([&gate, &up, &down]) {
            let [n, k] = model.size(name);
            for (expert, values) in all.iter().enumerate() {
                let name = format!("{layer}.{expert}.{name}.weight");
                alone.push(Tensor { name, dtype: "BF16", shape: vec![n, k], bytes: bytes(values) });
            }
        }
        let both = gate.into_iter().zip(up).map(|(gate, up)| [gate, up].concat()).collect();
        let [n, k] = model.size("down_proj");
        for (name, all, n, k) in [("gate_up_proj", both, 2 * k, n), ("down_proj", down, n, k)] {
            let all: Vec<Vec<f32>> = all;
            let put = |values: &Vec<f32>| -> Vec<f32> {
                if turned {
                    (0..n * k).map(|at| values[at % n * k + at / n]).collect()
                } else {
                    values.clone()
                }
            };
            let shape = if turned { vec![all.len(), k, n] } else { vec![all.len(), n, k] };
            let bytes = all.iter().flat_map(|values| bytes(&put(values))).collect();
            stacked.push(Tensor { name: format!("{layer}.{name}"), dtype: "BF16", shape, bytes });
        }
    }
    let what = |how: &str| format!("copies-{how}-{turned}-{}", inner.unwrap_or(0));
    let folders =
        [model.write(&what("stacked"), stacked, &config), model.write(&what("alone"), alone, &config)];
    (model, folders)
}

/// Two copies of what is one model, by what its own answers to some questions show if `asked`.
fn copies(
    folders: &[Folder; 2],
    options: &QuantizeOptions,
    asked: &[(Option<PathBuf>, String)],
    name: &str,
) -> [(Copy, Quantized); 2] {
    let mut number = 0;
    folders.each_ref().map(|folder| {
        number += 1;
        let (source, out) = (ModelFiles::dir(&folder.0), Copy::new(&format!("{name}-{number}")));
        let checkpoint = Checkpoint::open(&source).expect("the source");
        let (pipeline, mut cx) = pipeline(&source, &checkpoint);
        let rows = Questions { pipeline: &pipeline, asked: asked.to_vec() };
        let mut set = (!asked.is_empty())
            .then(|| CalibrationSet::new(&pipeline, &mut cx, &checkpoint, &rows, 6).expect("rows"));
        let calibration = set.as_mut().map(|set| set as &mut dyn Calibration);
        let done = write(&source, &out.0, options, calibration);
        (out, done)
    })
}

/// The tensors of a copy: type, shape and bytes by name.
fn tensors(out: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let copy = Checkpoint::open(&ModelFiles::dir(out)).expect("the copy");
    let of = |(name, info): (&str, ocelli_engine::weights::TensorInfo<'_>)| {
        let bytes = copy.raw(name).expect(name).to_vec();
        (name.to_owned(), (info.dtype.to_string(), info.shape.to_vec(), bytes))
    };
    copy.infos().map(of).collect()
}

fn bf16(bytes: &[u8], at: usize) -> f32 {
    half::bf16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f32()
}

/// A float of 8 bits, E4M3.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = if exponent == 0 {
        mantissa / 8.0 * 2f32.powi(-6)
    } else {
        (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7)
    };
    if byte & 0x80 == 0 { size } else { -size }
}

/// A float of 4 bits, E2M1.
fn e2m1(code: u32) -> f32 {
    let size = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][code as usize & 7];
    if code & 8 == 0 { size } else { -size }
}

/// The weights of a module of rows of `k`, from its tensors and the documents of the libraries whose layout they have.
fn decode(all: &BTreeMap<String, (String, Vec<usize>, Vec<u8>)>, module: &str, k: usize) -> Option<Vec<f32>> {
    let of = |name: &str| all.get(&format!("{module}.{name}"));
    // Codes of so many bits, the first in the lowest.
    let code = |bytes: &[u8], bits: usize, at: usize| -> u32 {
        let byte = bytes[at * bits / 8];
        u32::from(if bits == 8 { byte } else { byte >> (at % 2 * 4) & 15 })
    };
    let exponent = |byte: u8| 2f32.powi(i32::from(byte) - 127);
    if let Some((dtype, _, packed)) = of("weight_packed") {
        let (scales_dtype, shape, scales) = of("weight_scale")?;
        let groups = shape[shape.len() - 1];
        let group = k.div_ceil(groups);
        let (rows, bits) = (shape[0], if dtype == "U8" { 4 } else { packed.len() * 8 / (shape[0] * k) });
        let whole = of("weight_global_scale")
            .map(|(_, _, bytes)| f32::from_le_bytes(bytes[..4].try_into().expect("4 bytes")));
        let value = |at: usize| {
            let (row, scale) = (at / k, at / k * groups + at % k / group);
            let code = code(packed, bits, row * k + at % k);
            match (dtype.as_str(), scales_dtype.as_str()) {
                ("I32", "BF16") => (code as f32 - (1 << (bits - 1)) as f32) * bf16(scales, scale),
                ("U8", "U8") => e2m1(code) * exponent(scales[scale]),
                ("U8", "F8_E4M3") => e2m1(code) * e4m3(scales[scale]) / whole.expect("a scale of all"),
                other => panic!("{module}: {other:?}"),
            }
        };
        return Some((0..rows * k).map(value).collect());
    }
    let (dtype, shape, codes) = of("weight")?;
    if let Some((_, _, scales)) = of("weight_scale").filter(|_| dtype == "F8_E4M3") {
        return Some((0..codes.len()).map(|at| e4m3(codes[at]) * bf16(scales, at / k)).collect());
    }
    if let Some((_, _, most)) = of("weight.absmax") {
        let value = |at: usize| {
            let code = codes[at / 2] >> (4 - at % 2 * 4) & 15;
            let scale = f32::from_le_bytes(most[at / 64 * 4..at / 64 * 4 + 4].try_into().expect("4 bytes"));
            nf4::VALUES[code as usize] * scale
        };
        return Some((0..2 * codes.len()).map(value).collect());
    }
    let (scales_dtype, groups, scales) = of("scales")?;
    let (groups, words) = (groups[groups.len() - 1], shape[shape.len() - 1]);
    let (bits, group) = (words * 32 / k, k / groups);
    let value = |at: usize| {
        let scale = at / k * groups + at % k / group;
        let code = code(codes, bits, at);
        match (scales_dtype.as_str(), bits, group) {
            ("U8", 8, _) => e4m3(code as u8) * exponent(scales[scale]),
            ("U8", _, 32) => e2m1(code) * exponent(scales[scale]),
            ("U8", _, _) => e2m1(code) * e4m3(scales[scale]),
            _ => code as f32 * bf16(scales, scale) + bf16(&of("biases").expect("biases").2, scale),
        }
    };
    Some((0..codes.len() * 8 / bits).map(value).collect())
}

/// Writes the model of a copy's own codes in f32, its experts in two tensors of a layer.
fn dense(model: &Model, source: &Path, out: &Path, what: &str, turned: bool) -> Folder {
    let original = tensors(source);
    let copy = tensors(out);
    let mut of_copy = Vec::new();
    let mut rest = Vec::new();
    for (name, (dtype, shape, bytes)) in &original {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let k = *shape.last().expect("an axis");
        let decoded = if shape.len() == 2 { decode(&copy, module, k) } else { None };
        if name.contains(".experts.") {
            continue;
        }
        let dtype = if dtype == "BF16" { "BF16" } else { "F32" };
        rest.push(match (decoded, copy.get(name)) {
            (Some(values), _) => {
                Tensor { name: name.clone(), dtype: "F32", shape: shape.clone(), bytes: f32s(&values) }
            }
            (None, Some((_, _, bytes))) => {
                Tensor { name: name.clone(), dtype, shape: shape.clone(), bytes: bytes.clone() }
            }
            (None, None) => panic!("{name}: neither codes nor as it was: {} bytes", bytes.len()),
        });
    }
    for layer in &model.layers {
        let above = layer.strip_suffix(".experts").expect("experts");
        let of = |name: &str| -> Vec<Vec<f32>> {
            let [n, k] = model.size(name);
            let stacks = ["switch_mlp", "experts.switch_glu"].map(|stack| format!("{above}.{stack}.{name}"));
            match stacks.iter().find_map(|stack| decode(&copy, stack, k)) {
                Some(all) => all.chunks(n * k).map(<[f32]>::to_vec).collect(),
                None => {
                    let one = |expert: usize| format!("{layer}.{expert}.{name}");
                    (0..model.experts).map(|i| decode(&copy, &one(i), k).expect("codes")).collect()
                }
            }
        };
        let [gate, up, down] = NAMES.map(of);
        let both: Vec<Vec<f32>> = gate.into_iter().zip(up).map(|(gate, up)| [gate, up].concat()).collect();
        let [n, k] = model.size("down_proj");
        for (name, all, n, k) in [("gate_up_proj", both, 2 * k, n), ("down_proj", down, n, k)] {
            let put = |values: &Vec<f32>| -> Vec<f32> {
                assert_eq!(values.len(), n * k, "{layer}.{name}");
                if turned {
                    (0..n * k).map(|at| values[at % n * k + at / n]).collect()
                } else {
                    values.clone()
                }
            };
            let shape = if turned { vec![all.len(), k, n] } else { vec![all.len(), n, k] };
            let bytes = all.iter().flat_map(|values| f32s(&put(values))).collect();
            of_copy.push(Tensor { name: format!("{layer}.{name}"), dtype: "F32", shape, bytes });
        }
    }
    let config: Value = ModelFiles::dir(source).require_json("config.json").expect("JSON");
    let mut model = model.clone();
    model.rest = rest;
    model.write(what, of_copy, &json!({"text_config": config["text_config"]}))
}

/// What a stack of all experts is made of: their tensors, one after the other.
fn stack_of(
    alone: &BTreeMap<String, (String, Vec<usize>, Vec<u8>)>,
    name: &str,
    experts: usize,
) -> (Vec<usize>, Vec<u8>) {
    let (mut shape, mut bytes) = (vec![experts], Vec::new());
    let places = [("switch_mlp.", "experts."), ("experts.switch_glu.", "experts.")];
    let (from, to) = places.into_iter().find(|(from, _)| name.contains(from)).expect(name);
    for expert in 0..experts {
        let (_, of, more) = &alone[&name.replace(from, &format!("{to}{expert}."))];
        shape.truncate(1);
        shape.extend(of);
        bytes.extend(more);
    }
    (shape, bytes)
}

/// Format and layout of a copy, and whether it is calibrated.
type Way = (QuantizeScheme, Layout, bool);

#[test]
fn each_expert_becomes_what_it_becomes_alone() {
    use Layout::{Bitsandbytes, CompressedTensors, Mlx};
    use QuantizeScheme::{Fp8, Int4, Int8, Mxfp4, Nf4, Nvfp4};
    let device = cpu();
    let asked = ["What is there to see in it?", "How many?"].map(|text| (None, text.to_owned()));
    // A family with rows of this size, rows and columns exchanged or not, and its copies.
    let families: [(&'static str, Option<usize>, bool, &[Way]); 4] = [
        (
            "qwen3_vl_moe",
            Some(64),
            false,
            &[
                (Int4, CompressedTensors, false),
                (Int4, CompressedTensors, true),
                (Int8, Mlx, true),
                (Fp8, Mlx, false),
                (Nvfp4, Mlx, false),
                (Nf4, Bitsandbytes, false),
            ],
        ),
        ("qwen3_vl_moe", None, true, &[(Int8, CompressedTensors, true)]),
        ("gemma4_moe", Some(64), false, &[(Mxfp4, CompressedTensors, true), (Int4, Mlx, false)]),
        ("llama4", None, true, &[(Int4, CompressedTensors, true), (Fp8, CompressedTensors, false)]),
    ];
    for (family, inner, turned, ways) in families {
        let (model, sources) = models(family, inner, turned);
        let modules = 3 * model.layers.len() * model.experts;
        for (number, &(scheme, layout, calibrated)) in ways.iter().enumerate() {
            let what = format!("{family}-{turned}-{number}");
            let rounding = if calibrated { Rounding::Gptq } else { Rounding::Nearest };
            let scaling = if calibrated { Scaling::Awq } else { Scaling::None };
            let options = QuantizeOptions { layout, rounding, scaling, ..QuantizeOptions::new(scheme) };
            let asked = if calibrated { &asked[..] } else { &[] };
            let [(stacked, done), (alone, of_alone)] = copies(&sources, &options, asked, &what);

            let of_experts = |done: &Quantized| -> HashMap<String, (u64, Option<u64>)> {
                let of = done.modules.iter().filter(|of| of.module.contains(".experts."));
                let errors = |of: &ocelli_engine::weights::ModuleReport| {
                    (of.weight_error.to_bits(), of.output_error.map(f64::to_bits))
                };
                of.map(|of| (of.module.clone(), errors(of))).collect()
            };
            assert_eq!(of_experts(&done).len(), modules, "{what}");
            assert_eq!(of_experts(&done), of_experts(&of_alone), "{what}");
            let seen =
                done.modules.iter().filter(|of| of.module.contains(".experts.") && of.output_error.is_some());
            assert_eq!(seen.count() > modules / 3, calibrated, "{what}");

            let (ours, theirs) = (tensors(&stacked.0), tensors(&alone.0));
            let mut joined = HashSet::new();
            for (name, tensor) in &ours {
                if theirs.get(name) == Some(tensor) {
                    continue;
                }
                let (shape, bytes) = stack_of(&theirs, name, model.experts);
                assert!((&tensor.1, &tensor.2) == (&shape, &bytes), "{what}: {name}");
                joined.insert(name);
            }
            assert_eq!(joined.is_empty(), layout != Mlx, "{what}: {joined:?}");
            assert!(!ours.keys().any(|name| name.ends_with("gate_up_proj")), "{what}");

            let reference = dense(&model, &sources[0].0, &stacked.0, &what, turned);
            equal(&what, &stacked.0, &reference.0, &*device);
            let text = [(None, "What is there to see in it?".to_owned())];
            let drift = drift(&ModelFiles::dir(&sources[0].0), &stacked.0, &text, 8);
            println!("{what}: {} {layout:?}: {:.1e} nats from the source", scheme.name(), drift.kl);
        }
    }
}

/// Experts whose rows a format does not fit stay in their tensors, all of a layer's, and that is told.
#[test]
fn experts_that_do_not_fit_are_told() {
    for (family, scheme, layout, k) in [
        ("llama4", QuantizeScheme::Int4, Layout::Mlx, 48),
        ("qwen3_vl_moe", QuantizeScheme::Mxfp4, Layout::CompressedTensors, 40),
    ] {
        let (source, out) = (ModelFiles::dir(golden(family)), Copy::new(&format!("unfit-{family}")));
        let done = write(
            &source,
            &out.0,
            &QuantizeOptions { layout, head: false, ..QuantizeOptions::new(scheme) },
            None,
        );
        let text = done.notes.concat();
        let expected = format!("stay as they are: rows of {k} weights (`");
        assert!(text.contains(&expected) && text.contains(scheme.name()), "{text}");
        let (ours, theirs) = (tensors(&out.0), tensors(&golden(family)));
        let stacks = theirs
            .iter()
            .filter(|(name, _)| name.ends_with("gate_up_proj") || name.ends_with("experts.down_proj"));
        let kept =
            stacks.inspect(|(name, tensor)| assert!(ours.get(*name) == Some(*tensor), "{family}: {name}"));
        assert!(kept.count() >= 2, "{family}");
    }
}
