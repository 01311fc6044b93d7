//! A run: steps over shuffled rows, checkpoints that are whole or absent, and going on after whatever ended it.

use std::convert::Infallible;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use ocelli_engine::files::{BESIDE_WEIGHTS, ModelFiles};
use ocelli_engine::parallel::try_map;
use ocelli_engine::{Ctx, Error, Result};
use ocelli_kernels::{DType, View};
use serde::{Deserialize, Serialize};

use crate::contrastive::Recall;
use crate::data::{TrainRow, order};
use crate::learner::{Draw, Learner, Read};
use crate::optimizer::{AdamWOptions, Optimizer};
use crate::parameters::Parameters;

/// What a run is told. Going on with a run takes the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunOptions {
    /// The optimizer and the number of steps.
    pub optimizer: AdamWOptions,
    /// What is learnt, and all that it depends on beside the rest of this: a text that differs where a run differs.
    pub task: String,
    /// Rows of a step.
    pub batch: usize,
    /// Neighbouring rows that stay together when they are shuffled; what is left over at the end of the file is not seen.
    #[serde(default = "alone")]
    pub together: usize,
    /// Of the order of rows, and of what is drawn.
    pub seed: u64,
    /// Steps between checkpoints; 0: one at the end alone.
    pub save_every: u64,
    /// Steps between validations; 0: one at the end alone.
    pub check_every: u64,
    /// Validations without a smaller loss after which the run ends; 0: it goes on. With it the model is that of the smallest loss.
    #[serde(default)]
    pub patience: u64,
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Metrics {
    /// Step, counted from 1.
    pub step: u64,
    /// Loss in nats a token.
    pub loss: f64,
    /// That of the rows for validation, where it was computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<f64>,
    /// Share of them that came out as they should, where that was computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<f64>,
    /// Of how many the nearest one of the other side was theirs, where pairs are learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recall: Option<Recall>,
    /// Learning rate.
    pub rate: f64,
    /// Norm of the gradient before it was clipped.
    pub norm: f64,
    /// Tokens that were learnt.
    pub learnt: usize,
    /// Tokens read.
    pub tokens: usize,
    /// Seconds of the step.
    pub seconds: f64,
}

/// The validation with the smallest loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its step.
    pub step: u64,
    /// Its loss.
    pub loss: f64,
}

/// Sees how a run goes on.
pub trait Watcher {
    /// After each step. An error ends the run, with a checkpoint.
    fn step(&mut self, metrics: &Metrics, steps: u64) -> Result<()>;

    /// A row that cannot be used, by its line.
    fn bad_row(&mut self, line: usize, why: &Error);

    /// A checkpoint was written.
    fn saved(&mut self, path: &Path);
}

/// What a run came to.
#[derive(Clone, Debug, Serialize)]
pub struct Ran {
    /// Steps done, those before it went on included.
    pub steps: u64,
    /// The step that it went on after.
    pub resumed: u64,
    /// Loss of the last step.
    pub loss: f64,
    /// Loss of the rows for validation at the end.
    pub validation: Option<f64>,
    /// Share of them that came out as they should.
    pub exact: Option<f64>,
    /// Of how many the nearest one of the other side was theirs, where pairs are learnt.
    pub recall: Option<Recall>,
    /// Of runs with [patience](RunOptions::patience): the validation whose weights the model has.
    pub best: Option<Best>,
    /// Rows that could not be used.
    pub bad_rows: usize,
    /// Folder of the model.
    pub out: PathBuf,
}

/// What a checkpoint says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    step: u64,
    options: RunOptions,
    rows: usize,
    /// The best validation so far, where those are held against each other.
    #[serde(default)]
    best: Option<Best>,
    /// Validations since.
    #[serde(default)]
    since: u64,
}

/// Steps whose losses tell what others are held against.
const EARLY: u64 = 8;

const STATE: &str = "training.json";
const MOMENTS: &str = "training.bin";
const BEST: &str = "best.bin";

