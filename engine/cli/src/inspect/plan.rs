//! The plan of a request: every kernel that would run, and the memory that it takes.

use std::collections::HashMap;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::generate::Scheduler;
use ocelli_engine::image::Rgb8Image;
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::text::Message;
use ocelli_engine::{Ctx, Pipeline, Vlm};
use ocelli_kernels::{NullLog, NullRecord};
use serde::Serialize;

use crate::args::InspectArgs;
use crate::fail::Failure;

/// A request, the kernels that it runs and the memory that it takes.
#[derive(Debug, Serialize)]
pub struct Plan {
    pub request: Request,
    pub memory: Memory,
    pub phases: Vec<Phase>,
}

/// What is planned for.
#[derive(Debug, Serialize)]
pub struct Request {
    /// Width and height of each picture.
    pub images: Vec<(usize, usize)>,
    /// Tiles that go through the tower.
    pub tiles: usize,
    /// Tokens that stand for pictures.
    pub image_tokens: usize,
    /// Tokens of the whole prompt.
    pub prompt_tokens: usize,
    pub max_tokens: usize,
}

/// Bytes that are in use at once at most.
#[derive(Debug, Serialize)]
pub struct Memory {
    /// Weights that are read, in the file's own memory on a CPU.
    pub weights: u64,
    /// Keys and values of prompt and answer.
    pub kv_cache: u64,
    pub kv_per_token: u64,
    /// Features of the pictures.
    pub image_features: u64,
    pub activations: u64,
    pub total: u64,
}

/// A stage of the request.
#[derive(Debug, Serialize)]
pub struct Phase {
    /// `vision` (tower and connector), `prefill`, or `decode` (one token after the prompt).
    pub name: &'static str,
    pub flops: u64,
    /// Bytes that must be read and written.
    pub bytes: u64,
    pub steps: Vec<Step>,
}

/// One op of a module, or of modules that differ by their number alone.
#[derive(Debug, Serialize)]
pub struct Step {
    /// Path of the modules: `model.text_model.layers.0-29.mlp`.
    pub module: String,
    pub op: &'static str,
    pub spec: String,
    /// The kernel that would run it.
    pub variant: Option<&'static str>,
    /// Why none would.
    pub refused: Option<String>,
    /// How often it runs.
    pub count: usize,
    /// Bytes of the modules' weights.
    pub weight_bytes: u64,
    pub flops: u64,
    /// Bytes that must be read and written.
    pub bytes: u64,
}

impl Plan {
    /// Runs the request that the arguments describe on a context that computes nothing.
    pub fn make(
        args: &InspectArgs,
        files: &ModelFiles,
        model: Box<dyn Vlm>,
        cx: &mut Ctx,
        log: &NullLog,
        weights: u64,
    ) -> Result<Self, Failure> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let pipeline = Pipeline::new(files, model, threads)?;
        let sizes = sizes(args)?;
        let images =
            sizes.iter().map(|&(width, height)| blank(width, height)).collect::<Result<Vec<_>, _>>()?;
        let info = pipeline.model.info().clone();
        // The model's own end tokens must not end what is planned: every value of a dry run is zero.
        let params =
            SamplingParams { max_tokens: args.max_tokens, ignore_eos: true, ..SamplingParams::default() };
        let _ = log.take();
        let mut request =
            pipeline.request(cx, &[Message::user(images.len(), String::new())], &images, params)?;
        drop(images);
        let mut phases = Vec::new();
        if !sizes.is_empty() {
            phases.push(Phase::of("vision", &log.take()));
        }
        let filler = u32::from(info.image_token == 0);
        let room = info.max_positions.saturating_sub(request.prompt.len());
        if args.prompt_tokens >= room {
            return Err(Failure::new(format!(
                "prompt: expected at most {} tokens, found {}",
                info.max_positions.saturating_sub(1),
                request.prompt.len().saturating_add(args.prompt_tokens)
            )));
        }
        request.prompt.extend(std::iter::repeat_n(filler, args.prompt_tokens));
        let prompt_tokens = request.prompt.len();
        let image_tokens = request.images.iter().map(|features| features.size(0)).sum();
        let image_features = request.images.iter().map(|features| features.view().bytes()).sum();

        let requests = [request];
        let kv_tokens = Scheduler::tokens_for(&*pipeline.model, &requests);
        let mut scheduler = Scheduler::new(cx, &*pipeline.model, pipeline.tokenizer.clone(), kv_tokens)?;
        for request in requests {
            scheduler.submit(request)?;
        }
        while cx.timings.prefill_tokens < prompt_tokens && !scheduler.is_idle() {
            scheduler.step(cx)?;
        }
        phases.push(Phase::of("prefill", &log.take()));
        if !scheduler.is_idle() {
            scheduler.step(cx)?;
            phases.push(Phase::of("decode", &log.take()));
        }
        let kv_per_token = info.kv.bytes_per_token(cx.dtype());
        let kv_cache = kv_per_token * kv_tokens as u64;
        let activations = cx.peak_activations() as u64;
        Ok(Self {
            request: Request {
                images: sizes,
                tiles: cx.timings.tiles,
                image_tokens,
                prompt_tokens,
                max_tokens: args.max_tokens,
            },
            memory: Memory {
                weights,
                kv_cache,
                kv_per_token,
                image_features,
                activations,
                total: weights + kv_cache + image_features + activations,
            },
            phases,
        })
    }

    /// The ops that no kernel runs.
    pub fn refusals(&self) -> Vec<String> {
        let steps = self.phases.iter().flat_map(|phase| &phase.steps);
        let reason = |step: &Step| {
            let reasons = step.refused.as_ref()?;
            Some(format!("{}: {} {}: no kernel runs it ({reasons})", step.module, step.op, step.spec))
        };
        steps.filter_map(reason).collect()
    }
}

