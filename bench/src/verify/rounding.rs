//! How coarsely a model's stages round in f32, where a reference does not tell it of transformers' own run.
//!
//! The measure is what no two right engines need agree on: the same pass again, with pixels that are one rounding off as
//! `drift_f32` of `tests/golden/reference.py` has them, by this device's kernels and by those of the CPU's other
//! instruction sets, which sum in other orders.

use std::collections::BTreeMap;
use std::sync::Arc;

use ocelli_engine::image::PreparedImage;
use ocelli_engine::{Ctx, Pipeline, Prompt, Result};
use ocelli_kernels::Device;
use ocelli_kernels::cpu::CpuDevice;
use ocelli_kernels::cpu::isa::Isa;
use ocelli_kernels::cpu::pool::Pool;

use super::largest;
use crate::compare::{Values, observed};

/// Loads the model on a device.
pub(super) type Opener<'a> = dyn Fn(&dyn Device) -> Result<(Ctx, Pipeline)> + 'a;

/// Passes of a device with pixels that are off.
const RUNS: u64 = 4;

/// The largest difference from `seen` that a stage of any of the passes has. `open` loads the model on a device.
pub(super) fn measure(
    open: &Opener<'_>,
    (cx, pipeline): (&mut Ctx, &Pipeline),
    prepared: &[PreparedImage],
    prompt: &Prompt,
    seen: &Values,
) -> Result<BTreeMap<(&'static str, Option<usize>), f64>> {
    let mut most = BTreeMap::new();
    let mut pass = |cx: &mut Ctx, pipeline: &Pipeline, run: u64| -> Result<()> {
        let near: Option<Vec<_>> = prepared.iter().map(|image| rounded(pipeline, image, run)).collect();
        for (stage, values) in
            observed(cx, pipeline, near.as_deref().unwrap_or(prepared), prompt, (&[], 8))?.0
        {
            let gap = seen.get(&stage).map_or(0.0, |seen: &Vec<f32>| largest(&values, seen));
            let most: &mut f64 = most.entry(stage).or_default();
            *most = most.max(gap);
        }
        Ok(())
    };
    for run in 0..if prepared.is_empty() { 0 } else { RUNS } {
        pass(cx, pipeline, run)?;
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for isa in Isa::available() {
        let (mut cx, pipeline) = open(&CpuDevice::at(isa, Arc::new(Pool::new(threads))))?;
        pass(&mut cx, &pipeline, RUNS)?;
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
