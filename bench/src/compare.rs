//! One model on several backends, in several types and formats: how fast each stage is, how much memory it takes, and how far its
//! results are from those of the model as stored, on the CPU in f32.
//!
//! The measure of drift is that one's pass over each request with its greedy answer: every other run reads the same tokens and
//! pixels, so that each stage and each logit has its counterpart.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use ocelli_engine::calibration::{divergence, likeliest};
use ocelli_engine::image::{PreparedImage, Rgb8Image};
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::{Media, Request, generate};
use ocelli_engine::text::Message;
use ocelli_engine::{Ctx, Error, Phase, Pipeline, Prompt, Result, Stage, Timings};
use ocelli_kernels::{Backend, Caps, DType};
use serde::{Deserialize, Serialize};

use crate::model::Quantiles;
use crate::observe::{Values, observed};

/// Version of the report's layout.
pub const SCHEMA: &str = "ocelli.compare.v1";

/// What is asked, about a picture or about none.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its name in reports.
    pub name: String,
    /// The picture; one that was not chosen for it is left out where the model sees none.
    pub image: Option<Rgb8Image>,
    /// Whether the picture was chosen for the question.
    pub chosen: bool,
    /// The question.
    pub prompt: String,
}

/// How often and how long.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Tokens of an answer; the model's own end tokens do not end it.
    pub tokens: usize,
    /// Runs of all requests that count, after one that does not.
    pub runs: usize,
}

/// What drift is allowed; `None` allows any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    /// Relative error of any stage.
    pub error: Option<f64>,
    /// Mean divergence of probabilities, in nats.
    pub kl: Option<f64>,
    /// Least share of tokens that both find likeliest.
    pub top1: Option<f64>,
}

impl Bounds {
    /// What rounding may well explain. In f32 kernels sum in other orders: 1e-4 is some thousand roundings of 2^-24. One of bf16 is 2^-9: a
    /// twentieth is some twenty-five of them. A format with fewer bits changes the model itself: no bound follows from arithmetic.
    #[must_use]
    pub fn usual(dtype: DType, as_stored: bool) -> Self {
        match dtype {
            _ if !as_stored => Self::default(),
            DType::F32 => Self { error: Some(1e-4), kl: Some(1e-6), top1: Some(1.0) },
            _ => Self { error: Some(0.05), kl: Some(0.01), top1: Some(0.98) },
        }
    }
}

/// One way to run the model.
pub struct Candidate<'a> {
    /// Format of its weights: `stored`, or what they were rounded to.
    pub format: &'a str,
    /// The device.
    pub caps: &'a Caps,
    /// The model on it.
    pub pipeline: &'a Pipeline,
    /// Where it runs.
    pub cx: &'a mut Ctx,
    /// Allowed drift.
    pub bounds: Bounds,
}

/// The requests, and what the reference makes of them.
pub struct Reference {
    rows: Vec<Known>,
    vocab: usize,
}

/// A request with the reference's answer.
struct Known {
    name: String,
    prompt: Prompt,
    images: Vec<PreparedImage>,
    answer: Vec<u32>,
    values: Values,
}

/// The whole comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// The model.
    pub model: String,
    /// Requests: what each is called.
    pub requests: Vec<String>,
    /// Tokens of each answer.
    pub tokens: usize,
    /// Runs that count.
    pub runs: usize,
    /// Whether the drift of every run is within its bounds.
    pub pass: bool,
    /// The runs, the reference first.
    pub candidates: Vec<Compared>,
    /// Runs that were asked for and cannot be had, with the reason.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// `cpu f32 stored`.
    pub name: String,
    /// The backend.
    pub backend: String,
    /// The device's name.
    pub device: String,
    /// Type of activations.
    pub dtype: String,
    /// Format of the weights.
    pub format: String,
    /// Speed of the stages.
    pub speed: Speed,
    /// Memory.
    pub memory: Memory,
    /// Distance from the reference; absent from the reference itself.
    pub drift: Option<Drift>,
}