impl Phase {
    fn of(name: &'static str, records: &[NullRecord]) -> Self {
        let (flops, bytes) = records
            .iter()
            .fold((0, 0), |(flops, bytes), record| (flops + record.cost.flops, bytes + record.cost.bytes()));
        Self { name, flops, bytes, steps: group(records) }
    }
}

/// Width and height of each picture.
fn sizes(args: &InspectArgs) -> Result<Vec<(usize, usize)>, Failure> {
    let mut sizes = args.image_sizes.clone();
    if sizes.is_empty() {
        sizes.push((512, 512));
    }
    if let Some(count) = args.images.map(usize::from) {
        if count < args.image_sizes.len() {
            let given = args.image_sizes.len();
            return Err(Failure::usage(format!(
                "--images {count}: expected at least {given}, the number of --image-size"
            )));
        }
        sizes.resize(count, sizes[sizes.len() - 1]);
    }
    Ok(sizes)
}

fn blank(width: usize, height: usize) -> Result<Rgb8Image, Failure> {
    Rgb8Image::from_raw(width, height, vec![0; width * height * 3])
        .ok_or_else(|| Failure::usage(format!("--image-size: {width}x{height} is no picture")))
}

/// Ops with everything in common but the numbers in their modules' paths become one step.
fn group(records: &[NullRecord]) -> Vec<Step> {
    struct Group<'a> {
        first: &'a NullRecord,
        step: Step,
        /// The paths, each with the numbers in it.
        modules: HashMap<&'a str, Vec<usize>>,
    }
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut places: HashMap<(String, &str, &str, Option<&str>), usize> = HashMap::new();
    for record in records {
        let (pattern, numbers) = pattern(&record.scope);
        let variant = record.variant.as_ref().ok().copied();
        let place = *places.entry((pattern, record.op, &record.spec, variant)).or_insert_with(|| {
            let step = Step {
                module: String::new(),
                op: record.op,
                spec: record.spec.clone(),
                variant,
                refused: record.variant.as_ref().err().cloned(),
                count: 0,
                weight_bytes: 0,
                flops: 0,
                bytes: 0,
            };
            groups.push(Group { first: record, step, modules: HashMap::new() });
            groups.len() - 1
        });
        let Some(group) = groups.get_mut(place) else { continue };
        group.step.count += 1;
        group.step.flops += record.cost.flops;
        group.step.bytes += record.cost.bytes();
        if group.modules.insert(&record.scope, numbers).is_none() {
            group.step.weight_bytes += record.weights;
        }
    }
    groups
        .into_iter()
        .map(|Group { first, mut step, modules }| {
            step.module = merged(&first.scope, &modules.into_values().collect::<Vec<_>>());
            step
        })
        .collect()
}

fn number(part: &str) -> Option<usize> {
    part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok()).flatten()
}

/// A path with its numbers taken out, and the numbers.
fn pattern(path: &str) -> (String, Vec<usize>) {
    let mut numbers = Vec::new();
    let parts = path.split('.').map(|part| match number(part) {
        Some(n) => {
            numbers.push(n);
            "*"
        }
        None => part,
    });
    (parts.collect::<Vec<_>>().join("."), numbers)
}

/// A path in which each number is replaced by all that occur in its place: `layers.0-3,7`.
fn merged(path: &str, all: &[Vec<usize>]) -> String {
    let mut place = 0;
    let parts = path.split('.').map(|part| {
        if number(part).is_none() {
            return part.to_owned();
        }
        let mut numbers: Vec<usize> = all.iter().filter_map(|numbers| numbers.get(place).copied()).collect();
        place += 1;
        numbers.sort_unstable();
        numbers.dedup();
        ranges(&numbers)
    });
    parts.collect::<Vec<_>>().join(".")
}

fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocelli_kernels::Cost;

    fn record(scope: &str, spec: &str, weights: u64) -> NullRecord {
        let cost = Cost { flops: 10, read: 2, written: 1 };
        NullRecord {
            scope: scope.into(),
            op: "matmul",
            spec: spec.into(),
            variant: Ok("gemm"),
            cost,
            weights,
        }
    }

    #[test]
    fn layers_become_one_step_and_weights_count_once() {
        let mut records: Vec<_> = [0, 1, 2, 5].map(|i| record(&format!("m.layers.{i}.mlp"), "m=4", 7)).into();
        records.extend_from_within(..);
        records.push(record("m.layers.0.mlp", "m=1", 7));
        records.push(record("lm_head", "m=1", 3));
        let steps = group(&records);
        assert_eq!(steps.len(), 3);
        assert_eq!(steps[0].module, "m.layers.0-2,5.mlp");
        assert_eq!((steps[0].count, steps[0].weight_bytes, steps[0].flops, steps[0].bytes), (8, 28, 80, 24));
        assert_eq!((steps[1].module.as_str(), steps[1].count), ("m.layers.0.mlp", 1));
        assert_eq!((steps[2].module.as_str(), steps[2].weight_bytes), ("lm_head", 3));
    }

    #[test]
    fn modules_of_other_kernels_stay_apart() {
        let mut other = record("m.layers.1.mlp", "m=4", 7);
        other.variant = Err("gemm: why".into());
        let steps = group(&[record("m.layers.0.mlp", "m=4", 7), other]);
        assert_eq!(steps.len(), 2);
        assert_eq!(steps[1].refused.as_deref(), Some("gemm: why"));
    }
}
