//! `ocelli run`: answers a prompt.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use ocelli_engine::image::{DecodeOptions, write_png};
use ocelli_engine::regions::Regions;
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::{FinishReason, generate};
use ocelli_engine::{Phase, Timings};
use serde::Serialize;

use crate::args::{RunArgs, SamplingArgs};
use crate::chat::Chat;
use crate::fail::{Failure, Outcome, note, print, print_json};
use crate::interrupt::{self, Gentle};
use crate::progress::Spinner;
use crate::{form, frames, open};

/// What is to be known of the model that is inside the binary.
const DEMO: &str = "this is the demo model, which knows drawn shapes and numbers alone, and questions about a picture; \
                    --model DIR or --model OWNER/NAME takes a real one";

#[derive(Serialize)]
struct Output<'a> {
    schema: &'static str,
    model: String,
    text: &'a str,
    /// What the model thought before, where it marks that.
    reasoning: Option<&'a str>,
    token_ids: &'a [u32],
    prompt_tokens: usize,
    finish_reason: FinishReason,
    /// Places that the answer names, of models whose answers do.
    #[serde(skip_serializing_if = "Option::is_none")]
    regions: Option<&'a Regions>,
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
            speculate: self.speculate,
            ..SamplingParams::default()
        }
    }
}

/// Runs the command.
pub fn run(args: &RunArgs) -> Outcome {
    let (start, _span) = (Instant::now(), tracing::info_span!("run").entered());
    let mut params = args.sampling.params();
    params.validate().map_err(ocelli_engine::Error::from)?;
    params.adapter = args.model.one_adapter()?;
    let form = args.form.read()?;
    let chat = Chat::read(args)?;
    let (device, precision) = open::device(&args.device)?;
    let spinner = Spinner::new("loading the model");
    let options = DecodeOptions { max_pixels: args.max_pixels, ..DecodeOptions::default() };
    let question = open::Question { chat: chat.clone(), decode: options, params: params.clone() };
    let (mut pipeline, mut cx) = open::pipeline_for(question, &args.model, &*device, precision)?;
    params.max_tokens = params.max_tokens.min(pipeline.model.info().max_positions);
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    params.grammar = form::compile(form.as_ref(), &pipeline)?;
    params.validate().map_err(ocelli_engine::Error::from)?;
    chat.check(args, &pipeline)?;
    pipeline.options = chat.render.clone();

    for stop in &params.stop {
        if let Some(token) = pipeline.tokenizer.hidden_in(stop) {
            tracing::warn!(
                "--stop {stop:?} holds {token}, which never shows in an answer; stop at the token alone"
            );
        }
    }

    spinner.say("reading pictures");
    let pictures =
        cx.timings.measure(Phase::DecodeImage, || open::read_pictures(&chat.pictures, &options))?;
    let videos = frames::read(&args.video, &options)?;
    spinner.say("looking at pictures");
    let request = pipeline.request_ahead(&mut cx, &chat.messages, &pictures, &videos, params);
    let request = request.map_err(|error| open::too_long(error, &mut pipeline, &chat.messages, &pictures))?;
    let first = pictures.into_iter().next();
    let size = first.as_ref().map_or((0, 0), |picture| (picture.width(), picture.height()));
    drop(videos);
    if let Some(path) = &args.draw {
        let asked = first.is_some() && pipeline.regions(&chat.messages, &[], size)?.is_some();
        can_draw(path, asked)?;
    }
    if args.model.model.is_none() && !args.json {
        spinner.pause(|| note(DEMO));
    }

    spinner.say("reading the prompt");
    let mut spinner = Some(spinner);
    let mut written = Ok(());
    // From the first token on there is something to keep.
    let mut gentle: Option<Gentle> = None;
    let mut thoughts = Thoughts { shown: args.show_thinking && !args.json, open: false };
    let answers = generate(&mut cx, &pipeline.model, &pipeline.tokenizer, vec![request], |_, piece| {
        let gentle = gentle.get_or_insert_with(Gentle::begin);
        match (piece.text.is_empty(), piece.thought) {
            (true, _) => {}
            (false, true) if thoughts.shown => {
                spinner = None;
                thoughts.show(piece.text);
            }
            (false, true) => spinner.iter().for_each(|spinner| spinner.say("thinking")),
            (false, false) => {
                spinner = None;
                thoughts.end();
                if !args.json {
                    written = print(piece.text);
                }
            }
        }
        if gentle.asked() || written.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    thoughts.end();
    drop(spinner);
    written?;
    let interrupted = gentle.is_some_and(|gentle| gentle.asked());
    let Some(answer) = answers.first() else { return Err(Failure::new("no answer")) };
    let regions = pipeline.regions(&chat.messages, &answer.token_ids, size)?;
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
            reasoning: answer.reasoning.as_deref(),
            token_ids: &answer.token_ids,
            prompt_tokens: answer.prompt_tokens,
            finish_reason: answer.finish_reason,
            regions: regions.as_ref(),
            backend: caps.backend,
            device: &caps.device,
            isa: caps.isa.name(),
            threads: caps.units,
            dtype: precision.dtype,
            timings,
            peak_memory_bytes: peak_memory(),
        })?;
    } else {
        if let Some(regions) = &regions {
            print(&format!("\n{}", serde_json::Value::Object(regions.fields.clone())))?;
        }
        if !answer.text.ends_with('\n') {
            print("\n")?;
        }
        if answer.text.is_empty() && !interrupted {
            note(match answer.reasoning {
                Some(_) => {
                    "the model was still thinking; --max-tokens N lets it go on, --show-thinking shows what it thinks"
                }
                None => "the answer has no text: the model ended it at once, or gave special tokens alone",
            });
        }
    }
    if let (Some(path), Some(regions), Some(picture)) = (&args.draw, &regions, &first) {
        write_png(path, &regions.drawn(picture))?;
    }
    Ok(if interrupted { ExitCode::from(interrupt::code()) } else { ExitCode::SUCCESS })
}

/// Refuses before the model answers what `--draw` could not do after it. `asked`: the answer will name places in a picture.
fn can_draw(path: &Path, asked: bool) -> Result<(), Failure> {
    if !asked {
        return Err(Failure::new("--draw: the answer will name no places in a picture")
            .hint("Florence-2 names them when it is asked <OD>, <OCR_WITH_REGION> and the like"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder.filter(|folder| !folder.is_dir()) {
        Some(folder) => Err(Failure::new(format!("--draw: {}: no such folder", folder.display()))),
        None => Ok(()),
    }
}

/// Thoughts on stderr: stdout has the answer alone.
struct Thoughts {
    shown: bool,
    /// Some were written, and their end was not.
    open: bool,
}

impl Thoughts {
    fn show(&mut self, text: &str) {
        let mut err = std::io::stderr().lock();
        // A stderr that is closed is no failure.
        if !std::mem::replace(&mut self.open, true) && err.is_terminal() {
            let _ = err.write_all(b"\x1b[2m");
        }
        let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
    }

    fn end(&mut self) {
        let mut err = std::io::stderr().lock();
        if std::mem::take(&mut self.open) {
            let end: &[u8] = if err.is_terminal() { b"\x1b[0m\n\n" } else { b"\n\n" };
            let _ = err.write_all(end);
        }
    }
}

/// Most memory that the process held at once, in bytes.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb << 10)
}
