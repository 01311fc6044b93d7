//! References without a tokenizer: `golden.safetensors` with `input_ids [tokens]`, maybe `pixel_values` of one picture, and the `logits
//! [tokens, vocabulary]` of every token. References of quantized checkpoints are such.

use std::sync::{Arc, Mutex};

use ocelli_engine::batch::{Batch, Chunk};
use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{PreparedImage, Rgb8Image};
use ocelli_engine::kv::KvCache;
use ocelli_engine::weights::TensorFile;
use ocelli_engine::{Ctx, Error, Features, Gives, Model, Prompt, Result, Stage};
use ocelli_kernels::{DType, Device};
use ocelli_models::Leftovers;
use serde::Deserialize;

use super::{CaseReport, Greedy, StageReport, largest, tolerance, with_stored_pixels};

/// How many times larger than those of other stages differences of logits may be: references are sums of dequantized weights in f32, and
/// the kernels add codes, scales and zero points apart.
const LOGITS: f64 = 5.0;

/// Names of the token that stands for a row of a picture's features.
#[derive(Default, Deserialize)]
struct Config {
    #[serde(alias = "image_token_id")]
    image_token_index: Option<u32>,
}

/// Whether a reference is such a one.
pub(super) fn is_bare(golden: &TensorFile) -> bool {
    golden.info("logits").is_some() && golden.info("input_ids").is_some()
}

/// The place of the largest logit of each row, and by how much it is larger than the next.
fn best(rows: &[f32], vocab: usize) -> Vec<(u32, f32)> {
    let of_row = |row: &[f32]| {
        let (mut first, mut at, mut second) = (f32::NEG_INFINITY, 0, f32::NEG_INFINITY);
        for (i, &logit) in row.iter().enumerate() {
            if logit > first {
                (second, first, at) = (first, logit, i);
            } else {
                second = second.max(logit);
            }
        }
        (at as u32, first - second)
    };
    rows.chunks_exact(vocab.max(1)).map(of_row).collect()
}

pub(super) fn verify_case(
    files: &ModelFiles,
    device: &dyn Device,
    mut cx: Ctx,
    golden: &TensorFile,
) -> Result<CaseReport> {
    let loaded = ocelli_models::load_with(files, &mut cx, Leftovers::Refuse)?;
    let Model::Vlm(model) = &loaded.model else {
        return Err(Error::other_kind(files, &loaded.model, Gives::Answers));
    };
    let info = model.info();
    let tokens: Vec<u32> = golden.ints("input_ids")?.into_iter().map(|id| id as u32).collect();
    let expected = golden.floats("logits")?;
    if tokens.is_empty() || expected.len() % tokens.len() != 0 {
        let (values, tokens) = (expected.len(), tokens.len());
        return Err(Error::Request(format!(
            "logits: expected rows for {tokens} tokens, found {values} values"
        )));
    }
    let prepared = pictures(&*loaded.processor, golden)?;
    let features: Vec<Option<Features>> =
        model.encode(&mut cx, &prepared.iter().collect::<Vec<_>>())?.into_iter().map(Some).collect();
    let prompt = match prepared.is_empty() {
        true => Prompt::text(tokens),
        false => {
            let config: Config = files.require_json("config.json")?;
            let image = config.image_token_index.ok_or_else(|| Error::Config {
                path: files.describe("config.json"),
                reason: "expected image_token_index or image_token_id, found neither".into(),
            })?;
            let rows = tokens.iter().filter(|&&token| token == image).count();
            Prompt::with_image_tokens(tokens, image, &[rows])?
        }
    };

    let seen: Arc<Mutex<Vec<f32>>> = Arc::default();
    let sink = seen.clone();
    cx.observe(Some(Box::new(move |stage: Stage, _, values| {
        if let (true, Ok(mut seen)) = (stage.part == Stage::LOGITS.part, sink.lock()) {
            seen.extend_from_slice(values);
        }
    })));
    let mut kv = KvCache::for_one(&mut cx, &info.kv, prompt.extent(), prompt.len())?;
    let chunk = Chunk {
        seq: kv.open(prompt.memory_rows()),
        prompt: &prompt,
        features: &features,
        tokens: &prompt.tokens,
        want: prompt.len(),
    };
    let batch = Batch { chunks: vec![chunk], ids: None };
    cx.scope(|cx| {
        let packed = batch.pack(cx, &mut kv, info.packing())?;
        model.forward(cx, &packed, &kv).map(drop)
    })?;
    cx.observe(None);
    let got = seen.lock().map(|mut seen| std::mem::take(&mut *seen)).unwrap_or_default();

    let exact = cx.precision().coarsest() == DType::F32;
    // Coarser activations are off by some of their own steps.
    let most = expected.iter().fold(0.0f64, |most, &logit| most.max(f64::from(logit.abs())));
    let tolerance = match exact {
        true => LOGITS * tolerance(device.caps().backend),
        false => 16.0 * cx.precision().coarsest().roundoff() * most.max(1.0),
    };
    let max_abs = if got.len() == expected.len() { largest(&got, &expected) } else { f64::INFINITY };
    let note = (got.len() != expected.len())
        .then(|| format!("expected {} values, found {}", expected.len(), got.len()));
    let pass = max_abs <= tolerance;
    let logits = StageReport { name: "logits".into(), max_abs, tolerance, mean: None, pass, note };
    // Of each token the one that the model finds likeliest to follow, where the reference is sure of it.
    let vocab = expected.len() / prompt.len();
    let firm: Vec<bool> =
        best(&expected, vocab).iter().map(|&(_, margin)| f64::from(margin) > 2.0 * tolerance).collect();
    let ids = |logits: &[f32]| -> Vec<u32> {
        let all = best(logits, vocab);
        all.iter().zip(&firm).filter(|(_, firm)| **firm).map(|((id, _), _)| *id).collect()
    };
    let greedy = Greedy { expected: ids(&expected), got: ids(&got), counted: ids(&expected).len() };
    Ok(CaseReport {
        name: "logits".into(),
        pass: pass && greedy.got == greedy.expected,
        stages: vec![logits],
        compared: 1,
        not_shown: Vec::new(),
        greedy,
    })
}

/// The reference's picture: one of its size, with its pixels put in.
fn pictures(processor: &dyn ocelli_engine::Processor, golden: &TensorFile) -> Result<Vec<PreparedImage>> {
    let Some(info) = golden.info("pixel_values") else { return Ok(Vec::new()) };
    let &[_, 3, height, width] = info.shape else {
        return Err(Error::Request(format!(
            "pixel_values: expected shape [1, 3, height, width], found {:?}",
            info.shape
        )));
    };
    let blank = Rgb8Image::from_raw(width, height, vec![0; 3 * height * width]);
    let blank = blank.ok_or_else(|| Error::Request("pixel_values: expected a picture, found none".into()))?;
    with_stored_pixels(processor, vec![processor.prepare(&blank, 1)?], &golden.floats("pixel_values")?)
}