/// A run: what is learnt from which rows, and where it goes.
pub struct Job<'a, E> {
    /// What is trained.
    pub parameters: &'a Parameters,
    /// Rows to learn from.
    pub rows: &'a [TrainRow],
    /// Rows whose loss is told.
    pub validation: &'a [TrainRow],
    /// What the run is told.
    pub options: &'a RunOptions,
    /// Makes examples of rows, on other threads and ahead of the step.
    pub read: &'a Read<'a, E>,
    /// Threads that do so.
    pub threads: usize,
    /// Writes what was learnt into a folder.
    pub write: &'a dyn Fn(&mut Ctx, &Path) -> Result<()>,
    /// The folder.
    pub out: &'a Path,
    /// Whether to go on where a run with the same options ended.
    pub resume: bool,
}

/// Examples of a step, prepared ahead of it, and rows that could not be used.
struct Prepared<E> {
    examples: Vec<E>,
    /// The line of each.
    lines: Vec<usize>,
    bad: Vec<(usize, Error)>,
}

/// Trains, and writes what was learnt to `out`, with what a later run needs to go on in `out/checkpoint`. With `resume` it goes on
/// from there.
///
/// # Errors
/// If no row can be used, a step fails, or a checkpoint cannot be written or is another run's.
pub fn run<E: Send>(
    cx: &mut Ctx,
    job: &Job<'_, E>,
    learner: &mut dyn Learner<E>,
    watcher: &mut dyn Watcher,
) -> Result<Ran> {
    let Job { parameters, rows, options, read, threads, out, .. } = *job;
    if rows.is_empty() {
        return Err(Error::Train("expected rows to train on, found none".into()));
    }
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |error| Error::Store { path, error }
    };
    std::fs::create_dir_all(out).map_err(io(out))?;
    let mut optimizer = Optimizer::new(cx, parameters, options.optimizer.clone())?;
    let (kept, best_weights) = (out.join("checkpoint"), out.join(BEST));
    let (mut best, mut since) = (None, 0);
    if job.resume
        && let Some(state) = go_on(cx, &kept, parameters, &optimizer, options, rows.len())?
    {
        (optimizer.steps, best, since) = (state.step, state.best, state.since);
    }
    let over = |since: u64| options.patience > 0 && since >= options.patience;
    let steps = if over(since) { optimizer.steps } else { options.optimizer.steps };
    let resumed = optimizer.steps;
    let log = out.join("metrics.jsonl");
    let mut metrics_file = keep_metrics(&log, resumed)?;
    let mut bad_rows = 0;
    let held = prepare((read, threads), job.validation.iter().map(|row| (row, None)));
    for (line, why) in &held.bad {
        watcher.bad_row(*line, why);
    }
    let (mut last, mut checked) = (f64::NAN, None);
    // What guessing costs, and the largest of the first losses.
    let (uniform, mut most) = (learner.guess(), 0f64);
    std::thread::scope(|scope| -> Result<()> {
        let (send, receive) = sync_channel(2);
        scope.spawn(move || {
            for step in resumed + 1..=steps {
                let chosen = rows_of(rows.len(), options, step).into_iter();
                let chosen = chosen.map(|(epoch, at)| {
                    (&rows[at], Some(Draw { seed: options.seed, epoch, line: rows[at].line }))
                });
                if send.send(prepare((read, threads), chosen)).is_err() {
                    break;
                }
            }
        });
        let receive: Receiver<Prepared<E>> = receive;
        for step in resumed + 1..=steps {
            let start = Instant::now();
            let prepared = receive
                .recv()
                .map_err(|_| Error::Train("the thread that prepares examples has ended".into()))?;
            bad_rows += prepared.bad.len();
            for (line, why) in &prepared.bad {
                watcher.bad_row(*line, why);
            }
            if prepared.examples.is_empty() {
                return Err(Error::Train(format!("step {step}: none of its rows can be used")));
            }
            let lines = &prepared.lines;
            let loss = learner.gradient(cx, &prepared.examples);
            let loss = loss.map_err(|error| at_step(step, lines, error))?;
            if !loss.mean().is_finite() {
                let why = format!("the loss is {}: {}", loss.mean(), optimizer.not_finite(cx, parameters));
                return Err(at_step(step, lines, Error::Train(why)));
            }
            if step <= resumed + EARLY {
                most = most.max(loss.mean());
            }
            if loss.mean() > 2.0 * most + 4.0 * uniform {
                let steepest = optimizer.steepest(cx, parameters);
                let steepest = steepest.map(|(name, norm)| {
                    format!("; the largest gradient is that of `{name}`, of norm {norm:.1e}")
                });
                let why = format!(
                    "the loss rose to {:.2} from {most:.2}: a smaller learning rate may help{}",
                    loss.mean(),
                    steepest.unwrap_or_default()
                );
                return Err(at_step(step, lines, Error::Train(why)));
            }
            let stepped = optimizer.step(cx, parameters).map_err(|error| at_step(step, lines, error))?;
            learner.stepped(cx)?;
            let last_one = step == options.optimizer.steps;
            let due = |every: u64| last_one || every > 0 && step.is_multiple_of(every);
            if !held.examples.is_empty() && due(options.check_every) {
                let now = learner.check(cx, &held.examples)?;
                checked = Some(now);
                if options.patience > 0 {
                    since += 1;
                    if best.is_none_or(|best: Best| now.loss < best.loss) {
                        keep_best(cx, &best_weights, parameters)?;
                        (best, since) = (Some(Best { step, loss: now.loss }), 0);
                    }
                }
            } else if !last_one {
                checked = None;
            }
            last = loss.mean();
            let metrics = Metrics {
                step,
                loss: last,
                validation: checked.map(|checked| checked.loss),
                exact: checked.and_then(|checked| checked.exact),
                recall: checked.and_then(|_| learner.recall()),
                rate: stepped.rate,
                norm: stepped.norm,
                learnt: loss.tokens,
                tokens: loss.read,
                seconds: start.elapsed().as_secs_f64(),
            };
            let line = serde_json::to_string(&metrics).unwrap_or_default();
            writeln!(metrics_file, "{line}").map_err(io(&log))?;
            let ended = watcher.step(&metrics, options.optimizer.steps);
            if due(options.save_every) || ended.is_err() || over(since) {
                let state = State { step, options: options.clone(), rows: rows.len(), best, since };
                save(cx, &kept, parameters, &optimizer, &state)?;
                watcher.saved(&kept);
            }
            ended?;
            if over(since) {
                break;
            }
        }
        Ok(())
    })?;
    if best.is_some() {
        take_best(cx, &best_weights, parameters)?;
    }
    (job.write)(cx, out)?;
    Ok(Ran {
        steps: optimizer.steps,
        resumed,
        loss: last,
        validation: checked.map(|checked| checked.loss),
        exact: checked.and_then(|checked| checked.exact),
        recall: checked.and_then(|_| learner.recall()),
        best,
        bad_rows,
        out: out.to_owned(),
    })
}