/// Times of all requests of one run; medians and spread over the runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Milliseconds of resizing and tiling.
    pub resize_ms: Quantiles,
    /// Milliseconds of towers.
    pub tower_ms: Quantiles,
    /// Milliseconds of connectors.
    pub connector_ms: Quantiles,
    /// Milliseconds of prefill.
    pub prefill_ms: Quantiles,
    /// Milliseconds of decode steps.
    pub decode_ms: Quantiles,
    /// Milliseconds to the first token of a request, in the mean of the requests.
    pub first_token_ms: Quantiles,
    /// Prompt tokens a second.
    pub prefill_tokens_per_s: Quantiles,
    /// Answer tokens a second.
    pub decode_tokens_per_s: Quantiles,
    /// Requests a second, one after the other.
    pub requests_per_s: Quantiles,
}

/// Bytes that a run holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Weights as stored.
    pub weight_bytes: u64,
    /// Most activations at once.
    pub activation_bytes: u64,
}

/// How far a run is from the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// The stages, in the order of computation.
    pub stages: Vec<StageDrift>,
    /// Largest relative error of a stage.
    pub error: f64,
    /// Mean divergence of the probabilities of an answer's tokens from the reference's (Kullback-Leibler), in nats.
    pub kl: f64,
    /// The largest.
    pub kl_max: f64,
    /// Share of tokens that both find likeliest.
    pub top1: f64,
    /// Of each request, the number of the first token of its own greedy answer that is not the reference's; `None` where all are.
    pub first_different: Vec<Option<usize>>,
    /// What is allowed.
    pub bounds: Bounds,
    /// What is past its bound.
    pub past: Vec<String>,
}

/// The error of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageDrift {
    /// The part: `vision_last_hidden`, `text_layer`, ...
    pub part: String,
    /// The layer of parts that repeat.
    pub layer: Option<usize>,
    /// Root of the mean square of differences, over that of the reference's values, of all requests.
    pub error: f64,
    /// Largest difference over that same root.
    pub largest: f64,
}

impl Reference {
    /// Answers the questions and keeps every stage's values.
    ///
    /// # Errors
    /// As a run of the model; [`Error::Cancelled`] if `progress` ends it.
    pub fn new(
        pipeline: &Pipeline,
        cx: &mut Ctx,
        questions: &[Question],
        tokens: usize,
        progress: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Self> {
        let mut rows = Vec::with_capacity(questions.len());
        for question in questions {
            going(progress(&question.name))?;
            let shown = question.image.iter().filter(|_| question.chosen || pipeline.processor.sees());
            let images = pipeline.prepare(&shown.cloned().collect::<Vec<_>>())?;
            let messages = [Message::user(images.len(), question.prompt.clone())];
            let prompt = pipeline.lay_out(&messages, &images.iter().collect::<Vec<_>>())?;
            let mut known = Known {
                name: question.name.clone(),
                prompt,
                images,
                answer: Vec::new(),
                values: Values::new(),
            };
            known.answer = known.answered(pipeline, cx, tokens)?;
            known.values = known.pass(pipeline, cx)?;
            rows.push(known);
        }
        Ok(Self { rows, vocab: pipeline.model.info().vocab })
    }

    /// What the requests are called.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.rows.iter().map(|row| row.name.clone()).collect()
    }

    /// Times a run, and measures how far it is off, of the reference itself not.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn compare(
        &self,
        run: &mut Candidate<'_>,
        options: Options,
        is_reference: bool,
        progress: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Compared> {
        let dtype = run.cx.dtype();
        let name = format!("{} {dtype} {}", run.caps.backend, run.format);
        // What is wrong is not timed: the drift comes first.
        let drift = match is_reference {
            true => None,
            false => {
                let drift = self.drift(run, &mut |row| progress(&format!("{name}: {row}")))?;
                Some(drift)
            }
        };
        let mut all = Vec::with_capacity(options.runs);
        for turn in 0..=options.runs {
            going(progress(&format!("{name}: {turn} of {} runs", options.runs)))?;
            let (timings, seconds) = self.timed(run, options.tokens)?;
            if turn > 0 {
                all.push((timings, seconds));
            }
        }
        let over = |value: &dyn Fn(&Timings, f64) -> f64| {
            Quantiles::of(all.iter().map(|(timings, seconds)| value(timings, *seconds)).collect())
        };
        let count = self.rows.len().max(1) as f64;
        let speed = Speed {
            resize_ms: over(&|t, _| t.resize_ms),
            tower_ms: over(&|t, _| t.tower_ms),
            connector_ms: over(&|t, _| t.connector_ms),
            prefill_ms: over(&|t, _| t.prefill_ms),
            decode_ms: over(&|t, _| t.decode_ms),
            first_token_ms: over(&|t, _| (t.resize_ms + t.tower_ms + t.connector_ms + t.prefill_ms) / count),
            prefill_tokens_per_s: over(&|t, _| t.prefill_rate()),
            decode_tokens_per_s: over(&|t, _| t.decode_rate()),
            requests_per_s: over(&|_, seconds| count / seconds),
        };
        let weight_bytes = run.pipeline.model.parts().iter().map(|part| part.bytes).sum();
        Ok(Compared {
            name,
            backend: run.caps.backend.to_string(),
            device: run.caps.device.clone(),
            dtype: dtype.to_string(),
            format: run.format.to_owned(),
            speed,
            memory: Memory { weight_bytes, activation_bytes: run.cx.peak_activations() as u64 },
            drift,
        })
    }

