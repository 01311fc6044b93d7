//! How a batch went.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use ocelli_engine::scheduler::Load;
use serde::Serialize;

use crate::fail::Failure;

/// A stage of the work and its share of the time.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// What is done.
    pub name: &'static str,
    /// Seconds, of all threads that do it.
    pub seconds: f64,
    /// Share of the time of these threads.
    pub occupancy: f64,
}

/// How a batch went.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    schema: &'static str,
    /// Rows that were written, failed ones included.
    pub rows: usize,
    /// Rows with an error in place of an answer.
    pub failed: usize,
    /// Rows that were there before.
    pub resumed: usize,
    /// Pictures of rows with answers.
    pub pictures: usize,
    /// Tokens of answers.
    pub tokens: usize,
    /// Pictures that were not encoded again, as their features were there.
    pub reused_pictures: usize,
    /// Tokens of prompts that were not read again.
    pub reused_tokens: usize,
    /// Tokens that were guessed (`--speculate`), and those of them that were right.
    pub guessed_tokens: usize,
    /// See `guessed_tokens`.
    pub accepted_tokens: usize,
    /// How often a running request had to wait for memory.
    pub preempted: usize,
    /// Seconds until the model was loaded.
    pub load_s: f64,
    /// Seconds from there to the last row.
    pub run_s: f64,
    /// Seconds of everything.
    pub total_s: f64,
    /// Rows a second, loading left out.
    pub rows_per_s: f64,
    /// Pictures of answers a second, loading left out.
    pub pictures_per_s: f64,
    /// Tokens of answers a second, loading left out.
    pub tokens_per_s: f64,
    /// Where the time went.
    pub stages: Vec<Stage>,
}

impl Report {
    /// Sets what is known at the end: `prepared` are nanoseconds of decoding and of resizing, on `threads` threads.
    pub fn measure(&mut self, run: Duration, load: &Load, threads: usize, prepared: [u64; 2]) {
        let run = run.as_secs_f64();
        let rate = |count: usize| if run > 0.0 { count as f64 / run } else { 0.0 };
        self.schema = "ocelli.batch.v1";
        (self.run_s, self.preempted) = (run, load.preempted);
        (self.reused_pictures, self.reused_tokens) = (load.reused_pictures, load.reused_tokens);
        (self.rows_per_s, self.pictures_per_s) = (rate(self.rows), rate(self.pictures));
        self.tokens_per_s = rate(self.tokens);
        let t = &load.timings;
        (self.guessed_tokens, self.accepted_tokens) = (t.guessed_tokens, t.accepted_tokens);
        let stage = |name, seconds: f64, threads: usize| {
            let all = run * threads as f64;
            Stage { name, seconds, occupancy: if all > 0.0 { seconds / all } else { 0.0 } }
        };
        self.stages = vec![
            stage("decode picture", prepared[0] as f64 / 1e9, threads),
            stage("resize", prepared[1] as f64 / 1e9, threads),
            stage("tower", t.tower_ms / 1e3, 1),
            stage("connector", t.connector_ms / 1e3, 1),
            stage("prefill", t.prefill_ms / 1e3, 1),
            stage("decode", t.decode_ms / 1e3, 1),
        ];
    }

    /// Writes it to a file: as a page if its name ends in .html, else as JSON.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = match path.extension().is_some_and(|end| end.eq_ignore_ascii_case("html")) {
            true => self.page(),
            false => serde_json::to_string_pretty(self)? + "\n",
        };
        std::fs::write(path, text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
    }

    /// A page that needs nothing else.
    fn page(&self) -> String {
        let bars: String = self
            .stages
            .iter()
            .map(|stage| {
                let percent = 100.0 * stage.occupancy;
                format!(
                    "<tr><th scope=\"row\">{}</th><td>{:.2} s</td><td><meter min=\"0\" max=\"100\" value=\"{percent:.1}\"></meter> {percent:.0}%</td></tr>\n",
                    stage.name, stage.seconds
                )
            })
            .collect();
        let row =
            |name: &str, value: String| format!("<tr><th scope=\"row\">{name}</th><td>{value}</td></tr>\n");
        let facts: String = [
            row("rows", self.rows.to_string()),
            row("of these failed", self.failed.to_string()),
            row("there before", self.resumed.to_string()),
            row("rows a second", format!("{:.2}", self.rows_per_s)),
            row("pictures a second", format!("{:.2}", self.pictures_per_s)),
            row("tokens a second", format!("{:.1}", self.tokens_per_s)),
            row("pictures seen before", self.reused_pictures.to_string()),
            row("prompt tokens read before", self.reused_tokens.to_string()),
            row("tokens guessed right", format!("{} of {}", self.accepted_tokens, self.guessed_tokens)),
            row("loading", format!("{:.1} s", self.load_s)),
            row("running", format!("{:.1} s", self.run_s)),
        ]
        .concat();
        format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>ocelli batch</title>\n<style>\
             :root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}}\
             th{{text-align:left;font-weight:400;padding-right:1.5rem}}td{{font-variant-numeric:tabular-nums;padding-right:1.5rem}}\
             meter{{width:12rem}}</style>\n<h1>ocelli batch</h1>\n<table>\n{facts}</table>\n<h2>Stages</h2>\n\
             <p>Share of the run that each stage was at work.</p>\n<table>\n{bars}</table>\n</html>\n"
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows in {:.1} s: {:.2} rows/s, {:.2} pictures/s, {:.1} tokens/s",
            self.rows, self.run_s, self.rows_per_s, self.pictures_per_s, self.tokens_per_s
        )?;
        if self.failed > 0 {
            write!(f, "; {} failed", self.failed)?;
        }
        if self.resumed > 0 {
            write!(f, "; {} were there before", self.resumed)?;
        }
        for stage in self.stages.iter().filter(|stage| stage.occupancy >= 0.005) {
            write!(
                f,
                "{} {} {:.0}%",
                if stage.name == "decode picture" { "; busy:" } else { "," },
                stage.name,
                100.0 * stage.occupancy
            )?;
        }
        Ok(())
    }
}
