//! Copies that calibration data makes better: scales cancel in every family, and outputs of the demo model are off by less.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ocelli_bench::eval::evaluate;
use ocelli_bench::machine::Machine;
use ocelli_engine::calibration::{At, CalibrationSet, Drift, Row, Rows};
use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{DecodeOptions, decode_file};
use ocelli_engine::text::Message;
use ocelli_engine::weights::{
    Anatomy, Calibration, Checkpoint, Layout, ModuleReport, Producer, QuantizeOptions, QuantizeScheme,
    Quantized, Rounding, Scaling, Seen, quantize_with,
};
use ocelli_engine::{Ctx, Pipeline, Precision};
use ocelli_kernels::cpu::isa::Isa;
use ocelli_kernels::{Backend, DeviceOptions};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::golden;

/// A folder that goes when it is dropped.
pub(super) struct Copy(pub PathBuf);

impl Copy {
    pub fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("ocelli-calibrated-{name}-{}", std::process::id())))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Questions, about pictures or about none.
pub(super) struct Questions<'a> {
    pub pipeline: &'a Pipeline,
    pub asked: Vec<(Option<PathBuf>, String)>,
}

impl Rows for Questions<'_> {
    fn count(&self) -> usize {
        self.asked.len()
    }

    fn row(&self, number: usize) -> ocelli_engine::Result<Row> {
        let (picture, text) = &self.asked[number];
        let pictures = picture.iter().map(|path| decode_file(path, &DecodeOptions::default()));
        let images = self.pipeline.prepare(&pictures.collect::<Result<Vec<_>, _>>()?)?;
        let messages = [Message::user(images.len(), text.clone())];
        let prompt = self.pipeline.lay_out(&messages, &images.iter().collect::<Vec<_>>())?;
        Ok(Row { prompt, images })
    }

    fn identity(&self) -> String {
        format!("{:?}", self.asked)
    }

    fn at(&self, _: At) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Writes a copy in f32 whose channels are scaled as the folds of its family say, each by another factor; gives the number of folds.
fn scaled_copy(family: &str, out: &Path) -> usize {
    let source = golden(family);
    std::fs::create_dir_all(out).expect("a folder");
    for entry in std::fs::read_dir(&source).expect("the source").flatten() {
        let name = entry.file_name();
        if entry.path().is_file() && !name.to_string_lossy().contains("safetensors") {
            std::fs::copy(entry.path(), out.join(name)).expect("a copy");
        }
    }
    let files = ModelFiles::dir(&source);
    let checkpoint = Checkpoint::open(&files).expect("the source");
    let folds = ocelli_models::anatomy(&files).expect("a family").folds;
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for (name, info) in checkpoint.infos() {
        if let Ok(values) = checkpoint.floats(name) {
            tensors.insert(name.to_owned(), (info.shape.to_vec(), values));
        }
    }
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (1.5 * ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)).exp()
    };
    for fold in &folds {
        let (block, times) = fold.columns;
        let scales: Vec<f32> = match &fold.from {
            Producer::Norm { weight, offset } => {
                let (_, weights) = tensors.get_mut(weight).expect(weight);
                let scales: Vec<f32> = weights.iter().map(|_| next()).collect();
                weights.iter_mut().zip(&scales).for_each(|(w, s)| *w = (*w + offset) / s - offset);
                scales
            }
            Producer::Rows { module, first, count } => {
                let scales: Vec<f32> = (0..*count).map(|_| next()).collect();
                let name = format!("{module}.weight");
                let (shape, rows) = tensors.get_mut(&name).expect(&name);
                let k = shape[1];
                for (row, s) in rows.chunks_exact_mut(k).skip(*first).zip(&scales) {
                    row.iter_mut().for_each(|w| *w /= s);
                }
                if let Some((_, bias)) = tensors.get_mut(&format!("{module}.bias")) {
                    bias[*first..].iter_mut().zip(&scales).for_each(|(b, s)| *b /= s);
                }
                scales
            }
        };
        for into in &fold.into {
            let name = format!("{into}.weight");
            let (shape, columns) = tensors.get_mut(&name).expect(&name);
            assert_eq!(shape[1], scales.len() * times, "{family}: {fold:?}");
            for row in columns.chunks_exact_mut(shape[1]) {
                let channel = |col: usize| col / block / times * block + col % block;
                row.iter_mut().enumerate().for_each(|(col, w)| *w *= scales[channel(col)]);
            }
        }
    }
    let bytes: BTreeMap<&String, (&Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| (name, (shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())))
        .collect();
    let views = bytes.iter().map(|(name, (shape, bytes))| {
        (name, TensorView::new(Dtype::F32, (*shape).clone(), bytes).expect("bytes of the shape"))
    });
    safetensors::serialize_to_file(views, None, &out.join("model.safetensors")).expect("a file");
    folds.len()
}