fn at_step(step: u64, lines: &[usize], error: Error) -> Error {
    match error {
        Error::Train(why) => {
            let lines: Vec<String> = lines.iter().map(usize::to_string).collect();
            Error::Train(format!("step {step}, lines {}: {why}", lines.join(", ")))
        }
        other => other,
    }
}

fn alone() -> usize {
    1
}

/// Epochs and rows of a step: a run over all epochs, each in its own order.
fn rows_of(rows: usize, options: &RunOptions, step: u64) -> Vec<(u64, usize)> {
    // A file of fewer rows than are to be together is one group.
    let together = options.together.clamp(1, rows.max(1));
    let (groups, first) = (rows / together, (step - 1) * options.batch as u64);
    let seen = (groups * together) as u64;
    let mut all = Vec::with_capacity(options.batch);
    let mut known: Option<(u64, Vec<usize>)> = None;
    for at in first..first + options.batch as u64 {
        let (epoch, place) = (at / seen, (at % seen) as usize);
        let of_epoch = match known.take() {
            Some((number, order)) if number == epoch => order,
            _ => order(groups, options.seed, epoch),
        };
        all.push((epoch, of_epoch[place / together] * together + place % together));
        known = Some((epoch, of_epoch));
    }
    all
}

/// Makes examples of rows, on all threads.
fn prepare<'a, E: Send>(
    (read, threads): (&Read<'_, E>, usize),
    rows: impl Iterator<Item = (&'a TrainRow, Option<Draw>)>,
) -> Prepared<E> {
    let rows: Vec<_> = rows.collect();
    let one = |(row, draw): &(&TrainRow, Option<Draw>)| (row.line, read(row, *draw));
    let done = try_map(&rows, threads, |row, _| Ok::<_, Infallible>(one(row)));
    let mut prepared = Prepared { examples: Vec::new(), lines: Vec::new(), bad: Vec::new() };
    for (line, example) in done.unwrap_or_default() {
        match example {
            Ok(example) => {
                prepared.examples.push(example);
                prepared.lines.push(line);
            }
            Err(why) => prepared.bad.push((line, why)),
        }
    }
    prepared
}

/// Opens the file of metrics behind those of the first `steps` steps: lines of steps that were not saved are left out.
fn keep_metrics(path: &Path, steps: u64) -> Result<std::fs::File> {
    let io = |error| Error::Store { path: path.display().to_string(), error };
    let before = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(io(error)),
    };
    let kept = before
        .lines()
        .filter(|line| serde_json::from_str::<Metrics>(line).is_ok_and(|metrics| metrics.step <= steps));
    let kept: String = kept.flat_map(|line| [line, "\n"]).collect();
    std::fs::write(path, kept).map_err(io)?;
    std::fs::OpenOptions::new().append(true).open(path).map_err(io)
}

