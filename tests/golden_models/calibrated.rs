//! Copies that calibration data makes better: scales cancel in every family, and outputs of the demo model are off by less.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ocelli_bench::eval::evaluate;
use ocelli_engine::calibration::{At, CalibrationSet, Drift, Row, Rows};
use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{DecodeOptions, decode_file};
use ocelli_engine::text::Message;
use ocelli_engine::weights::{
    Anatomy, Calibration, Checkpoint, Inputs, ModuleReport, QuantizeOptions, QuantizeScheme, Quantized,
    Rounding, Scaling, Seen, quantize_with,
};
use ocelli_engine::{Ctx, Pipeline, Precision};
use ocelli_kernels::{Backend, DeviceOptions};

use super::golden;

/// A folder that goes when it is dropped.
struct Copy(PathBuf);

impl Copy {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("ocelli-calibrated-{name}-{}", std::process::id())))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Questions, about pictures or about none.
struct Questions<'a> {
    pipeline: &'a Pipeline,
    asked: Vec<(Option<PathBuf>, String)>,
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

/// Inputs whose channels are of very different sizes, the same for all matrices of a width.
struct Uneven<'a>(&'a Checkpoint);

impl Calibration for Uneven<'_> {
    fn identity(&self) -> String {
        "uneven".into()
    }

    fn inputs(&mut self, modules: &HashSet<&str>, _: u64) -> ocelli_engine::Result<Seen> {
        let mut seen = Seen::default();
        for &module in modules {
            let k = self.0.info(&format!("{module}.weight")).expect("a matrix").shape[1];
            let mut state = k as u64;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            };
            let sizes: Vec<f32> = (0..k).map(|_| (2.5 * next()).exp()).collect();
            let x: Vec<f32> =
                (0..2 * k).flat_map(|_| sizes.iter().map(|size| size * next()).collect::<Vec<_>>()).collect();
            seen.inputs.insert(module.to_owned(), Arc::new(Inputs::of(&x, k)?));
        }
        Ok(seen)
    }
}

fn pipeline(files: &ModelFiles, checkpoint: &Checkpoint) -> (Pipeline, Ctx) {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let mut cx = Ctx::new(&*device, Precision::default()).expect("a stream");
    let loaded = ocelli_models::load_from(files, checkpoint, &mut cx, ocelli_models::Leftovers::Ignore)
        .expect("a model");
    (Pipeline::new(files, loaded, 2).expect("its tokenizer"), cx)
}

/// How far the model in `out` is from a source.
fn drift(source: &ModelFiles, out: &Path, asked: &[(Option<PathBuf>, String)], tokens: usize) -> Drift {
    let (checkpoint, files) = (Checkpoint::open(source).expect("the source"), ModelFiles::dir(out));
    let (theirs, mut cx) = pipeline(source, &checkpoint);
    let (ours, mut own) = pipeline(&files, &Checkpoint::open(&files).expect("the copy"));
    let rows = Questions { pipeline: &theirs, asked: asked.to_vec() };
    let mut set = CalibrationSet::new(&theirs, &mut cx, &checkpoint, &rows, tokens).expect("rows");
    set.drift(&ours, &mut own).expect("answers")
}

fn write(
    files: &ModelFiles,
    out: &Path,
    options: &QuantizeOptions,
    calibration: Option<&mut dyn Calibration>,
) -> Quantized {
    let anatomy = ocelli_models::anatomy(files).expect("a family");
    let role = |module: &str| anatomy.roles.get(module).copied();
    let anatomy = Anatomy { role: &role, folds: &anatomy.folds };
    quantize_with(files, out, anatomy, options, calibration, &mut |_| ControlFlow::Continue(()))
        .expect("a quantized copy")
}

/// Scales far from 1 change a copy of 8 bits by no more than rounding does: what gives a channel takes what its columns were given.
#[test]
fn scales_cancel_in_every_family() {
    let mut scaled = 0;
    for family in [
        "llama",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "cohere2",
        "mistral",
        "smolvlm",
        "gemma3",
        "gemma4",
        "gemma4_e",
        "gemma4_moe",
        "glm4v",
        "qwen2_5_vl",
        "qwen3_5",
        "llama4",
        "mllama",
        "granite4_vision",
        "lfm2_vl",
        "cohere2_vision",
        "paligemma2",
        "florence2",
    ] {
        let source = ModelFiles::dir(golden(family));
        let checkpoint = Checkpoint::open(&source).expect("the source");
        let asked = [(None, "What is there to see in it?".to_owned())];
        let plain = QuantizeOptions { group: 32, ..QuantizeOptions::new(QuantizeScheme::Int8) };
        let awq = QuantizeOptions { scaling: Scaling::Awq, ..plain.clone() };
        let (a, b) = (Copy::new(&format!("{family}-plain")), Copy::new(&format!("{family}-awq")));
        write(&source, &a.0, &plain, None);
        let done = write(&source, &b.0, &awq, Some(&mut Uneven(&checkpoint)));
        let with: Vec<&ModuleReport> = done.modules.iter().filter(|of| of.scaling.is_some()).collect();
        scaled += with.len();
        let (plain, awq) = (drift(&source, &a.0, &asked, 8), drift(&source, &b.0, &asked, 8));
        println!(
            "{family}: {} of {} scaled; {:.2e} and {:.2e}",
            with.len(),
            done.modules.len(),
            plain.kl,
            awq.kl
        );
        assert!(awq.kl <= 20.0 * plain.kl + 1e-5, "{family}: {} beside {}", awq.kl, plain.kl);
        for of in with {
            assert!(of.weight_error < 0.1, "{family}: {of:?}");
        }
    }
    assert!(scaled > 100, "{scaled} matrices are scaled");
}

/// On pictures that it was not calibrated on the demo model in 4 bits is nearer to what it was.
#[test]
fn the_demo_model_drifts_less() {
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
    let int4 = || QuantizeOptions::new(QuantizeScheme::Int4);
    let made = |name: &str, options: QuantizeOptions| {
        let out = Copy::new(name);
        let (pipeline, mut cx) = pipeline(&source, &checkpoint);
        let rows = Questions { pipeline: &pipeline, asked: seen.clone() };
        let mut set = CalibrationSet::new(&pipeline, &mut cx, &checkpoint, &rows, 16).expect("rows");
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
        assert!(report.accuracy >= 100.0 * 1741.0 / 1756.0 - 0.5, "{name}: {:.2}%", report.accuracy);
        (mean, drift.kl)
    };
    let nearest = made("nearest", int4());
    let gptq = made("gptq", QuantizeOptions { rounding: Rounding::Gptq, ..int4() });
    let scaled = made("scaled", QuantizeOptions { scaling: Scaling::Awq, ..int4() });
    let both = made("both", QuantizeOptions { rounding: Rounding::Gptq, scaling: Scaling::Awq, ..int4() });
    made(
        "both, clipped",
        QuantizeOptions { rounding: Rounding::Gptq, scaling: Scaling::Awq, clip: true, ..int4() },
    );
    assert!(scaled.0 < nearest.0, "{scaled:?} beside {nearest:?}");
    assert!(gptq.0 < 0.8 * nearest.0 && gptq.1 < 0.8 * nearest.1, "{gptq:?} beside {nearest:?}");
    assert!(both.0 < 0.8 * nearest.0 && both.1 < 0.8 * nearest.1, "{both:?} beside {nearest:?}");
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
