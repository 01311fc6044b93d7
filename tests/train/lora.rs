//! Adapters: PEFT's gradients and logits, what they learn, and how they answer.

use std::path::Path;
use std::sync::Arc;

use ocelli_engine::adapter::{LowRank, Peft, module_of, tensor_name};
use ocelli_engine::weights::{Checkpoint, TensorFile};
use ocelli_engine::{Ctx, Precision};
use ocelli_kernels::{Backend, DType, DeviceOptions};
use ocelli_models::Leftovers;
use ocelli_tests::command::{Temp, demo, ocelli};
use ocelli_tests::root;
use ocelli_train::{Learner, Parameter, Parameters, Trainer};
use serde_json::{Value, json};

use super::reference::{Reference, folder, wide};
use super::runs::{rows, text, yes_or_no};

/// The gradient of each matrix of an adapter that PEFT wrote, beside a model whose weights are not trained.
#[test]
fn gradients_are_those_of_peft() {
    let mut reference = Reference::frozen("smolvlm");
    let examples = reference.examples();
    let known = TensorFile::open(&folder().join("lora/train.safetensors")).expect("a reference");
    let peft = Peft::open(&folder().join("lora")).expect("an adapter");
    let stored = TensorFile::open(&folder().join("lora/adapter_model.safetensors")).expect("tensors");
    let Reference { cx, pipeline, .. } = &mut reference;
    let matrix = |name: &str| Parameter {
        name: name.to_owned(),
        shape: stored.info(name).expect("a matrix").shape.to_vec(),
        bytes: 0..stored.info(name).expect("a matrix").bytes,
        stored: DType::F32,
        trained: true,
    };
    let all: Vec<Parameter> = stored.names().map(matrix).collect();
    let values = |parameter: &Parameter| Ok(stored.floats(&parameter.name)?);
    let (parameters, file) = Parameters::place(cx, "the adapter", all.clone(), values).expect("placed");
    let modules = all.iter().filter_map(|parameter| match module_of(&parameter.name) {
        Some((module, "A")) => Some((module.to_owned(), parameter.shape[0])),
        _ => None,
    });
    let low: Vec<LowRank> = modules
        .map(|(module, r)| {
            let view = |which: &str| file.view(&tensor_name(&module, which)).expect("a matrix");
            LowRank { a: view("A"), b: view("B"), scale: peft.config.scale(&module, r), module }
        })
        .collect();
    assert_eq!(low.len(), 8);
    let adapter = cx.place_adapter("golden", &low).expect("it fits");
    cx.adapt(Some(Arc::new(adapter)));
    let mut trainer = Trainer::new(&*pipeline.model, &parameters, 4096);
    let loss = trainer.gradient(cx, &examples).expect("a gradient").mean();
    let known_loss = wide(&known, "loss")[0];
    assert!((loss - known_loss).abs() <= 1e-5 * known_loss, "loss {loss}, PEFT's {known_loss}");
    for Parameter { name, .. } in &all {
        let found = parameters.gradient(cx, name).expect("a gradient");
        let known = wide(&known, &format!("grad.{name}"));
        let norm = known.iter().map(|v| v * v).sum::<f64>().sqrt();
        let off = found.iter().zip(&known).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>().sqrt();
        assert!(off <= 1e-4 * norm, "the gradient of {name} is off by {:.2e}", off / norm);
    }
}

/// Beside the weights and added to them, an adapter gives the same losses.
#[test]
fn beside_the_weights_or_in_them() {
    let mut reference = Reference::frozen("smolvlm");
    let examples = reference.examples();
    let peft = Peft::open(&folder().join("lora")).expect("an adapter");
    let known = wide(&TensorFile::open(&folder().join("lora/train.safetensors")).expect("known"), "loss")[0];
    let loss = |reference: &mut Reference| {
        let Reference { cx, pipeline, parameters, .. } = reference;
        Trainer::new(&*pipeline.model, parameters, 4096).loss(cx, &examples).expect("a loss").mean()
    };
    let plain = loss(&mut reference);
    let adapter = peft.place(&mut reference.cx, "golden").expect("it fits");
    reference.cx.adapt(Some(Arc::new(adapter)));
    let beside = loss(&mut reference);
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    reference.cx = Ctx::new(&*device, Precision::default()).expect("a context");
    let files = ocelli_engine::files::ModelFiles::dir(folder().join("smolvlm"));
    let merged = Checkpoint::open(&files).expect("a checkpoint").merged_with(&peft).expect("it fits");
    let loaded =
        ocelli_models::load_from(&files, &merged, &mut reference.cx, Leftovers::Refuse).expect("a model");
    merged.deltas().check("golden").expect("all of it is merged");
    reference.pipeline = ocelli_engine::Pipeline::new(&files, loaded, 1).expect("a pipeline");
    let within = loss(&mut reference);
    assert!((plain - known).abs() > 0.05 * known, "the adapter changes too little to tell");
    for (what, found) in [("beside", beside), ("merged", within)] {
        assert!((found - known).abs() <= 1e-5 * known, "{what}: loss {found}, PEFT's {known}");
    }
}