    /// One run of all requests, one after the other: the stages' times, and the seconds of everything.
    fn timed(&self, run: &mut Candidate<'_>, tokens: usize) -> Result<(Timings, f64)> {
        run.cx.timings = Timings::default();
        let start = std::time::Instant::now();
        for row in &self.rows {
            row.answered(run.pipeline, run.cx, tokens)?;
        }
        Ok((run.cx.timings, start.elapsed().as_secs_f64()))
    }

    fn drift(
        &self,
        run: &mut Candidate<'_>,
        progress: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Drift> {
        let mut sums: BTreeMap<(&'static str, Option<usize>), Sums> = BTreeMap::new();
        let (mut tokens, mut kl, mut kl_max, mut alike) = (0, 0.0, 0.0f64, 0);
        let mut first_different = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            going(progress(&row.name))?;
            let values = row.pass(run.pipeline, run.cx)?;
            for (stage, expected) in &row.values {
                let got = values.get(stage).filter(|got| got.len() == expected.len()).ok_or_else(|| {
                    Error::Request(format!("{}: {} has other shapes than the reference", row.name, stage.0))
                })?;
                sums.entry(*stage).or_default().add(got, expected);
            }
            let logits =
                |values: &Values| values.get(&(Stage::LOGITS.part, None)).cloned().unwrap_or_default();
            let (expected, got) = (logits(&row.values), logits(&values));
            for (p, q) in expected.chunks_exact(self.vocab).zip(got.chunks_exact(self.vocab)) {
                let found = divergence(p, q);
                (tokens, kl, kl_max) = (tokens + 1, kl + found, kl_max.max(found));
                alike += usize::from(likeliest(p) == likeliest(q));
            }
            let own = row.answered(run.pipeline, run.cx, row.answer.len())?;
            let differs = row.answer.iter().zip(&own).position(|(a, b)| a != b);
            first_different.push(differs.or((own.len() != row.answer.len()).then_some(own.len())));
        }
        let mut stages: Vec<StageDrift> = sums.iter().map(|(stage, sums)| sums.drift(*stage)).collect();
        stages.sort_by_key(|stage| (order(&stage.part), stage.layer));
        let count = f64::from(tokens.max(1));
        let error = stages.iter().map(|stage| stage.error).fold(0.0, f64::max);
        let mut drift = Drift {
            stages,
            error,
            kl: kl / count,
            kl_max,
            top1: alike as f64 / count,
            first_different,
            bounds: run.bounds,
            past: Vec::new(),
        };
        drift.past = drift.past_bounds();
        Ok(drift)
    }
}

impl Drift {
    fn past_bounds(&self) -> Vec<String> {
        let mut past = Vec::new();
        for stage in &self.stages {
            if self.bounds.error.is_some_and(|most| past_most(stage.error, most)) {
                let layer = stage.layer.map(|layer| format!(" {layer}")).unwrap_or_default();
                past.push(format!("{}{layer}: error {:.2e}", stage.part, stage.error));
            }
        }
        if self.bounds.kl.is_some_and(|most| past_most(self.kl, most)) {
            past.push(format!("divergence {:.2e} nats", self.kl));
        }
        if self.bounds.top1.is_some_and(|least| self.top1 < least) {
            past.push(format!("{:.2}% of tokens likeliest alike", 100.0 * self.top1));
        }
        past
    }
}

/// What is no number is past everything.
fn past_most(value: f64, most: f64) -> bool {
    value.is_nan() || value > most
}

impl Known {
    /// Greedy tokens of an answer.
    fn answered(&self, pipeline: &Pipeline, cx: &mut Ctx, tokens: usize) -> Result<Vec<u32>> {
        let params = SamplingParams { max_tokens: tokens, ignore_eos: true, ..SamplingParams::default() };
        let media = self.images.iter().cloned().map(Media::from).collect();
        let request = Request { prompt: self.prompt.clone(), media, params };
        let answers = generate(cx, &pipeline.model, &pipeline.tokenizer, vec![request], |_, _| {
            ControlFlow::Continue(())
        })?;
        Ok(answers.into_iter().next().map(|answer| answer.token_ids).unwrap_or_default())
    }

