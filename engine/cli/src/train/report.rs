//! The page of a run.

use std::path::Path;

use ocelli_bench::trained::{Step, trained};
use ocelli_engine::Error;
use ocelli_train::Job;
use ocelli_train::run::{Metrics, Ran};

use crate::args::LearnArgs;
use crate::compare::write_page;
use crate::fail::Failure;

/// Writes the page of a run from its metrics, also of one that failed.
pub fn write<E>(
    path: &Path,
    args: &LearnArgs,
    job: &Job<'_, E>,
    (model, ran): (&str, &Result<Ran, Error>),
) -> Result<(), Failure> {
    let log = args.out.join("metrics.jsonl");
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let all: Vec<Metrics> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let steps: Vec<Step> = all
        .iter()
        .map(|metrics| Step {
            step: metrics.step,
            loss: metrics.loss,
            validation: metrics.validation,
            exact: metrics.exact,
            rate: metrics.rate,
            norm: metrics.norm,
            tokens_per_s: metrics.tokens as f64 / metrics.seconds.max(1e-9),
        })
        .collect();
    let options = job.options;
    let seconds: f64 = all.iter().map(|metrics| metrics.seconds).sum();
    let mut facts = vec![
        ("model", model.to_owned()),
        ("folder", args.out.display().to_string()),
        ("task", options.task.clone()),
        ("parameters that are trained", job.parameters.count().to_string()),
        ("rows", format!("{}, and {} for validation", job.rows.len(), job.validation.len())),
        ("steps", format!("{} of {}, of {} rows", steps.len(), options.optimizer.steps, options.batch)),
        ("seconds of steps", format!("{seconds:.0}")),
    ];
    match ran {
        Ok(ran) => {
            facts.push(("last loss", format!("{:.4}", ran.loss)));
            facts.extend(ran.validation.map(|loss| ("last validation", format!("{loss:.4}"))));
            facts.extend(ran.best.map(|best| {
                ("the model's weights", format!("those of step {}, validation {:.4}", best.step, best.loss))
            }));
            facts.push(("rows left out", ran.bad_rows.to_string()));
        }
        Err(error) => facts.push(("ended by", error.to_string())),
    }
    let facts: Vec<(String, String)> =
        facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    write_page(path, &trained("A training run of Ocelli", &facts, &steps))
}