/// Writes a checkpoint beside the last one and puts it in its place: there is a whole one at any moment.
fn save(
    cx: &mut Ctx,
    place: &Path,
    parameters: &Parameters,
    optimizer: &Optimizer,
    state: &State,
) -> Result<()> {
    let io = |error| Error::Store { path: place.display().to_string(), error };
    let (fresh, old) = (place.with_extension("new"), place.with_extension("old"));
    let _ = std::fs::remove_dir_all(&fresh);
    let written = save_fresh(cx, &fresh, parameters, optimizer, state);
    if written.is_err() {
        let _ = std::fs::remove_dir_all(&fresh);
    }
    written?;
    let _ = std::fs::remove_dir_all(&old);
    if place.exists() {
        std::fs::rename(place, &old).map_err(io)?;
    }
    std::fs::rename(&fresh, place).map_err(io)?;
    let _ = std::fs::remove_dir_all(&old);
    Ok(())
}

/// Writes a checkpoint into a new folder.
fn save_fresh(
    cx: &mut Ctx,
    fresh: &Path,
    parameters: &Parameters,
    optimizer: &Optimizer,
    state: &State,
) -> Result<()> {
    let io = |error| Error::Store { path: fresh.display().to_string(), error };
    std::fs::create_dir_all(fresh).map_err(io)?;
    let text = serde_json::to_string_pretty(state).unwrap_or_default();
    std::fs::write(fresh.join(STATE), text).map_err(io)?;
    let mut file = std::fs::File::create(fresh.join(MOMENTS)).map_err(io)?;
    for storage in optimizer.state(parameters) {
        let len = storage.len();
        let mut bytes = vec![0; len];
        cx.stream().read(&View::dense(storage, &[len], DType::U8)?, &mut bytes)?;
        file.write_all(&bytes).map_err(io)?;
    }
    file.sync_all().map_err(io)
}