    /// Values of one pass over the prompt and the answer; the last token of that is followed by none.
    fn pass(&self, pipeline: &Pipeline, cx: &mut Ctx) -> Result<Values> {
        let after = &self.answer[..self.answer.len().saturating_sub(1)];
        Ok(observed(cx, pipeline, &self.images, &self.prompt, (after, after.len() + 1))?.0)
    }
}

/// Sums of squares.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    off: f64,
    of: f64,
    count: usize,
    largest: f64,
}

impl Sums {
    fn add(&mut self, got: &[f32], expected: &[f32]) {
        for (&got, &expected) in got.iter().zip(expected) {
            let (got, expected) = (f64::from(got), f64::from(expected));
            let off = (got - expected).abs();
            // What is no number is as far off as can be.
            let off = if off.is_nan() { f64::INFINITY } else { off };
            (self.off, self.of) = (self.off + off * off, self.of + expected * expected);
            self.largest = self.largest.max(off);
        }
        self.count += expected.len();
    }

    fn drift(&self, (part, layer): (&'static str, Option<usize>)) -> StageDrift {
        let mean = (self.of / self.count.max(1) as f64).sqrt().max(f64::MIN_POSITIVE);
        let error = (self.off / self.of.max(f64::MIN_POSITIVE)).sqrt();
        StageDrift { part: part.to_owned(), layer, error, largest: self.largest / mean }
    }
}

/// The place of a part in the order of computation.
fn order(part: &str) -> usize {
    const PARTS: [&str; 9] = [
        "vision_last_hidden",
        "qformer_last_hidden",
        "image_features",
        "deepstack_features",
        "encoder_embeds",
        "encoder_layer",
        "encoder_last_hidden",
        "inputs_embeds",
        "text_layer",
    ];
    PARTS.iter().position(|known| *known == part).unwrap_or(PARTS.len())
}

fn going(flow: ControlFlow<()>) -> Result<()> {
    if flow.is_break() { Err(Error::Cancelled) } else { Ok(()) }
}

impl Report {
    /// Of these runs, the reference first.
    #[must_use]
    pub fn new(model: &str, reference: &Reference, options: Options, candidates: Vec<Compared>) -> Self {
        let within = |run: &Compared| run.drift.as_ref().is_none_or(|drift| drift.past.is_empty());
        Self {
            schema: SCHEMA.to_owned(),
            model: model.to_owned(),
            requests: reference.names(),
            tokens: options.tokens,
            runs: options.runs,
            pass: candidates.iter().all(within),
            candidates,
            left_out: Vec::new(),
        }
    }

