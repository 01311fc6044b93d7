//! `ocelli train`: trains a model.

mod begun;
mod contrastive;
mod distill;
mod masked;
mod pretrain;
mod report;
mod sft;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ocelli_engine::adapter::Peft;
use ocelli_engine::{Ctx, Error, Precision};
use ocelli_kernels::{Backend, Device, DeviceOptions};
use ocelli_train::data::{Columns, order};
use ocelli_train::run::{Best, Metrics};
use ocelli_train::{
    AdamWOptions, Augment, Job, Learner, Parameter, Parameters, Recall, Rows, RunOptions, Schedule, TrainRow,
    Watcher, run,
};
use serde::Serialize;

use crate::args::{AugmentArgs, LearnArgs, MergeArgs, ScheduleArg, TrainArgs, TrainTask};
use crate::fail::{Failure, Outcome, SOME_FAILED, note, print, print_json};
use crate::interrupt::Gentle;
use crate::open;
use crate::progress::Steps;
use crate::units::bytes;

/// Runs the command.
pub fn train(args: &TrainArgs) -> Outcome {
    match &args.task {
        TrainTask::Sft(args) => sft::sft(args),
        TrainTask::Distill(args) => distill::distill(args),
        TrainTask::Pretrain(args) => pretrain::pretrain(args),
        TrainTask::Masked(args) => masked::masked(args),
        TrainTask::Contrastive(args) => contrastive::contrastive(args),
        TrainTask::Merge(args) => merge(args),
    }
}

