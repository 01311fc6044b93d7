//! How coarsely a model's stages round in f32, where a reference does not tell it of transformers' own run.
//!
//! The measure is what no two right engines need agree on: how far the same pass, by the same kernels, moves when pixels are one
//! rounding off, as `drift_f32` of `tests/golden/reference.py` has them. A wrong result is no less wrong for it: what is measured
//! is never the distance between two kernels.

use std::collections::BTreeMap;

use ocelli_engine::image::PreparedImage;
use ocelli_engine::{Ctx, Pipeline, Prompt, Result};

use super::largest;
use crate::observe::{Values, observed};

/// Passes with pixels that are off.
const RUNS: u64 = 4;

/// The largest difference from `seen`, what the pass with the pixels as they are gave, that a stage of any of the passes has.
pub(super) fn measure(
    cx: &mut Ctx,
    pipeline: &Pipeline,
    prepared: &[PreparedImage],
    prompt: &Prompt,
    seen: &Values,
) -> Result<BTreeMap<(&'static str, Option<usize>), f64>> {
    let mut most: BTreeMap<_, f64> = BTreeMap::new();
    for run in 0..if prepared.is_empty() { 0 } else { RUNS } {
        let near: Option<Vec<_>> = prepared.iter().map(|image| rounded(pipeline, image, run)).collect();
        let Some(near) = near else { break };
        for (stage, values) in observed(cx, pipeline, &near, prompt, (&[], 8))?.0 {
            let gap = seen.get(&stage).map_or(0.0, |seen| largest(&values, seen));
            let most = most.entry(stage).or_default();
            *most = most.max(gap);
        }
    }
    Ok(most)
}

/// The picture with each value one rounding up, down, or as it was.
fn rounded(pipeline: &Pipeline, image: &PreparedImage, run: u64) -> Option<PreparedImage> {
    let mut state = run + 1;
    let off = |value: f32| {
        // The upper bits of a linear congruential generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        value * (1.0 + ((state >> 33) % 3) as f32 * f32::EPSILON - f32::EPSILON)
    };
    let values: Vec<f32> = pipeline.processor.pixel_values(image).into_iter().map(off).collect();
    pipeline.processor.with_pixel_values(image, &values)
}
