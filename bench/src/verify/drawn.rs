//! Stages of pictures that models draw.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use ocelli_engine::drawing::{self, DrawingParams, DrawingProcessor, SCORES};
use ocelli_engine::files::ModelFiles;
use ocelli_engine::{Ctx, Error, Loaded, Pipeline, Result, Stage};
use ocelli_kernels::{DType, Device};
use serde::Deserialize;

use super::{CaseReport, Golden, Greedy, StageReport, compare_ids, largest};

/// One case: a prompt, and the picture that is drawn of it.
#[derive(Deserialize)]
pub(super) struct Case {
    name: String,
    prompt: String,
    guidance_scale: f32,
    input_ids: Vec<u32>,
    image_tokens: Vec<u32>,
}

/// Grey levels that a picture may be off.
const LEVELS: f64 = 2.0;

/// Codes of a real picture and the values that they become, beside the cases.
const ROUND: &str = "vq";

pub(super) fn verify_case(
    files: &ModelFiles,
    device: &dyn Device,
    mut cx: Ctx,
    loaded: Loaded,
    golden: &Golden,
    case: &Case,
) -> Result<CaseReport> {
    let pipeline = Pipeline::new(files, loaded, device.caps().units)?;
    let (name, backend, dtype) = (&*case.name, device.caps().backend, cx.precision().coarsest());
    let painter = drawing::painter(&*pipeline.model)?;
    let processor = pipeline.processor.drawing().ok_or_else(|| {
        Error::Request(format!("{name}: models of family {} do not draw", pipeline.model.info().family))
    })?;
    // The stored prompt ends with what begins a picture, which the processor adds.
    let text = pipeline.tokenizer.decode(&case.input_ids[case.input_ids.len().saturating_sub(1)..], false)?;
    let text = case.prompt.strip_suffix(&*text).unwrap_or(&case.prompt);
    let mut guide = processor.lay_out(text, &pipeline.tokenizer)?;
    let mut stages = vec![compare_ids("token_ids", &guide.with.tokens, &case.input_ids)];
    guide.with.tokens.clone_from(&case.input_ids);

    let seen: Arc<Mutex<Vec<Vec<f32>>>> = Arc::default();
    let sink = seen.clone();
    cx.observe(Some(Box::new(move |stage: Stage, _, values| {
        if let (SCORES, Ok(mut seen)) = (stage, sink.lock()) {
            seen.push(values.to_vec());
        }
    })));
    let greedy =
        DrawingParams { guidance: case.guidance_scale, temperature: 0.0, ..DrawingParams::default() };
    let drawn = drawing::draw(&mut cx, &pipeline.model, &guide, &greedy, || ControlFlow::Continue(()))?;
    cx.observe(None);
    let got = drawn.codes.into_iter().next().unwrap_or_default();
    let seen = seen.lock().map(|mut seen| std::mem::take(&mut *seen)).unwrap_or_default();
    let mut not_shown = Vec::new();
    // After other codes come other scores.
    let last = seen.last().filter(|_| got == case.image_tokens || dtype == DType::F32);
    for (key, scores) in [("scores_first", seen.first()), ("scores_last", last)] {
        match scores {
            Some(scores) => stages.push(golden.compare(name, key, scores, backend, dtype)?),
            None => not_shown.push(key.to_owned()),
        }
    }
    let values = drawing::pixels(&mut cx, painter, &case.image_tokens)?;
    stages.push(golden.compare(name, "decoded", &values, backend, dtype)?);
    if dtype == DType::F32 {
        stages.push(picture(processor, &values, painter.canvas().width, &golden.ints(name, "image_uint8")?)?);
        if golden.has(ROUND, "image_tokens") {
            let codes: Vec<u32> =
                golden.ints(ROUND, "image_tokens")?.into_iter().map(|code| code as u32).collect();
            let values = drawing::pixels(&mut cx, painter, &codes)?;
            let compared = golden.compare(ROUND, "decoded", &values, backend, dtype)?;
            stages.push(StageReport { name: "decoded_picture".into(), ..compared });
        }
    }

    let counted = match dtype {
        DType::F32 => case.image_tokens.len(),
        _ => golden.firm_tokens(name, "")?.min(case.image_tokens.len()),
    };
    let equal = got.get(..counted) == case.image_tokens.get(..counted);
    Ok(CaseReport {
        name: name.to_owned(),
        pass: equal && stages.iter().all(|stage| stage.pass),
        compared: stages.len() - 1,
        stages,
        not_shown,
        greedy: Greedy { expected: case.image_tokens.clone(), got, counted },
    })
}

/// Compares the levels of a picture with those of the reference, `[3, height, width]`.
fn picture(
    processor: &dyn DrawingProcessor,
    values: &[f32],
    width: usize,
    expected: &[i64],
) -> Result<StageReport> {
    let picture = processor.picture(values, width)?;
    let plane = picture.width() * picture.height();
    let channels = (0..3).flat_map(|channel| picture.data().iter().skip(channel).step_by(3));
    let got: Vec<f32> = channels.map(|&level| level.into()).collect();
    let expected: Vec<f32> = expected.iter().map(|&level| level as f32).collect();
    let max_abs = largest(&got, &expected);
    let note = (expected.len() != 3 * plane)
        .then(|| format!("expected {} values, found {}", expected.len(), 3 * plane));
    let pass = note.is_none() && max_abs <= LEVELS;
    Ok(StageReport { name: "picture".into(), max_abs, tolerance: LEVELS, mean: None, pass, note })
}