pub(super) fn pipeline(files: &ModelFiles, checkpoint: &Checkpoint) -> (Pipeline, Ctx) {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let mut cx = Ctx::new(&*device, Precision::default()).expect("a stream");
    let loaded = ocelli_models::load_from(files, checkpoint, &mut cx, ocelli_models::Leftovers::Ignore)
        .expect("a model");
    (Pipeline::new(files, loaded, 2).expect("its tokenizer"), cx)
}

/// How far the model in `out` is from a source.
pub(super) fn drift(
    source: &ModelFiles,
    out: &Path,
    asked: &[(Option<PathBuf>, String)],
    tokens: usize,
) -> Drift {
    let (checkpoint, files) = (Checkpoint::open(source).expect("the source"), ModelFiles::dir(out));
    let (theirs, mut cx) = pipeline(source, &checkpoint);
    let (ours, mut own) = pipeline(&files, &Checkpoint::open(&files).expect("the copy"));
    let rows = Questions { pipeline: &theirs, asked: asked.to_vec() };
    let mut set = CalibrationSet::new(&theirs, &mut cx, &checkpoint, &rows, tokens).expect("rows");
    set.drift(&ours, &mut own).expect("answers")
}

pub(super) fn write(
    files: &ModelFiles,
    out: &Path,
    options: &QuantizeOptions,
    calibration: Option<&mut dyn Calibration>,
) -> Quantized {
    let anatomy = ocelli_models::anatomy(files).expect("a family");
    let role = |module: &str| anatomy.roles.get(module).copied();
    let anatomy = Anatomy { role: &role, folds: &anatomy.folds, banks: &anatomy.banks };
    quantize_with(files, out, anatomy, options, calibration, &mut |_| ControlFlow::Continue(()))
        .expect("a quantized copy")
}

/// What gives a channel takes the inverse of what the columns are given that take it, and nothing else takes it: answers stay.
#[test]
fn scales_cancel_in_every_family() {
    let mut counted = Vec::new();
    let expected = [
        ("llama", 8),
        ("qwen2", 8),
        ("qwen3", 8),
        ("gemma", 8),
        ("gemma2", 8),
        ("gemma3_text", 8),
        ("cohere2", 9),
        ("mistral", 8),
        ("smolvlm", 8),
        ("gemma3", 12),
        ("gemma4", 9),
        ("gemma4_e", 15),
        ("gemma4_moe", 9),
        ("glm4v", 8),
        ("qwen2_5_vl", 8),
        ("qwen3_vl_moe", 6),
        ("qwen3_5", 10),
        ("llama4", 12),
        ("mllama", 12),
        ("granite4_vision", 20),
        ("lfm2_vl", 10),
        ("cohere2_vision", 9),
        ("paligemma2", 8),
    ];
    for (family, _) in expected {
        let source = ModelFiles::dir(golden(family));
        let asked = [(None, "What is there to see in it?".to_owned())];
        let copy = Copy::new(family);
        let found = scaled_copy(family, &copy.0);
        let drift = drift(&source, &copy.0, &asked, 8);
        println!("{family}: {found} folds, {:.1e}", drift.kl_max);
        assert!(drift.kl_max < 1e-7 && drift.top1 == 1.0, "{family}: {drift:?}");
        counted.push((family, found));
    }
    assert_eq!(counted, expected);
}

