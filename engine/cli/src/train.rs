//! `ocelli train`: trains a model.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use ocelli_engine::weights::{Checkpoint, Role};
use ocelli_engine::{Ctx, Error, Pipeline, Precision};
use ocelli_kernels::{Backend, DeviceOptions};
use ocelli_models::Leftovers;
use ocelli_train::data::Columns;
use ocelli_train::run::Metrics;
use ocelli_train::{AdamWOptions, Parameters, Rows, RunOptions, Schedule, TrainRow, Watcher, run};
use serde::Serialize;

use crate::args::{PartArg, ScheduleArg, SftArgs, TrainArgs, TrainTask};
use crate::fail::{Failure, Outcome, SOME_FAILED, note, print, print_json};
use crate::interrupt::Gentle;
use crate::open;
use crate::progress::Steps;
use crate::units::bytes;

/// Runs the command.
pub fn train(args: &TrainArgs) -> Outcome {
    match &args.task {
        TrainTask::Sft(args) => sft(args),
    }
}

#[derive(Serialize)]
struct Output<'a> {
    schema: &'static str,
    model: &'a str,
    out: String,
    /// Numbers that were trained.
    parameters: usize,
    rows: usize,
    steps: u64,
    /// The step that it went on after.
    resumed: u64,
    /// Loss of the last step, nats a token.
    loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    validation: Option<f64>,
    bad_rows: usize,
    seconds: f64,
}

/// Tells how the run goes on.
struct Told<'a> {
    bar: Steps,
    /// Steps that the bar shows.
    shown: u64,
    gentle: &'a Gentle,
    bad: usize,
}

/// Rows that are told one by one.
const MOST_TOLD: usize = 10;

