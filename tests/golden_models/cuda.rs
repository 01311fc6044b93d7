//! The same models on the CUDA backend, on the host emulator; `gpu.rs` has what runs on a GPU.

// The tests of the emulator itself use more of it.
#[allow(dead_code)]
#[path = "../emulator/mod.rs"]
pub(super) mod emulator;

#[allow(dead_code)]
#[path = "../cuda/standin/host.rs"]
pub(super) mod host;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ocelli_bench::eval::{Report, evaluate};
use ocelli_engine::image::Rgb8Image;
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::{Piece, generate};
use ocelli_engine::text::Message;
use ocelli_engine::{Ctx, Pipeline, Precision};
use ocelli_kernels::cuda::cubin::Cubins;
use ocelli_kernels::cuda::{CudaDevice, KernelKey, PlanDriver};
use ocelli_kernels::{Arch, DType, Device};

use super::{SAMPLE, explain, golden, run};

/// An emulated device, or `None`, counted as skipped.
fn emulated(arch: Arch) -> Option<CudaDevice> {
    match emulator::EmulatedDriver::open(arch) {
        Ok(driver) => Some(CudaDevice::on(Arc::new(driver), Arc::default())),
        Err(why) => {
            ocelli_tests::skip("emulator", &why);
            None
        }
    }
}

/// The GPU of this machine, or `None`, counted as skipped. Kernels that one process compiled are there for the others.
pub(super) fn gpu() -> Option<CudaDevice> {
    let cache = std::env::var_os("OCELLI_CACHE").map(PathBuf::from);
    match CudaDevice::open(0, Arc::default(), cache.as_deref()) {
        Ok(device) => Some(device),
        Err(error) => {
            ocelli_tests::skip("cuda", &error.to_string());
            None
        }
    }
}

fn passes(device: &CudaDevice) {
    for family in SAMPLE {
        let dir = golden(family);
        let report = run(&dir, &dir, device);
        assert!(report.pass, "{}", explain(&report));
    }
}

/// One in `every` of the demo model's questions. Decode steps are recorded and replayed.
pub(super) fn answers(device: &CudaDevice, every: usize) -> Report {
    let mut cx = Ctx::new(device, Precision::default()).expect("a stream");
    let files = &ocelli_models::demo::FILES;
    let model = ocelli_models::load(files, &mut cx).expect("the demo model");
    let pipeline = Pipeline::new(files, model, 2).expect("its tokenizer");
    let eval = ocelli_tests::root().join("models/demo/eval");
    let report = evaluate(&pipeline, &mut cx, &eval, every).expect("the evaluation set");
    assert!(cx.records(), "steps are not recorded");
    report
}

#[test]
fn golden_models_emulated() {
    if let Some(device) = emulated(Arch::Sm80) {
        passes(&device);
    }
}

#[test]
fn adapters_on_some_rows_emulated() {
    if let Some(device) = emulated(Arch::Sm80) {
        super::adapters::on_some_rows(&device);
    }
}

#[test]
fn demo_answers_emulated() {
    if let Some(device) = emulated(Arch::Sm80) {
        let report = answers(&device, 600);
        assert!(report.rows >= 2, "{} rows", report.rows);
        let differing = report.differing.expect("answers.jsonl");
        assert!(differing.is_empty(), "{differing:?}");
    }
}

/// Kernels that `work` asks a device of this architecture for.
fn wanted(arch: Arch, work: impl Fn(&Pipeline, &mut Ctx)) -> Vec<KernelKey> {
    let driver = Arc::new(PlanDriver::of_arch(arch));
    let device = CudaDevice::on(driver.clone(), Arc::default());
    let mut cx = Ctx::new(&device, Precision::default()).expect("a stream");
    let files = &ocelli_models::demo::FILES;
    let model = ocelli_models::load(files, &mut cx).expect("the demo model");
    work(&Pipeline::new(files, model, 2).expect("its tokenizer"), &mut cx);
    driver.keys()
}

