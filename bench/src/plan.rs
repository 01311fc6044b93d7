//! The plan of a request: every kernel that would run, and the memory that it takes.

use std::collections::HashMap;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{PreparedImage, Rgb8Image};
use ocelli_engine::prompt::{Positions, Prompt};
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::{Event, Limits, Media, Scheduler};
use ocelli_engine::text::Message;
use ocelli_engine::{Ctx, EmbeddingPipeline, Error, Gives, Loaded, Pipeline, Result};
use ocelli_kernels::{NullLog, NullRecord};
use serde::Serialize;

/// A request to plan.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Width and height of each picture.
    pub images: Vec<(usize, usize)>,
    /// Tokens of text, besides pictures and chat template.
    pub prompt_tokens: usize,
    /// Most tokens of the answer.
    pub max_tokens: usize,
}

/// A request, the kernels that it runs and the memory that it takes.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// What is planned for.
    pub request: Request,
    /// The memory that it takes.
    pub memory: Memory,
    /// Its stages, in order.
    pub phases: Vec<Phase>,
}

/// What is planned for.
#[derive(Debug, Serialize)]
pub struct Request {
    /// Width and height of each picture.
    pub images: Vec<(usize, usize)>,
    /// What the processor makes of each.
    pub pictures: Vec<Picture>,
    /// Tiles that go through the tower.
    pub tiles: usize,
    /// Tokens that stand for pictures.
    pub image_tokens: usize,
    /// Tokens of the whole prompt, or of the text of a model that gives vectors.
    pub prompt_tokens: usize,
    /// Most tokens of the answer; 0 of a model that gives vectors.
    pub max_tokens: usize,
}

/// What a processor makes of a picture.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Picture {
    /// Width and height of each tile that goes through the tower.
    pub tiles: Vec<(usize, usize)>,
    /// Tokens that stand for the picture; 0 of a model that gives vectors.
    pub tokens: usize,
}

impl Picture {
    fn of(image: &PreparedImage, tokens: usize) -> Self {
        Self { tiles: image.tiles.iter().map(|tile| (tile.width, tile.height)).collect(), tokens }
    }
}

/// Bytes that are in use at once at most.
#[derive(Debug, Serialize)]
pub struct Memory {
    /// Weights that are read, in the file's own memory on a CPU.
    pub weights: u64,
    /// Keys and values of prompt and answer.
    pub kv_cache: u64,
    /// The same of one token.
    pub kv_per_token: u64,
    /// Features of the pictures.
    pub image_features: u64,
    /// Activations at their peak.
    pub activations: u64,
    /// All of these.
    pub total: u64,
}

/// A stage of the request.
#[derive(Debug, Serialize)]
pub struct Phase {
    /// `vision` (tower and connector), `prefill`, or `decode` (one token after the prompt); `text` of a model that gives vectors.
    pub name: &'static str,
    /// Arithmetic.
    pub flops: u64,
    /// Bytes that must be read and written.
    pub bytes: u64,
    /// Its ops.
    pub steps: Vec<Step>,
}

/// One op of a module, or of modules that differ by their number alone.
#[derive(Debug, Serialize)]
pub struct Step {
    /// Path of the modules: `model.text_model.layers.0-29.mlp`.
    pub module: String,
    /// The op.
    pub op: &'static str,
    /// Its spec in the text form.
    pub spec: String,
    /// The kernel that would run it.
    pub variant: Option<&'static str>,
    /// Why none would.
    pub refused: Option<String>,
    /// How often it runs.
    pub count: usize,
    /// Bytes of the modules' weights.
    pub weight_bytes: u64,
    /// Arithmetic.
    pub flops: u64,
    /// Bytes that must be read and written.
    pub bytes: u64,
}

/// Rows of a picture that stand for tokens, or that tokens attend to.
fn rows_of(prompt: &Prompt, media: usize) -> usize {
    let of = |rows: &[usize]| rows.get(media).copied().unwrap_or(0);
    prompt.rows_of(media) + of(&prompt.memory) + of(&prompt.rest)
}