/// How a copy of the demo model is made.
struct Variant {
    scheme: QuantizeScheme,
    rounding: Rounding,
    scaling: Scaling,
    clip: bool,
}

impl Variant {
    fn of(scheme: QuantizeScheme, rounding: Rounding, scaling: Scaling, clip: bool) -> Self {
        Self { scheme, rounding, scaling, clip }
    }

    /// As arguments of the command.
    fn name(&self) -> String {
        let scaling = if self.scaling == Scaling::Awq { " --scaling awq" } else { "" };
        let clip = if self.clip { " --clip" } else { "" };
        format!("--format {} --rounding {}{scaling}{clip}", self.scheme.name(), self.rounding.name())
    }
}

/// On pictures that it was not calibrated on the demo model in 4 bits is nearer to what it was. `OCELLI_CALIBRATED` names a file that is written
/// with what this and other formats give, a line of JSON each, in place of what was there.
#[test]
fn the_demo_model_drifts_less() {
    use QuantizeScheme::{Fp8, Int4, Int8, Mxfp4, Nf4, Nvfp4};
    let root = ocelli_tests::root().join("models/demo");
    let source = ModelFiles::dir(root.join("model"));
    let checkpoint = Checkpoint::open(&source).expect("the demo model");
    // Calibrated on the example pictures, compared on those of the evaluation set.
    let examples = std::fs::read(root.join("examples/examples.json")).expect("examples");
    let examples: serde_json::Value = serde_json::from_slice(&examples).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let mut seen = Vec::new();
    for example in examples.as_array().expect("a list") {
        let picture = root.join("examples").join(text(&example["image"]));
        let pairs = example["pairs"].as_array().expect("questions");
        seen.extend(pairs.iter().map(|pair| (Some(picture.clone()), text(&pair["question"]))));
    }
    let ask = |number: usize| {
        let picture = root.join(format!("eval/{number:03}.png"));
        let questions = ["Caption this image.", "How many objects are there?", "What number is written?"];
        questions.map(|question| (Some(picture.clone()), question.to_owned()))
    };
    let unseen: Vec<(Option<PathBuf>, String)> = (0..40).flat_map(ask).collect();
    let machine = Machine::describe(Isa::best(), 2);
    let mut record = String::new();
    let mut made = |variant: Variant| {
        let Variant { scheme, rounding, scaling, clip } = variant;
        let (name, out) = (variant.name(), Copy::new(&variant.name().replace(' ', "")));
        let (pipeline, mut cx) = pipeline(&source, &checkpoint);
        let rows = Questions { pipeline: &pipeline, asked: seen.clone() };
        let mut set = CalibrationSet::new(&pipeline, &mut cx, &checkpoint, &rows, 16).expect("rows");
        let layout = if scheme == Nf4 { Layout::Bitsandbytes } else { Layout::default() };
        let options = QuantizeOptions { layout, rounding, scaling, clip, ..QuantizeOptions::new(scheme) };
        let done = write(&source, &out.0, &options, Some(&mut set));
        let decoder = done.modules.iter().filter(|of| of.module.contains("layers"));
        let errors: Vec<f64> = decoder.map(|of| of.output_error.expect("inputs were seen")).collect();
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        let drift = drift(&source, &out.0, &unseen, 16);
        let files = ModelFiles::dir(&out.0);
        let (copy, mut cx) = self::pipeline(&files, &Checkpoint::open(&files).expect("the copy"));
        let report = evaluate(&copy, &mut cx, &root.join("eval"), 1).expect("the evaluation set");
        println!(
            "{name}: outputs off by {:.2}%; {:.5} nats, {:.2}% likeliest alike; {:.2}% of {} rows right",
            100.0 * mean,
            drift.kl,
            100.0 * drift.top1,
            report.accuracy,
            report.rows
        );
        let line = json!({
            "schema": "ocelli.calibrated.v1", "machine": machine, "model": "demo", "options": name, "format": scheme.name(),
            "calibration_rows": seen.len(), "drift_rows": drift.rows, "drift_tokens": drift.tokens,
            "output_error": mean, "kl": drift.kl, "kl_max": drift.kl_max, "top1": drift.top1,
            "right": report.correct, "rows": report.rows,
        });
        record += &format!("{line}\n");
        let points = if matches!(scheme, Mxfp4 | Nvfp4 | Nf4) { 2.0 } else { 0.5 };
        assert!(report.accuracy >= 100.0 * 1741.0 / 1756.0 - points, "{name}: {:.2}%", report.accuracy);
        (mean, drift.kl)
    };
    let (nearest, gptq) = (Rounding::Nearest, Rounding::Gptq);
    let plain = made(Variant::of(Int4, nearest, Scaling::None, false));
    let scaled = made(Variant::of(Int4, nearest, Scaling::Awq, false));
    let rounded = made(Variant::of(Int4, gptq, Scaling::None, false));
    let both = made(Variant::of(Int4, gptq, Scaling::Awq, false));
    made(Variant::of(Int4, gptq, Scaling::Awq, true));
    assert!(scaled.0 < plain.0, "{scaled:?} beside {plain:?}");
    assert!(rounded.0 < 0.8 * plain.0 && rounded.1 < 0.8 * plain.1, "{rounded:?} beside {plain:?}");
    assert!(both.0 < 0.8 * plain.0 && both.1 < 0.8 * plain.1, "{both:?} beside {plain:?}");
    let Some(path) = std::env::var_os("OCELLI_CALIBRATED") else { return };
    for scheme in [Int8, Fp8, Nf4, Mxfp4, Nvfp4] {
        made(Variant::of(scheme, nearest, Scaling::None, false));
        made(Variant::of(scheme, nearest, Scaling::Awq, false));
        made(Variant::of(scheme, gptq, Scaling::None, false));
        made(Variant::of(scheme, gptq, Scaling::Awq, false));
    }
    std::fs::write(path, record).expect("the record");
}