/// A small adapter teaches the demo model other words; it is used beside the weights, added to them as they are loaded, or written into them;
/// two of them answer in one batch.
#[test]
fn adapters_learn_and_answer() {
    let temp = Temp::new();
    let data = yes_or_no(&temp, "rows.jsonl", 200, ["one", "zero"]);
    let out = temp.path("numbers");
    let args =
        ["train", "sft", "--data", text(&data), "--out", text(&out), "--lora", "r=3,alpha=6", "--json"];
    let done = ocelli(&[&args[..], &["--steps", "40", "--batch", "16", "--rate", "3e-3"]].concat()).json();
    let parameters = done["parameters"].as_u64().expect("a number");
    assert!(parameters < 34_500, "at most 2% of the demo's 1.7 million: {done}");
    let picture = root().join("models/demo/examples/01.png");
    let question = "Is there a circle?";
    let ask =
        |more: &[&str]| ocelli(&[&["run", "--image", text(&picture), question][..], more].concat()).well();
    let plain = ask(&[]);
    let adapted = ask(&["--adapter", text(&out)]);
    assert!(["yes\n", "no\n"].contains(&&*plain), "{plain}");
    assert_eq!(adapted, if plain == "yes\n" { "one\n" } else { "zero\n" });
    assert_eq!(ask(&["--adapter", text(&out), "--merge-adapter"]), adapted);
    assert_eq!(ask(&["--adapter", text(&out), "--dtype", "bf16"]), adapted);
    assert_eq!(ask(&["--adapter", &format!("numbers={}", text(&out))]), adapted);
    let merged = temp.path("merged");
    let told = ocelli(&["train", "merge", "--adapter", text(&out), "--out", text(&merged)]).well();
    assert!(told.contains("35 matrices"), "{told}");
    assert_eq!(ask(&["--model", text(&merged)]), adapted);
    // On quantized weights too, which stay as they are.
    let quantized = temp.path("int8");
    ocelli(&["quantize", "--model", text(&demo()), "--out", text(&quantized), "--format", "int8"]).well();
    assert_eq!(ask(&["--model", text(&quantized), "--adapter", text(&out)]), adapted);
    let on_int8 = temp.path("on-int8");
    let args = ["train", "sft", "--model", text(&quantized), "--data", text(&data), "--out", text(&on_int8)];
    let done =
        ocelli(&[&args[..], &["--lora", "r=2,targets=q_proj+v_proj", "--steps", "2", "--json"]].concat())
            .json();
    assert!(done["loss"].as_f64().is_some_and(f64::is_finite), "{done}");
    let refused = ocelli(&[
        "train",
        "merge",
        "--model",
        text(&quantized),
        "--adapter",
        text(&out),
        "--out",
        text(&temp.path("x")),
    ]);
    refused.fails(1, &["quantized matrices keep their adapter beside them"]);
}

/// What cannot be used is named.
#[test]
fn bad_adapters_are_refused() {
    let temp = Temp::new();
    let golden = folder().join("lora");
    let copy = |change: &dyn Fn(&mut Value)| {
        let copy = Temp::copy_of(&golden);
        copy.edit("adapter_config.json", |config| change(config));
        copy
    };
    let model = folder().join("smolvlm");
    let run = |adapter: &Path, model: &Path| {
        ocelli(&["run", "--model", text(model), "--adapter", text(adapter), "Hello"])
    };
    run(&copy(&|config| config["use_dora"] = true.into()).path(""), &model).fails(1, &["use_dora"]);
    run(&copy(&|config| config["peft_type"] = "IA3".into()).path(""), &model)
        .fails(1, &["expected LORA, found IA3"]);
    run(&copy(&|config| config["modules_to_save"] = json!(["lm_head"])).path(""), &model)
        .fails(1, &["modules_to_save"]);
    run(&golden, &demo()).fails(1, &["expected shape"]);
    run(&temp.path("absent"), &model).fails(1, &["absent"]);
    let data = rows(&temp, "rows.jsonl", 2, |_| "two".to_owned());
    let args = ["train", "sft", "--data", text(&data), "--out", text(&temp.path("out"))].map(str::to_owned);
    let lora = |how: &str| ocelli(&[&args[..], &["--lora".to_owned(), how.to_owned()]].concat());
    lora("r=2,targets=nothing").fails(1, &["found `nothing`; there are down_proj, "]);
    lora("r=0").fails(2, &["expected a rank"]);
    lora("alpha=3").fails(2, &["expected a rank"]);
}