impl Plan {
    /// Runs the request on a context that computes nothing.
    pub fn make(
        wanted: &Wanted,
        files: &ModelFiles,
        loaded: Loaded,
        cx: &mut Ctx,
        log: &NullLog,
        weights: u64,
    ) -> Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if loaded.model.gives() == Gives::Vectors {
            return Self::of_vectors(
                wanted,
                EmbeddingPipeline::new(files, loaded, threads)?,
                cx,
                log,
                weights,
            );
        }
        let pipeline = Pipeline::new(files, loaded, threads)?;
        let Wanted { images: sizes, prompt_tokens: text_tokens, max_tokens } = wanted.clone();
        let images = sizes.iter().map(|&(width, height)| blank(width, height)).collect::<Result<Vec<_>>>()?;
        let info = pipeline.model.info().clone();
        let max_tokens = max_tokens.min(info.max_positions);
        // The model's own end tokens must not end what is planned: every value of a dry run is zero.
        let params = SamplingParams { max_tokens, ignore_eos: true, ..SamplingParams::default() };
        let _ = log.take();
        let messages = [Message::user(images.len(), String::new())];
        let mut request = pipeline.request(&messages, &images, params)?;
        let mut phases = Vec::new();
        let picture = |(number, media): (usize, &Media)| match media {
            Media::Picture(image) => Some(Picture::of(image, rows_of(&request.prompt, number))),
            Media::Features(_) => None,
        };
        let pictures = request.media.iter().enumerate().filter_map(picture).collect();
        if !sizes.is_empty() {
            for media in &mut request.media {
                if let Media::Picture(picture) = media
                    && let Some(features) = pipeline.model.encode(cx, &[picture])?.pop()
                {
                    *media = features.into();
                }
            }
            phases.push(Phase::of("vision", &log.take()));
        }
        let room = info.max_positions.saturating_sub(request.prompt.len());
        if text_tokens >= room {
            let (limit, found) = (info.max_positions.saturating_sub(1), request.prompt.len());
            return Err(Error::PromptTooLong { limit, found: found.saturating_add(text_tokens) });
        }
        lengthen(&mut request.prompt, text_tokens);
        let prompt_tokens = request.prompt.len();
        let image_tokens = (0..request.media.len()).map(|number| rows_of(&request.prompt, number)).sum();
        let image_features = (image_tokens * info.d_model * cx.dtype().size()) as u64;

        let limits = Limits::of(&info, std::slice::from_ref(&request));
        let mut scheduler = Scheduler::new(cx, pipeline.model.clone(), pipeline.tokenizer.clone(), limits)?;
        scheduler.submit(request)?;
        while cx.timings.prefill_tokens < prompt_tokens && !scheduler.is_idle() {
            step(&mut scheduler, cx)?;
        }
        phases.push(Phase::of("prefill", &log.take()));
        if !scheduler.is_idle() {
            step(&mut scheduler, cx)?;
            phases.push(Phase::of("decode", &log.take()));
        }
        let kv_per_token = info.kv.bytes_per_token(cx.kv_dtype());
        let kv_cache = scheduler.kv().views().map(ocelli_kernels::View::bytes).sum();
        let activations = cx.peak_activations() as u64;
        Ok(Self {
            request: Request {
                images: sizes,
                pictures,
                tiles: cx.timings.tiles,
                image_tokens,
                prompt_tokens,
                max_tokens,
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

    /// The same of a model that gives vectors: the pictures, and one text of so many tokens or as many as it takes.
    fn of_vectors(
        wanted: &Wanted,
        pipeline: EmbeddingPipeline,
        cx: &mut Ctx,
        log: &NullLog,
        weights: u64,
    ) -> Result<Self> {
        let info = pipeline.model.info().clone();
        let mut prepared = Vec::with_capacity(wanted.images.len());
        for &(width, height) in &wanted.images {
            prepared.push(pipeline.prepare(&blank(width, height)?)?);
        }
        let _ = log.take();
        let mut phases = Vec::new();
        if !prepared.is_empty() {
            let images: Vec<_> = prepared.iter().collect();
            cx.scope(|cx| pipeline.model.images(cx, &images).map(drop))?;
            phases.push(Phase::of("vision", &log.take()));
        }
        let tokens = wanted.prompt_tokens.clamp(1, info.max_positions);
        cx.scope(|cx| pipeline.model.texts(cx, &[vec![0; tokens]]).map(drop))?;
        phases.push(Phase::of("text", &log.take()));
        let image_features = (prepared.len() * info.d_model * 4) as u64;
        let activations = cx.peak_activations() as u64;
        Ok(Self {
            request: Request {
                images: wanted.images.clone(),
                pictures: prepared.iter().map(|image| Picture::of(image, 0)).collect(),
                tiles: cx.timings.tiles,
                image_tokens: 0,
                prompt_tokens: tokens,
                max_tokens: 0,
            },
            memory: Memory {
                weights,
                kv_cache: 0,
                kv_per_token: 0,
                image_features,
                activations,
                total: weights + image_features + activations,
            },
            phases,
        })
    }

    /// The ops that no kernel runs.
    #[must_use]
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

/// A step of the request, which must not fail.
fn step(scheduler: &mut Scheduler, cx: &mut Ctx) -> Result<(), Error> {
    let failed = |event| if let Event::Failed { error, .. } = event { Err(error) } else { Ok(()) };
    scheduler.step(cx).into_iter().try_for_each(failed)
}

/// Adds tokens of text at the end of a prompt.
fn lengthen(prompt: &mut Prompt, tokens: usize) {
    let (len, more) = (prompt.len(), tokens as i32);
    if let Positions::Axes { at, next } = &mut prompt.positions {
        at.extend((0..more).map(|i| [*next + i; 3]));
        *next += more;
    }
    prompt.tokens.resize(len + tokens, 0);
}

fn blank(width: usize, height: usize) -> Result<Rgb8Image> {
    Rgb8Image::from_raw(width, height, vec![0; width * height * 3])
        .ok_or_else(|| Error::Request(format!("image size: {width}x{height} is no picture")))
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