impl Watcher for Told<'_> {
    fn step(&mut self, metrics: &Metrics, steps: u64) -> Result<(), Error> {
        self.bar.advance((metrics.step - self.shown) as usize);
        self.shown = metrics.step;
        let validation = metrics.validation.map(|loss| format!(", validation {loss:.4}")).unwrap_or_default();
        tracing::info!(
            "step {} of {steps}: loss {:.4}{validation}, rate {:.2e}, norm {:.3}, {:.0} tokens/s",
            metrics.step,
            metrics.loss,
            metrics.rate,
            metrics.norm,
            metrics.tokens as f64 / metrics.seconds
        );
        if self.gentle.asked() { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn bad_row(&mut self, line: usize, why: &Error) {
        self.bad += 1;
        if self.bad <= MOST_TOLD {
            note(&format!("line {line}: left out: {why}"));
        }
    }

    fn saved(&mut self, path: &Path) {
        tracing::info!("saved {}", path.display());
    }
}

impl SftArgs {
    fn rows(&self, path: &Path) -> Result<Vec<TrainRow>, Failure> {
        let columns = Columns {
            image: self.image_column.clone(),
            prompt: self.prompt_column.clone(),
            answer: self.answer_column.clone(),
        };
        let rows = Rows::read(path, &columns)?;
        for (line, why) in rows.bad.iter().take(MOST_TOLD) {
            note(&format!("{}: line {line}: left out: {why}", path.display()));
        }
        if rows.bad.len() > MOST_TOLD {
            note(&format!("{}: {} rows are left out", path.display(), rows.bad.len()));
        }
        if rows.rows.is_empty() {
            return Err(Failure::new(format!("{}: no rows", path.display())).hint(
                "JSON lines such as {\"image\": \"a.png\", \"prompt\": \"What is this?\", \"text\": \"A cat.\"}",
            ));
        }
        Ok(rows.rows)
    }

    fn options(&self, rows: usize) -> RunOptions {
        let steps = self.steps.unwrap_or_else(|| (self.epochs * rows).div_ceil(self.batch)) as u64;
        let schedule = match self.schedule {
            ScheduleArg::Constant => Schedule::Constant,
            ScheduleArg::Linear => Schedule::Linear,
            ScheduleArg::Cosine => Schedule::Cosine,
        };
        RunOptions {
            optimizer: AdamWOptions {
                rate: self.rate,
                betas: [0.9, 0.999],
                decay: self.weight_decay,
                clip: (self.clip > 0.0).then_some(self.clip),
                schedule,
                warmup: self.warmup.unwrap_or((steps / 10).min(100)),
                steps,
            },
            batch: self.batch,
            seed: self.seed,
            max_tokens: self.max_tokens,
            pass_tokens: self.pass_tokens,
            save_every: self.save_every,
            check_every: self.check_every,
        }
    }

    /// Whether a tensor is to be trained, by the role of the module that it is of.
    fn chooses(&self, roles: &HashMap<String, Role>, name: &str) -> bool {
        if self.parts.is_empty() {
            return true;
        }
        let mut at = name;
        let role = loop {
            match (roles.get(at), at.rsplit_once('.')) {
                (Some(role), _) => break Some(*role),
                (None, Some((parent, _))) => at = parent,
                (None, None) => break None,
            }
        };
        role.is_some_and(|role| {
            self.parts.iter().any(|part| match part {
                PartArg::Tower => role == Role::Tower,
                PartArg::Connector => role == Role::Connector,
                PartArg::Decoder => role == Role::Decoder,
                PartArg::Embedding => matches!(role, Role::Embedding | Role::Head),
            })
        })
    }
}

fn sft(args: &SftArgs) -> Outcome {
    let files = open::files(args.which.model())?;
    let rows = args.rows(&args.data)?;
    let held = args.validation.as_deref().map(|path| args.rows(path)).transpose()?.unwrap_or_default();
    let options = args.options(rows.len());
    // Told before anything is read or written.
    if !args.dry_run && !args.resume && args.out.join("checkpoint").exists() {
        return Err(Failure::new(format!("{}: a run has written there already", args.out.display()))
            .hint("--resume goes on with it; another --out begins anew"));
    }
    let threads = DeviceOptions { threads: args.threads, ..DeviceOptions::default() };
    let device = ocelli_kernels::open(Backend::Cpu, &threads).map_err(Error::from)?;
    let mut cx = Ctx::new(&*device, Precision::default())?;
    let roles = ocelli_models::owners(&files)?;
    let source = Checkpoint::open(&files).map_err(Error::from)?;
    let chooses = |name: &str| args.chooses(&roles, name);
    let (parameters, checkpoint) = Parameters::read(&mut cx, &files, &source, &chooses)?;
    drop(source);
    let mut loaded = ocelli_models::load_from(&files, &checkpoint, &mut cx, Leftovers::Ignore)?;
    open::set_processor(&mut *loaded.processor, &args.processor)?;
    let pipeline = Pipeline::new(&files, loaded, device.caps().units)?;
    drop(checkpoint);
    if args.dry_run {
        let total: usize = parameters.all().iter().map(ocelli_train::Parameter::len).sum();
        print(&format!(
            "{} of {total} parameters are trained, by {} rows in {} steps of {}\nmemory: {} of parameters, gradients and moments, \
             and activations of at most {} tokens at once\n",
            parameters.count(),
            rows.len(),
            options.optimizer.steps,
            options.batch,
            bytes(4 * parameters.buffer_len() as u64),
            options.pass_tokens,
        ))?;
        return Ok(std::process::ExitCode::SUCCESS);
    }
    let gentle = Gentle::begin();
    let start = Instant::now();
    let bar = Steps::new("training", options.optimizer.steps as usize);
    let mut told = Told { bar, shown: 0, gentle: &gentle, bad: 0 };
    let ran = run(
        &mut cx,
        &files,
        &pipeline,
        &parameters,
        (&rows, &held),
        &options,
        (&args.out, args.resume),
        &mut told,
    );
    drop(told);
    let ran = match ran {
        Err(Error::Cancelled) => {
            return Err(Failure::interrupted("interrupted: what was learnt is in the checkpoint")
                .hint("--resume goes on after the last step"));
        }
        ran => ran?,
    };
    if args.json {
        print_json(&Output {
            schema: "ocelli.train.v1",
            model: args.which.model().unwrap_or("demo"),
            out: args.out.display().to_string(),
            parameters: parameters.count(),
            rows: rows.len(),
            steps: ran.steps,
            resumed: ran.resumed,
            loss: ran.loss,
            validation: ran.validation,
            bad_rows: ran.bad_rows,
            seconds: start.elapsed().as_secs_f64(),
        })?;
    } else {
        let validation = ran.validation.map(|loss| format!(", validation {loss:.4}")).unwrap_or_default();
        print(&format!(
            "{}: {} steps, loss {:.4}{validation} nats a token, {:.0} s\n",
            args.out.display(),
            ran.steps,
            ran.loss,
            start.elapsed().as_secs_f64()
        ))?;
    }
    Ok(if ran.bad_rows > 0 { SOME_FAILED.into() } else { std::process::ExitCode::SUCCESS })
}