fn merge(args: &MergeArgs) -> Outcome {
    let files = open::files(args.which.model())?;
    if args.out.join("model.safetensors").exists() {
        let what = format!("{}: there is a model already", args.out.display());
        return Err(Failure::new(what).hint("another --out takes the merged one"));
    }
    let changed = ocelli_train::lora::merge(&files, &Peft::open(&args.adapter)?, &args.out)?;
    print(&format!("{}: {changed} matrices have the adapter added\n", args.out.display()))?;
    Ok(std::process::ExitCode::SUCCESS)
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
    #[serde(skip_serializing_if = "Option::is_none")]
    exact: Option<f64>,
    /// The validation whose weights the model has, of runs with --patience.
    #[serde(skip_serializing_if = "Option::is_none")]
    best: Option<Best>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recall: Option<Recall>,
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
        let validation = checked(metrics.validation, metrics.exact, metrics.recall);
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

/// Rows of a run.
struct Given {
    /// Those to learn from.
    rows: Vec<TrainRow>,
    /// Those for validation.
    held: Vec<TrainRow>,
}

/// What rows are to have.
#[derive(Clone, Copy, Default)]
struct Needs {
    prompt: bool,
    text: bool,
    /// Whether each is one picture with one text.
    pairs: bool,
}

impl LearnArgs {
    /// Reads the rows, once it is sure that nothing else is written over.
    fn begin(&self) -> Result<Given, Failure> {
        self.begin_with(Needs { prompt: true, text: true, pairs: false })
    }

    /// As [`begin`](Self::begin), of rows that are to have less.
    fn begin_with(&self, needs: Needs) -> Result<Given, Failure> {
        if self.patience.is_some() && self.validation.is_none() && self.validation_share.is_none() {
            return Err(Failure::usage("--patience: expected --validation or --validation-share"));
        }
        let mut rows = self.rows(&self.data, needs)?;
        let held = self.validation.as_deref().map(|path| self.rows(path, needs)).transpose()?;
        let mut held = held.unwrap_or_default();
        if let Some(share) = self.validation_share {
            let count = ((rows.len() as f64 * share).round() as usize).max(1);
            if count >= rows.len() {
                let what = format!("{}: {} rows", self.data.display(), rows.len());
                return Err(Failure::new(format!("{what} leave none to learn from")));
            }
            // An order that no epoch has.
            let mut chosen = order(rows.len(), !self.seed, u64::MAX);
            chosen.truncate(count);
            let mut number = 0;
            let is_held = |_: &mut TrainRow| {
                number += 1;
                chosen.contains(&(number - 1))
            };
            held = rows.extract_if(.., is_held).collect();
        }
        // Told before anything is read or written.
        if !self.dry_run && !self.resume && self.out.join("checkpoint").exists() {
            let what = format!("{}: a run has written there already", self.out.display());
            return Err(Failure::new(what).hint("--resume goes on with it; another --out begins anew"));
        }
        Ok(Given { rows, held })
    }

    fn rows(&self, path: &Path, needs: Needs) -> Result<Vec<TrainRow>, Failure> {
        let columns = Columns {
            image: self.image_column.clone(),
            prompt: self.prompt_column.clone(),
            answer: self.answer_column.clone(),
            asked: needs.prompt,
            answered: needs.text,
        };
        let rows = if needs.pairs { Rows::pairs(path, &columns)? } else { Rows::read(path, &columns)? };
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

    /// What the run is told; `task` says what is learnt with which options of its own.
    fn options(&self, rows: usize, task: String) -> RunOptions {
        let steps = self.steps.unwrap_or_else(|| (self.epochs * rows).div_ceil(self.batch)) as u64;
        let schedule = match self.schedule {
            ScheduleArg::Constant => Schedule::Constant,
            ScheduleArg::Linear => Schedule::Linear,
            ScheduleArg::Cosine => Schedule::Cosine,
        };
        let augment = self.augment();
        let task = if augment.is_none() { task } else { format!("{task}, {augment:?}") };
        RunOptions {
            task,
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
            together: 1,
            seed: self.seed,
            save_every: self.save_every,
            check_every: self.check_every,
            patience: self.patience.unwrap_or(0) as u64,
        }
    }

    /// How pictures are changed.
    fn augment(&self) -> Augment {
        let AugmentArgs { crop, flip, colour } = self.augment;
        Augment { crop, flip, colour: colour.unwrap_or(0.0) }
    }

    /// A flag that changes pictures, if one is given.
    fn augment_flag(&self) -> Option<&'static str> {
        let AugmentArgs { crop, flip, colour } = self.augment;
        [("--crop", crop.is_some()), ("--flip", flip), ("--colour", colour.is_some())]
            .into_iter()
            .find_map(|(flag, given)| given.then_some(flag))
    }

    /// The CPU with the threads that are asked for, and a context on it.
    fn device(&self) -> Result<(Arc<dyn Device>, Ctx), Failure> {
        let threads = DeviceOptions { threads: self.threads, ..DeviceOptions::default() };
        let device = ocelli_kernels::open(Backend::Cpu, &threads).map_err(Error::from)?;
        let cx = Ctx::new(&*device, Precision::default())?;
        Ok((device, cx))
    }

    /// Runs a job, or says what it would do; `activations` says what bounds their memory.
    fn run<E: Send>(
        &self,
        cx: &mut Ctx,
        job: &Job<'_, E>,
        learner: &mut dyn Learner<E>,
        (model, activations): (&str, &str),
    ) -> Outcome {
        let parameters = job.parameters;
        if self.dry_run {
            return told_ahead(parameters, job, activations);
        }
        let gentle = Gentle::begin();
        let start = Instant::now();
        let bar = Steps::new("training", job.options.optimizer.steps as usize);
        let mut told = Told { bar, shown: 0, gentle: &gentle, bad: 0 };
        let ran = run(cx, job, learner, &mut told);
        drop(told);
        if let Some(report) = &self.report {
            report::write(report, self, job, (model, &ran))?;
        }
        let ran = match ran {
            Err(Error::Cancelled) => {
                return Err(Failure::interrupted("interrupted: what was learnt is in the checkpoint")
                    .hint("--resume goes on after the last step"));
            }
            ran => ran?,
        };
        if self.json {
            print_json(&Output {
                schema: "ocelli.train.v1",
                model,
                out: self.out.display().to_string(),
                parameters: parameters.count(),
                rows: job.rows.len(),
                steps: ran.steps,
                resumed: ran.resumed,
                loss: ran.loss,
                validation: ran.validation,
                exact: ran.exact,
                best: ran.best,
                recall: ran.recall,
                bad_rows: ran.bad_rows,
                seconds: start.elapsed().as_secs_f64(),
            })?;
        } else {
            print(&format!(
                "{}: {} steps, loss {:.4}{}, {:.0} s{}\n",
                self.out.display(),
                ran.steps,
                ran.loss,
                checked(ran.validation, ran.exact, ran.recall),
                start.elapsed().as_secs_f64(),
                ran.best.map(of_best).unwrap_or_default()
            ))?;
        }
        Ok(if ran.bad_rows > 0 { SOME_FAILED.into() } else { std::process::ExitCode::SUCCESS })
    }
}

/// Which weights the model has.
fn of_best(best: Best) -> String {
    format!("; the model is that of step {}, whose validation was the best ({:.4})", best.step, best.loss)
}

/// What a validation came to, behind a loss.
fn checked(loss: Option<f64>, exact: Option<f64>, recall: Option<Recall>) -> String {
    let loss = loss.map(|loss| format!(", validation {loss:.4}")).unwrap_or_default();
    let exact = exact.map(|share| format!(" ({:.1}% exact)", 100.0 * share)).unwrap_or_default();
    let both = |of: Recall| {
        format!(" (nearest text right for {:.1}%, picture for {:.1}%)", 100.0 * of.texts, 100.0 * of.pictures)
    };
    loss + &exact + &recall.map(both).unwrap_or_default()
}

/// Says what a run would do.
fn told_ahead<E>(parameters: &Parameters, job: &Job<'_, E>, activations: &str) -> Outcome {
    let total: usize = parameters.all().iter().map(Parameter::len).sum();
    print(&format!(
        "{} of {total} parameters are trained, by {} rows in {} steps of {}\nmemory: {} of parameters, gradients and moments, \
         and {activations}\n",
        parameters.count(),
        job.rows.len(),
        job.options.optimizer.steps,
        job.options.batch,
        bytes(4 * parameters.buffer_len() as u64),
    ))?;
    Ok(std::process::ExitCode::SUCCESS)
}
