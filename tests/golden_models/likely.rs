//! Log probabilities of tokens are those that follow from transformers' logits.

use std::ops::ControlFlow;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::{Piece, Request, generate};
use ocelli_engine::weights::TensorFile;
use ocelli_engine::{Ctx, Pipeline, Precision, Prompt};
use ocelli_kernels::{Backend, DeviceOptions};

use super::golden;

/// Likeliest tokens that are asked for.
const TOP: usize = 5;
/// What logits on the CPU may be away from transformers', `ocelli verify`'s own bound. A log probability is a logit less the logarithm
/// of a sum that is no further away: twice as much.
const LOGITS: f64 = 2e-4;

/// Natural logarithms of the probabilities of a row, in f64.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - most).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit - most) - sum.ln()).collect()
}

#[test]
fn log_probabilities_are_those_of_transformers() {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    for family in ["llama", "qwen3", "gemma2", "cohere2"] {
        let files = ModelFiles::dir(golden(family).to_str().expect("UTF-8"));
        let mut cx = Ctx::new(&*device, Precision::default()).expect("a stream");
        let model = ocelli_models::load(&files, &mut cx).expect("the model");
        let pipeline = Pipeline::new(&files, model, 2).expect("its tokenizer");
        let inputs = std::fs::read_to_string(golden(family).join("inputs.json")).expect("inputs");
        let inputs: serde_json::Value = serde_json::from_str(&inputs).expect("JSON");
        let reference = TensorFile::open(&golden(family).join("golden.safetensors")).expect("a reference");
        let case = &inputs["cases"][0];
        let ids = case["input_ids"].as_array().expect("ids").iter();
        let ids: Vec<u32> = ids.map(|id| id.as_u64().expect("an id") as u32).collect();
        let name = format!("{}.logits_last8", case["name"].as_str().expect("a name"));
        let logits = reference.floats(&name).expect("logits");
        let (rows, params) = (
            logits.chunks_exact(logits.len() / 8),
            SamplingParams { max_tokens: 1, logprobs: Some(TOP as u32), ..SamplingParams::default() },
        );
        // What comes after each of the last eight tokens.
        for (row, logits) in rows.enumerate() {
            let prompt = Prompt::text(ids[..ids.len() - 7 + row].to_vec());
            let request = Request { prompt, media: Vec::new(), params: params.clone() };
            let go_on = |_: usize, _: Piece<'_>| ControlFlow::Continue(());
            let answers = generate(&mut cx, &pipeline.model, &pipeline.tokenizer, vec![request], go_on);
            let answers = answers.unwrap_or_else(|error| panic!("{family}, row {row}: {error}"));
            let found = &answers[0].logprobs[0];
            let expected = log_softmax(logits);
            let mut order: Vec<usize> = (0..expected.len()).collect();
            order.sort_by(|&a, &b| expected[b].total_cmp(&expected[a]));
            assert_eq!(found.top.len(), TOP);
            for (place, likely) in found.top.iter().enumerate() {
                let about = format!("{family}, row {row}, place {place}: {likely:?}");
                let own = expected[likely.token as usize];
                assert!((f64::from(likely.logprob) - own).abs() <= 2.0 * LOGITS, "{about}, not {own}");
                // Only those that are as near each other may change places.
                let there = expected[order[place]];
                assert!((own - there).abs() <= 4.0 * LOGITS, "{about}, not {}: {there}", order[place]);
            }
            assert_eq!(found.chosen, found.top[0], "{family}, row {row}");
        }
    }
}
