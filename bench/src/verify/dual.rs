//! Stages of dual encoders.

use std::collections::BTreeMap;
use std::path::Path;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{DecodeOptions, PreparedImage, decode_file};
use ocelli_engine::{Ctx, EmbeddingPipeline, Loaded, Result};
use ocelli_kernels::Device;
use serde::Deserialize;

use super::{
    CaseReport, Golden, Greedy, compare_ids, compare_pixels, picture, tolerance, with_stored_pixels,
};
use crate::observe::Watch;

/// Arguments that the reference gives to its tokenizer, not to the image processor.
const OF_TEXTS: [&str; 3] = ["padding", "truncation", "max_length"];

/// How much closer vectors of unit length have to be than other stages.
const VECTORS: f64 = 20.0;

/// One case: pictures, and texts that each is compared with.
#[derive(Deserialize)]
pub(super) struct Case {
    name: String,
    images: Vec<String>,
    texts: Vec<String>,
    #[serde(default)]
    processor_kwargs: BTreeMap<String, serde_json::Value>,
    input_ids: Vec<Vec<u32>>,
}

pub(super) fn verify_case(
    files: &ModelFiles,
    reference: &Path,
    device: &dyn Device,
    mut cx: Ctx,
    mut loaded: Loaded,
    golden: &Golden,
    case: &Case,
) -> Result<CaseReport> {
    for (key, value) in case.processor_kwargs.iter().filter(|(key, _)| !OF_TEXTS.contains(&key.as_str())) {
        loaded.processor.set(key, &value.as_str().map_or_else(|| value.to_string(), str::to_owned))?;
    }
    let pipeline = EmbeddingPipeline::new(files, loaded, device.caps().units)?;
    let name = &*case.name;
    let mut stages = Vec::new();

    let mut prepared = Vec::with_capacity(case.images.len());
    for image in &case.images {
        let picture = decode_file(&picture(reference, image), &DecodeOptions::default())?;
        prepared.push(pipeline.prepare(&picture)?);
    }
    let stored = golden.floats(name, "pixel_values")?;
    stages.push(compare_pixels(&*pipeline.processor, &prepared, &stored));
    let prepared = with_stored_pixels(&*pipeline.processor, prepared, &stored)?;

    // What the reference fills up its batch with is left out, unless the model sees it.
    let tokens_kept = golden.mask(name, "attention_mask")?;
    let mut kept = tokens_kept.iter().flatten();
    let mut expected = Vec::with_capacity(case.input_ids.len());
    for ids in &case.input_ids {
        expected.push(ids.iter().copied().filter(|_| *kept.next().unwrap_or(&true)).collect::<Vec<u32>>());
    }
    let texts = case.texts.iter().map(|text| pipeline.tokens(text)).collect::<Result<Vec<_>>>()?;
    stages.push(compare_ids("token_ids", &texts, &expected));

    let seen = Watch::begin(&mut cx);
    let images: Vec<&PreparedImage> = prepared.iter().collect();
    let image_vectors = pipeline.images(&mut cx, &images)?;
    let text_vectors = pipeline.texts(&mut cx, &expected)?;
    let mut seen = seen.end(&mut cx);
    let scoring = pipeline.model.scoring();
    let logits = |rows: &[Vec<f32>], columns: &[Vec<f32>]| -> Vec<f32> {
        rows.iter().flat_map(|a| columns.iter().map(|b| scoring.logit(a, b))).collect()
    };
    seen.insert(("logits_per_image", None), logits(&image_vectors, &text_vectors));
    seen.insert(("logits_per_text", None), logits(&text_vectors, &image_vectors));

    let bound = tolerance(device.caps().backend);
    let patches_kept = golden.mask(name, "pixel_attention_mask")?;
    let (mut compared, mut not_shown) = (0, Vec::new());
    for (key, kept, bound) in [
        ("vision_last_hidden", patches_kept, bound),
        ("image_embeds", None, bound / VECTORS),
        ("text_last_hidden", tokens_kept, bound),
        ("text_embeds", None, bound / VECTORS),
        ("logits_per_image", None, bound),
        ("logits_per_text", None, bound),
    ] {
        if !golden.has(name, key) {
            continue;
        }
        let Some(got) = seen.get(&(key, None)) else {
            not_shown.push(key.to_owned());
            continue;
        };
        let all = golden.floats(name, key)?;
        let expected = match kept {
            None => all,
            Some(kept) => {
                let rows = all.chunks_exact((all.len() / kept.len().max(1)).max(1));
                rows.zip(kept).filter(|(_, kept)| *kept).flat_map(|(row, _)| row).copied().collect()
            }
        };
        stages.push(golden.compare_with(name, key, got, &expected, (bound, cx.precision().coarsest()))?);
        compared += 1;
    }
    Ok(CaseReport {
        name: case.name.clone(),
        pass: compared > 0 && stages.iter().all(|stage| stage.pass),
        stages,
        compared,
        not_shown,
        greedy: Greedy::default(),
    })
}

impl Golden {
    /// Which rows a mask keeps; `None` where the reference has none.
    fn mask(&self, case: &str, key: &str) -> Result<Option<Vec<bool>>> {
        if !self.has(case, key) {
            return Ok(None);
        }
        Ok(Some(self.ints(case, key)?.into_iter().map(|value| value != 0).collect()))
    }
}