/// What is seen of a few matrices at a time is what is seen of all at once.
#[test]
fn little_memory_takes_more_runs() {
    let root = ocelli_tests::root().join("models/demo");
    let source = ModelFiles::dir(root.join("model"));
    let checkpoint = Checkpoint::open(&source).expect("the demo model");
    let options = QuantizeOptions {
        rounding: Rounding::Gptq,
        scaling: Scaling::Awq,
        max_shard: 400 << 10,
        ..QuantizeOptions::new(QuantizeScheme::Int4)
    };
    let files = [2 << 30, 1 << 20].map(|memory| {
        let out = Copy::new(&format!("memory-{memory}"));
        let (pipeline, mut cx) = pipeline(&source, &checkpoint);
        let asked = vec![(Some(root.join("examples/01.png")), "Caption this image.".to_owned())];
        let rows = Questions { pipeline: &pipeline, asked };
        let mut set = CalibrationSet::new(&pipeline, &mut cx, &checkpoint, &rows, 4).expect("rows");
        let mut counted = Counted { set: &mut set, runs: 0 };
        let done = write(&source, &out.0, &QuantizeOptions { memory, ..options.clone() }, Some(&mut counted));
        let runs = counted.runs;
        let bytes: Vec<Vec<u8>> =
            done.files.iter().map(|name| std::fs::read(out.0.join(name)).expect("a file")).collect();
        (runs, bytes)
    });
    let [(once, all), (several, parts)] = files;
    assert!(once == 1 && several > 3 && all.len() > 2, "{once} {several} {}", all.len());
    assert!(all == parts, "the same files");
}