/// A step of text has five launches a layer (query, key and value, with their rotation and the write to the pages; attention; output; gate and
/// up; down), and four around them: embedding, head, and sampling in two, what each block of tokens has and what is chosen. With pages of 8-bit
/// codes, whose scales are those of whole heads, the rotation is a launch of its own.
#[test]
fn a_step_has_few_launches() {
    let config = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/model/config.json"),
    );
    let config: serde_json::Value = serde_json::from_str(&config.expect("a file")).expect("JSON");
    let layers = config["text_config"]["num_hidden_layers"].as_u64().expect("a number") as usize;
    let messages = [Message::user(1, "How many objects are there?")];
    let picture = [Rgb8Image::from_raw(300, 200, vec![90; 300 * 200 * 3]).expect("a picture")];
    let launches = |max_tokens, kv| {
        let driver = Arc::new(PlanDriver::of_arch(Arch::Sm90a));
        let device = CudaDevice::on(driver.clone(), Arc::default());
        let mut cx = Ctx::new(&device, Precision { kv, ..Precision::default() }).expect("a stream");
        let files = &ocelli_models::demo::FILES;
        let model = ocelli_models::load(files, &mut cx).expect("the demo model");
        let pipeline = Pipeline::new(files, model, 2).expect("its tokenizer");
        let params = SamplingParams { max_tokens, ignore_eos: true, ..Default::default() };
        let request = pipeline.request(&messages, &picture, params).expect("a request");
        let step = |_, _: Piece<'_>| ControlFlow::Continue(());
        generate(&mut cx, &pipeline.model, &pipeline.tokenizer, vec![request], step).expect("an answer");
        driver.launches()
    };
    for (kv, of_layer) in [(None, 5), (Some(DType::BF16), 5), (Some(DType::I8), 6)] {
        assert_eq!(launches(2, kv) - launches(1, kv), of_layer * layers + 4, "pages of {kv:?}");
    }
}

#[test]
fn a_rehearsal_asks_for_the_kernels_of_the_answer() {
    let picture = [Rgb8Image::from_raw(300, 200, vec![90; 300 * 200 * 3]).expect("a picture")];
    let messages = [Message::user(1, "How many objects are there?")];
    for (arch, temperature) in [(Arch::Sm80, 0.0), (Arch::Sm90a, 0.7)] {
        let params = SamplingParams { max_tokens: 12, ignore_eos: true, temperature, ..Default::default() };
        let answered = wanted(arch, |pipeline, cx| {
            let request = pipeline.request(&messages, &picture, params.clone()).expect("a request");
            generate(cx, &pipeline.model, &pipeline.tokenizer, vec![request], |_, _| {
                ControlFlow::Continue(())
            })
            .expect("an answer");
        });
        let rehearsed = wanted(arch, |pipeline, cx| {
            pipeline.rehearse(cx, &messages, &picture, std::slice::from_ref(&params)).expect("a rehearsal");
        });
        assert!(rehearsed.len() > 10, "{} kernels", rehearsed.len());
        let missing: Vec<String> =
            answered.iter().filter(|key| !rehearsed.contains(key)).map(ToString::to_string).collect();
        assert!(missing.is_empty(), "{arch}: {missing:#?}");
        // Products of a step normalize their input: of query, key and value, which are turned at once, and of gate and up.
        for (heads, gated) in [("true", "false"), ("false", "true")] {
            let step = |key: &KernelKey| {
                let is = |name, value: &str| key.defines.get(name).is_some_and(|given| given == value);
                let of_step = is("NORM", "true") && is("HEADS", heads) && is("GATED", gated);
                key.path == "ops/matmul/gemv.cu" && of_step
            };
            assert!(answered.iter().any(step), "{arch}: heads {heads}, gated {gated}: {answered:#?}");
        }
    }
}

/// A model answers through `nvidia.rs`, on a stand-in for the driver whose kernels are the emulator's.
#[test]
fn a_golden_model_through_the_drivers_interface() {
    let kernels = host::folder().join("model");
    let variables = [("OCELLI_STANDIN_ARCH", "80")];
    match host::on_stand_in("cuda::on_the_stand_in", &kernels, &variables) {
        Ok(done) => {
            done.well();
            assert!(done.output.contains("kernels for the host"), "{}", done.output);
        }
        Err(why) => ocelli_tests::skip("emulator", &why),
    }
}

/// What the test above runs in a process of its own; elsewhere it is nothing.
#[test]
fn on_the_stand_in() {
    if !host::is_on() {
        return;
    }
    let device = gpu().expect("the stand-in");
    let dir = golden(SAMPLE[0]);
    // The same work on a device that computes nothing tells which kernels it takes.
    let plan = Arc::new(PlanDriver::new(device.caps().clone()));
    run(&dir, &dir, &CudaDevice::on(plan.clone(), Arc::default()));
    let folder = std::env::var_os("OCELLI_CUBINS").map(PathBuf::from).expect("a folder");
    let keys = plan.keys();
    for key in &keys {
        let library = emulator::library(key, Arch::Sm80).expect("a kernel for the host");
        let code = std::fs::read(library).expect("a library");
        Cubins::keep(key, Arch::Sm80, &code, &folder).expect("a file");
    }
    println!("{} kernels for the host", keys.len());
    let report = run(&dir, &dir, &device);
    assert!(report.pass, "{}", explain(&report));
}