/// Writes the parameters as they are beside those that were the best before, and puts them in their place.
fn keep_best(cx: &mut Ctx, place: &Path, parameters: &Parameters) -> Result<()> {
    let io = |error| Error::Store { path: place.display().to_string(), error };
    let (fresh, len) = (place.with_extension("new"), parameters.buffer_len());
    let mut bytes = vec![0; len];
    cx.stream().read(&View::dense(parameters.storage().clone(), &[len], DType::U8)?, &mut bytes)?;
    let written = (|| {
        let mut file = std::fs::File::create(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, place)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    written.map_err(io)
}

/// Makes the parameters those that were kept as the best.
fn take_best(cx: &mut Ctx, place: &Path, parameters: &Parameters) -> Result<()> {
    let bytes =
        std::fs::read(place).map_err(|error| Error::Store { path: place.display().to_string(), error })?;
    let len = parameters.buffer_len();
    if bytes.len() != len {
        let found = bytes.len();
        return Err(Error::Train(format!("{}: expected {len} bytes, found {found}", place.display())));
    }
    Ok(cx.stream().write(&View::dense(parameters.storage().clone(), &[len], DType::U8)?, &bytes)?)
}

/// Reads a checkpoint back and gives what it says of itself; `None` where there is none yet.
fn go_on(
    cx: &mut Ctx,
    place: &Path,
    parameters: &Parameters,
    optimizer: &Optimizer,
    options: &RunOptions,
    rows: usize,
) -> Result<Option<State>> {
    // Between two renames the last one has another name.
    let old = place.with_extension("old");
    let place = if place.exists() || !old.exists() { place } else { &old };
    let io = |error| Error::Store { path: place.display().to_string(), error };
    let text = match std::fs::read_to_string(place.join(STATE)) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let other = |what: String| Error::Train(format!("{}: {what}", place.display()));
    let state: State = serde_json::from_str(&text).map_err(|error| other(format!("{STATE}: {error}")))?;
    if state.options != *options || state.rows != rows {
        return Err(other(
            "this checkpoint is of a run with other options or rows; without --resume it begins anew".into(),
        ));
    }
    let bytes = std::fs::read(place.join(MOMENTS)).map_err(io)?;
    let all = optimizer.state(parameters);
    let expected: usize = all.iter().map(ocelli_kernels::Storage::len).sum();
    if bytes.len() != expected {
        return Err(other(format!("{MOMENTS}: expected {expected} bytes, found {}", bytes.len())));
    }
    let mut rest = &bytes[..];
    for storage in all {
        let len = storage.len();
        let (part, after) = rest.split_at(len);
        cx.stream().write(&View::dense(storage, &[len], DType::U8)?, part)?;
        rest = after;
    }
    Ok(Some(state))
}

/// Writes a model: configuration, tokenizer and processor as they were, and the weights.
///
/// # Errors
/// If a file cannot be written.
pub fn write_model(cx: &mut Ctx, files: &ModelFiles, parameters: &Parameters, out: &Path) -> Result<()> {
    write_model_of(cx, files, parameters, out, &|_| true)
}

/// As [`write_model`], with those parameters alone that are chosen by name.
///
/// # Errors
/// If a file cannot be written.
pub fn write_model_of(
    cx: &mut Ctx,
    files: &ModelFiles,
    parameters: &Parameters,
    out: &Path,
    chosen: &dyn Fn(&str) -> bool,
) -> Result<()> {
    let io = |error| Error::Store { path: out.display().to_string(), error };
    for name in std::iter::once("config.json").chain(BESIDE_WEIGHTS.iter().copied()) {
        if let Some(bytes) = files.read(name)? {
            std::fs::write(out.join(name), bytes).map_err(io)?;
        }
    }
    let fresh = out.join("model.safetensors.new");
    parameters.save_those(cx, &fresh, chosen)?;
    std::fs::rename(&fresh, out.join("model.safetensors")).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::Schedule;

    #[test]
    fn rows_stay_together() {
        let optimizer = AdamWOptions {
            rate: 1.0,
            betas: [0.9, 0.999],
            decay: 0.0,
            clip: None,
            schedule: Schedule::Constant,
            warmup: 0,
            steps: 9,
        };
        let task = "test".to_owned();
        let mut options = RunOptions {
            optimizer,
            task,
            batch: 6,
            together: 3,
            seed: 1,
            save_every: 0,
            check_every: 0,
            patience: 0,
        };
        // Of ten rows the last is left over: an epoch is a step and a half.
        let all: Vec<(u64, usize)> = (1..=3).flat_map(|step| rows_of(10, &options, step)).collect();
        for epoch in 0..2 {
            let rows: Vec<usize> = all.iter().filter(|row| row.0 == epoch).map(|row| row.1).collect();
            assert!(rows.chunks(3).all(|group| group[0] % 3 == 0 && group[2] == group[0] + 2), "{rows:?}");
            let mut sorted = rows;
            sorted.sort_unstable();
            assert_eq!(sorted, (0..9).collect::<Vec<_>>());
        }
        options.together = 1;
        let mut rows: Vec<usize> =
            (1..=5).flat_map(|step| rows_of(10, &options, step)).map(|row| row.1).collect();
        rows.truncate(10);
        rows.sort_unstable();
        assert_eq!(rows, (0..10).collect::<Vec<_>>());
        options.together = 64;
        assert_eq!(rows_of(4, &options, 1).len(), 6);
    }
}