    /// Tables for people: speed and memory, drift, and the stages where it is largest.
    #[must_use]
    pub fn table(&self) -> String {
        let mut speed = vec![
            [
                "",
                "tower ms",
                "prefill t/s",
                "decode t/s",
                "first token ms",
                "requests/s",
                "weights",
                "activations",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        let mut drift = vec![
            ["", "largest error", "at", "KL, nats", "most", "likeliest alike", "first other token", ""]
                .map(str::to_owned)
                .to_vec(),
        ];
        for run in &self.candidates {
            let figure = |q: Quantiles, digits: usize| {
                format!("{:.digits$} ({:.digits$}-{:.digits$})", q.median, q.p20, q.p80)
            };
            let (s, megabytes) = (&run.speed, |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6));
            speed.push(vec![
                run.name.clone(),
                figure(s.tower_ms, 1),
                figure(s.prefill_tokens_per_s, 0),
                figure(s.decode_tokens_per_s, 1),
                figure(s.first_token_ms, 1),
                figure(s.requests_per_s, 2),
                megabytes(run.memory.weight_bytes),
                megabytes(run.memory.activation_bytes),
            ]);
            let Some(found) = &run.drift else { continue };
            let worst = found.stages.iter().max_by(|a, b| a.error.total_cmp(&b.error));
            let at = worst.map_or_else(String::new, |stage| match stage.layer {
                Some(layer) => format!("{} {layer}", stage.part),
                None => stage.part.clone(),
            });
            let other = found.first_different.iter().flatten().min();
            let requests = found.first_different.iter().flatten().count();
            drift.push(vec![
                run.name.clone(),
                format!("{:.2e}", found.error),
                at,
                format!("{:.2e}", found.kl),
                format!("{:.2e}", found.kl_max),
                format!("{:.2}%", 100.0 * found.top1),
                other.map_or_else(|| "none".to_owned(), |token| format!("{token}, in {requests} requests")),
                if found.past.is_empty() {
                    String::new()
                } else {
                    format!("PAST: {}", found.past.join("; "))
                },
            ]);
        }
        let (count, tokens) = (self.requests.len(), self.tokens);
        format!(
            "{}: {count} requests, answers of {tokens} tokens, median of {} runs (20th to 80th percentile)\n\n{}\nDrift from {}\n\n{}",
            self.model,
            self.runs,
            columns(&speed),
            self.candidates.first().map_or("", |run| &run.name),
            columns(&drift)
        )
    }
}

/// Rows with cells below each other.
fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// Whether a backend and type are what drift is measured from.
#[must_use]
pub fn is_reference(backend: Backend, dtype: DType, format: &str) -> bool {
    backend == Backend::Cpu && dtype == DType::F32 && format == STORED
}

/// The format of weights that are as the model has them.
pub const STORED: &str = "stored";

/// The phases whose times a report has, with their names.
pub const PHASES: [(Phase, &str); 5] = [
    (Phase::Resize, "resize"),
    (Phase::Tower, "tower"),
    (Phase::Connector, "connector"),
    (Phase::Prefill, "prefill"),
    (Phase::Decode, "decode"),
];

impl Speed {
    /// Milliseconds of a phase.
    #[must_use]
    pub fn of(&self, phase: Phase) -> Quantiles {
        match phase {
            Phase::DecodeImage => Quantiles::default(),
            Phase::Resize => self.resize_ms,
            Phase::Tower => self.tower_ms,
            Phase::Connector => self.connector_ms,
            Phase::Prefill => self.prefill_ms,
            Phase::Decode => self.decode_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_and_what_is_no_number_is_past_every_bound() {
        let mut sums = Sums::default();
        sums.add(&[1.1, -2.0], &[1.0, -2.0]);
        let stage = sums.drift(("text_layer", Some(3)));
        assert!((stage.error - 0.1 / 5f64.sqrt()).abs() < 1e-7, "{stage:?}");
        sums.add(&[f32::NAN], &[1.0]);
        let stages = vec![sums.drift(("text_layer", Some(3)))];
        let bounds = Bounds { error: Some(1e30), kl: Some(1.0), top1: Some(1.0) };
        let drift = Drift {
            stages,
            error: 0.0,
            kl: f64::NAN,
            kl_max: 0.0,
            top1: 0.5,
            first_different: vec![],
            bounds,
            past: vec![],
        };
        assert_eq!(drift.past_bounds().len(), 3, "{drift:?}");
    }

    #[test]
    fn formats_with_fewer_bits_have_no_bound_unless_one_is_stated() {
        assert_eq!(Bounds::usual(DType::F32, false), Bounds::default());
        assert!(Bounds::usual(DType::BF16, true).error > Bounds::usual(DType::F32, true).error);
    }
}
