//! The demo model on its evaluation set.

use std::path::Path;

use ocelli_bench::eval::{Report, evaluate};
use ocelli_engine::files::ModelFiles;
use ocelli_engine::{Ctx, Pipeline, Precision};
use ocelli_kernels::{Backend, DeviceOptions};

fn run(files: &ModelFiles, precision: Precision) -> Report {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let mut cx = Ctx::new(&*device, precision).expect("a stream");
    let model = ocelli_models::load(files, &mut cx).expect("the demo model");
    let pipeline = Pipeline::new(files, model, 2).expect("its tokenizer");
    let eval = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/eval");
    evaluate(&pipeline, &mut cx, &eval, 1).expect("the evaluation set")
}

/// Row by row what transformers answers in f32: the smallest gap between two logits is 0.12.
#[test]
fn f32_answers_as_transformers_does() {
    let report = run(&ocelli_models::demo::FILES, Precision::default());
    let differing = report.differing.expect("answers.jsonl");
    assert_eq!(report.rows, 1756);
    assert!(
        differing.is_empty(),
        "{} rows differ: {:?}",
        differing.len(),
        &differing[..differing.len().min(5)]
    );
    assert_eq!(report.correct, 1741);
}