/// Experts see the rows that are routed to them, and are rounded by these; those that see none, to nearest. Memory that holds a few of
/// them at a time gives the same.
#[test]
fn experts_are_rounded_by_what_is_routed_to_them() {
    let source = ModelFiles::dir(golden("qwen3_5_moe"));
    let checkpoint = Checkpoint::open(&source).expect("a model");
    let config: Value = source.require_json("config.json").expect("config.json");
    let text = &config["text_config"];
    let number = |field: &str| text[field].as_u64().expect(field);
    let (layers, experts, top) =
        (number("num_hidden_layers"), number("num_experts"), number("num_experts_per_tok"));
    let asked = ["What is there to see in it?", "How many?"].map(|text| (None, text.to_owned()));
    let anatomy = ocelli_models::anatomy(&source).expect("a family");
    let experts_of = |layer: u64| format!("model.language_model.layers.{layer}.mlp.experts.");

    // Of every row that a layer sees, so many experts see one.
    let (pipeline, mut cx) = pipeline(&source, &checkpoint);
    let rows = Questions { pipeline: &pipeline, asked: asked.to_vec() };
    let mut set = CalibrationSet::new(&pipeline, &mut cx, &checkpoint, &rows, 6).expect("rows");
    let names: HashSet<&str> = anatomy.roles.keys().map(String::as_str).collect();
    let seen = set.inputs(&names, 2 << 30).expect("inputs");
    assert!(seen.left.is_empty());
    let count = |module: &str| seen.inputs.get(module).map_or(0, |inputs| inputs.rows);
    let mut unseen = 0;
    for layer in 0..layers {
        let shared = count(&format!("model.language_model.layers.{layer}.mlp.shared_expert.up_proj"));
        assert!(shared > 20, "{shared}");
        for name in ["gate_proj", "up_proj", "down_proj"] {
            let each: Vec<u64> =
                (0..experts).map(|of| count(&format!("{}{of}.{name}", experts_of(layer)))).collect();
            assert_eq!(each.iter().sum::<u64>(), top * shared, "layer {layer}, {name}: {each:?}");
            unseen += each.iter().filter(|count| **count == 0).count();
        }
    }

    let written = |name: &str, rounding: Rounding, memory: u64| {
        let out = Copy::new(&format!("experts-{name}"));
        let (pipeline, mut cx) = self::pipeline(&source, &checkpoint);
        let rows = Questions { pipeline: &pipeline, asked: asked.to_vec() };
        let mut set = CalibrationSet::new(&pipeline, &mut cx, &checkpoint, &rows, 6).expect("rows");
        let mut counted = Counted { set: &mut set, runs: 0 };
        let options = QuantizeOptions { rounding, memory, ..QuantizeOptions::new(QuantizeScheme::Int4) };
        let done = write(&source, &out.0, &options, Some(&mut counted));
        let bytes = std::fs::read(out.0.join("model.safetensors")).expect("a file");
        (counted.runs, done, bytes)
    };
    let (once, gptq, all) = written("gptq", Rounding::Gptq, 2 << 30);
    let (several, _, parts) = written("parts", Rounding::Gptq, 32 << 10);
    assert!(once == 1 && several > 3, "{once} {several}");
    assert!(all == parts, "the same file");
    let (_, nearest, _) = written("nearest", Rounding::Nearest, 2 << 30);
    let of_experts = |done: &Quantized| -> Vec<_> {
        done.modules.iter().filter(|of| of.module.contains(".experts.")).cloned().collect()
    };
    let (gptq, nearest) = (of_experts(&gptq), of_experts(&nearest));
    assert_eq!(gptq.len() as u64, 3 * layers * experts);
    let mut errors = [0.0; 2];
    for (gptq, nearest) in gptq.iter().zip(&nearest) {
        let seen = count(&gptq.module) > 0;
        assert_eq!((&gptq.module, gptq.output_error.is_some()), (&nearest.module, seen), "{gptq:?}");
        assert_eq!(gptq.rounding == Rounding::Gptq, seen, "{gptq:?}");
        let error = |of: &ModuleReport| of.output_error.unwrap_or(of.weight_error);
        errors[0] += error(gptq);
        errors[1] += error(nearest);
        assert!(seen || error(gptq) == error(nearest), "{gptq:?}");
    }
    println!("{unseen} of {} saw nothing; {errors:?}", gptq.len());
    assert!(errors[0] < 0.8 * errors[1], "{errors:?}");
}

struct Counted<'a> {
    set: &'a mut dyn Calibration,
    runs: usize,
}

impl Calibration for Counted<'_> {
    fn identity(&self) -> String {
        self.set.identity()
    }

    fn inputs(&mut self, modules: &HashSet<&str>, memory: u64) -> ocelli_engine::Result<Seen> {
        self.runs += 1;
        self.set.inputs(modules, memory)
    }
}
