//! Accuracy on a set of questions with known answers, such as the demo model's `models/demo/eval`.
//!
//! The directory holds `eval.jsonl` with rows `{image, question, answer, task}`, the pictures, and, if there is one,
//! `answers.jsonl` with what transformers answered to each row.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use ocelli_engine::image::{DecodeOptions, decode_file};
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::{Media, Request, generate};
use ocelli_engine::text::Message;
use ocelli_engine::{Ctx, Error, Pipeline, Result};
use serde::{Deserialize, Serialize};

/// Version of the report's layout.
pub const SCHEMA: &str = "ocelli.eval.v1";

/// Most tokens of an answer.
const MAX_TOKENS: usize = 64;

/// What the model got right.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Version of this layout.
    pub schema: &'static str,
    /// Rows that were asked.
    pub rows: usize,
    /// Rows whose whole answer is right.
    pub correct: usize,
    /// Percent of rows that are right.
    pub accuracy: f64,
    /// Rows and right ones of each task.
    pub tasks: BTreeMap<String, (usize, usize)>,
    /// Rows whose token ids differ from transformers' f32 run; `None` without its answers.
    pub differing: Option<Vec<Difference>>,
}

/// A row that transformers answers otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// Number of the row, from 0.
    pub row: usize,
    /// What transformers answers in f32.
    pub expected: String,
    /// What this model answered.
    pub got: String,
    /// The smallest distance between the best logit and the second of transformers' f32 run, over the tokens of its answer; 0 where its
    /// answers do not tell.
    pub gap: f64,
}

#[derive(Deserialize)]
struct Row {
    image: String,
    question: String,
    answer: String,
    #[serde(default)]
    task: String,
}

#[derive(Deserialize)]
struct Known {
    f32: Answered,
}

#[derive(Deserialize)]
struct Answered {
    text: String,
    tokens: Vec<u32>,
    #[serde(default)]
    gap: f64,
}

fn lines<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Vec<T>> {
    let bad = |reason: String| Error::Config { path: path.display().to_string(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let rows = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    rows.map(|(i, line)| serde_json::from_str(line).map_err(|error| bad(format!("line {}: {error}", i + 1))))
        .collect()
}

/// Asks every row of `dir` whose number is a multiple of `every`, the rows of one picture in one batch.
pub fn evaluate(pipeline: &Pipeline, cx: &mut Ctx, dir: &Path, every: usize) -> Result<Report> {
    let rows: Vec<Row> = lines(&dir.join("eval.jsonl"))?;
    let answers = dir.join("answers.jsonl");
    let known: Option<Vec<Known>> = if answers.is_file() { Some(lines(&answers)?) } else { None };
    let params = SamplingParams { max_tokens: MAX_TOKENS, ..SamplingParams::default() };
    let mut pictures: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (number, row) in rows.iter().enumerate().step_by(every.max(1)) {
        pictures.entry(&row.image).or_default().push(number);
    }

    let mut report =
        Report { schema: SCHEMA, differing: known.is_some().then(Vec::new), ..Report::default() };
    for (picture, numbers) in pictures {
        let picture = decode_file(&dir.join(picture), &DecodeOptions::default())?;
        let prepared = pipeline.prepare(&[picture])?;
        let features: Vec<Media> = pipeline.encode(cx, &prepared)?.into_iter().map(Media::from).collect();
        let images: Vec<_> = prepared.iter().collect();
        let mut requests = Vec::with_capacity(numbers.len());
        for &number in &numbers {
            let messages = [Message::user(1, rows[number].question.clone())];
            let prompt = pipeline.lay_out(&messages, &images)?;
            requests.push(Request { prompt, media: features.clone(), params: params.clone() });
        }
        let answers =
            generate(cx, &pipeline.model, &pipeline.tokenizer, requests, |_, _| ControlFlow::Continue(()))?;
        for (number, answer) in numbers.into_iter().zip(answers) {
            let row = &rows[number];
            let text = answer.text.trim();
            let right = text == row.answer;
            report.rows += 1;
            report.correct += usize::from(right);
            let task = report.tasks.entry(row.task.clone()).or_default();
            task.0 += 1;
            task.1 += usize::from(right);
            let known = known.as_ref().and_then(|known| known.get(number)).map(|known| &known.f32);
            if let (Some(known), Some(differing)) = (known, &mut report.differing)
                && (answer.token_ids != known.tokens || text != known.text)
            {
                let (expected, got) = (known.text.clone(), text.to_owned());
                differing.push(Difference { row: number, expected, got, gap: known.gap });
            }
        }
    }
    if let Some(differing) = &mut report.differing {
        differing.sort_by_key(|difference| difference.row);
    }
    report.accuracy = 100.0 * report.correct as f64 / report.rows.max(1) as f64;
    Ok(report)
}
