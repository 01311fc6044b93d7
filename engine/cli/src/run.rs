//! `ocelli run`: answers a prompt.

use std::io::Read;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Instant;

use ocelli_engine::image::{DecodeOptions, decode_file};
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::{FinishReason, generate};
use ocelli_engine::text::Message;
use ocelli_engine::{Phase, Timings};
use serde::Serialize;

use crate::args::{RunArgs, SamplingArgs};
use crate::fail::{Failure, Outcome, note, print, print_json};
use crate::interrupt::{self, Gentle};
use crate::open;
use crate::progress::Spinner;

/// Most bytes of a prompt from standard input.
const MAX_PROMPT: u64 = 16 << 20;

/// What is to be known of the model that is inside the binary.
const DEMO: &str = "this is the demo model, which knows drawn shapes and numbers alone, and questions about a picture; \
                    --model DIR or --model OWNER/NAME takes a real one";

#[derive(Serialize)]
struct Output<'a> {
    schema: &'static str,
    model: String,
    text: &'a str,
    token_ids: &'a [u32],
    prompt_tokens: usize,
    finish_reason: FinishReason,
    backend: ocelli_kernels::Backend,
    device: &'a str,
    isa: &'static str,
    threads: usize,
    dtype: ocelli_kernels::DType,
    timings: Rates,
    peak_memory_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Rates {
    load_ms: f64,
    #[serde(flatten)]
    stages: Timings,
    total_ms: f64,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    encode_share: f64,
    compile_ms: f64,
}

impl SamplingArgs {
    /// The engine's parameters.
    pub fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            stop_token_ids: self.stop_token.clone(),
            stop: self.stop.clone(),
            max_tokens: self.max_tokens,
            ignore_eos: self.ignore_eos,
        }
    }
}

/// Runs the command.
pub fn run(args: &RunArgs) -> Outcome {
    let start = Instant::now();
    let mut params = args.sampling.params();
    params.validate().map_err(ocelli_engine::Error::from)?;
    let prompt = read_prompt(&args.prompt)?;
    if prompt.trim().is_empty() && args.images.is_empty() {
        return Err(Failure::usage("the prompt is empty and there is no picture")
            .hint("say something, or give --image FILE"));
    }

    args.images.iter().try_for_each(|path| open::is_file_name(path))?;
    let (device, precision) = open::device(&args.device)?;
    let spinner = Spinner::new("loading the model");
    let options = DecodeOptions { max_pixels: args.max_pixels, ..DecodeOptions::default() };
    let system = args.system.iter().map(|text| Message::text("system", text.clone()));
    let messages: Vec<Message> = system.chain([Message::user(args.images.len(), prompt.clone())]).collect();
    let question = open::Question {
        messages: messages.clone(),
        images: args.images.clone(),
        decode: options,
        params: params.clone(),
    };
    let (mut pipeline, mut cx) = open::pipeline_for(question, &args.model, &*device, precision)?;
    params.max_tokens = params.max_tokens.min(pipeline.model.info().max_positions);
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let token = pipeline.processor.image_mark();
    if !token.is_empty() && args.system.iter().chain([&prompt]).any(|text| text.contains(token)) {
        return Err(Failure::usage(format!(
            "the prompt contains `{token}`, which stands for a picture in this model"
        ))
        .hint("give pictures with --image FILE; they come before the prompt, in the order given"));
    }

    for stop in &params.stop {
        if let Some(token) = pipeline.tokenizer.hidden_in(stop) {
            tracing::warn!(
                "--stop {stop:?} holds {token}, which never shows in an answer; stop at the token alone"
            );
        }
    }

    spinner.say("reading pictures");
    let mut pictures = Vec::with_capacity(args.images.len());
    for path in &args.images {
        pictures.push(cx.timings.measure(Phase::DecodeImage, || decode_file(path, &options))?);
    }
    spinner.say("looking at pictures");
    let request = pipeline
        .request(&mut cx, &messages, &pictures, params)
        .map_err(|error| open::too_long(error, &mut pipeline, &mut cx, &messages, &pictures))?;
    drop(pictures);
    if args.model.model.is_none() && !args.json {
        spinner.pause(|| note(DEMO));
    }

    spinner.say("reading the prompt");
    let mut spinner = Some(spinner);
    let mut written = Ok(());
    // From the first token on there is something to keep.
    let mut gentle: Option<Gentle> = None;
    let answers = generate(&mut cx, &pipeline.model, &pipeline.tokenizer, vec![request], |_, text| {
        let gentle = gentle.get_or_insert_with(Gentle::begin);
        if !text.is_empty() {
            spinner = None;
            if !args.json {
                written = print(text);
            }
        }
        if gentle.asked() || written.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    drop(spinner);
    written?;
    let interrupted = gentle.is_some_and(|gentle| gentle.asked());
    let Some(answer) = answers.first() else { return Err(Failure::new("no answer")) };

    if args.json {
        let caps = device.caps();
        let timings = Rates {
            load_ms,
            stages: cx.timings,
            total_ms: start.elapsed().as_secs_f64() * 1e3,
            prefill_tokens_per_s: cx.timings.prefill_rate(),
            decode_tokens_per_s: cx.timings.decode_rate(),
            encode_share: cx.timings.encode_share(),
            compile_ms: cx.compile_time().as_secs_f64() * 1e3,
        };
        print_json(&Output {
            schema: "ocelli.run.v1",
            model: args.model.model.clone().unwrap_or_else(|| "demo".into()),
            text: &answer.text,
            token_ids: &answer.token_ids,
            prompt_tokens: answer.prompt_tokens,
            finish_reason: answer.finish_reason,
            backend: caps.backend,
            device: &caps.device,
            isa: caps.isa.name(),
            threads: caps.units,
            dtype: precision.dtype,
            timings,
            peak_memory_bytes: peak_memory(),
        })?;
    } else {
        if !answer.text.ends_with('\n') {
            print("\n")?;
        }
        if answer.text.is_empty() && !interrupted {
            note("the answer has no text: the model ended it at once, or gave special tokens alone");
        }
    }
    Ok(if interrupted { ExitCode::from(interrupt::code()) } else { ExitCode::SUCCESS })
}

fn read_prompt(text: &str) -> Result<String, Failure> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    let mut prompt = String::new();
    std::io::stdin()
        .take(MAX_PROMPT)
        .read_to_string(&mut prompt)
        .map_err(|error| Failure::new(format!("standard input: {error}")))?;
    Ok(prompt.trim_end_matches(['\n', '\r']).to_owned())
}

/// Most memory that the process held at once, in bytes.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb << 10)
}
