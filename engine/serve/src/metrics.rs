//! What the server counts, as Prometheus reads it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ocelli_engine::scheduler::Load;

/// Upper bounds of the buckets of times, in seconds.
const BOUNDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Times in buckets.
#[derive(Default)]
pub(crate) struct Times {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Times {
    /// Counts a time.
    pub fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        if let Some(place) = BOUNDS.iter().position(|&bound| seconds <= bound) {
            self.buckets[place].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    /// Their mean in seconds, 0 if there are none.
    pub fn mean(&self) -> f64 {
        let count = self.count.load(Ordering::Relaxed);
        if count == 0 { 0.0 } else { self.micros.load(Ordering::Relaxed) as f64 * 1e-6 / count as f64 }
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, "histogram", help);
        let mut sum = 0;
        for (bound, bucket) in BOUNDS.iter().zip(&self.buckets) {
            sum += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let count = self.count.load(Ordering::Relaxed);
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum {}", self.micros.load(Ordering::Relaxed) as f64 * 1e-6);
        let _ = writeln!(out, "{name}_count {count}");
    }
}

/// What the server counts.
#[derive(Default)]
pub(crate) struct Metrics {
    /// Requests by path and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Answers that ended before their time, by the reason.
    ended: Mutex<BTreeMap<&'static str, u64>>,
    /// Tokens of prompts that were answered.
    pub prompt_tokens: AtomicU64,
    /// Tokens of answers.
    pub answer_tokens: AtomicU64,
    /// From a request's arrival at the scheduler to its first token.
    pub first_token: Times,
    /// Between the tokens of an answer.
    pub token_gap: Times,
    /// Of whole answers.
    pub answers: Times,
    /// Reading and decoding the pictures of a request.
    pub pictures: Times,
    /// Resizing pictures and laying the prompt out.
    pub prepare: Times,
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

impl Metrics {
    /// Counts an answered request.
    pub fn request(&self, path: &'static str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((path, status)).or_default() += 1;
    }

    /// Counts an answer that ended before its time.
    pub fn ended(&self, why: &'static str) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner).entry(why).or_default() += 1;
    }

    /// The text that Prometheus reads. `held`: places of the queue that are taken, and all of them.
    pub fn text(&self, load: Option<&Load>, held: (usize, usize)) -> String {
        let mut out = String::new();
        head(&mut out, "ocelli_requests_total", "counter", "Requests by path and status.");
        for ((path, status), count) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "ocelli_requests_total{{path=\"{path}\",status=\"{status}\"}} {count}");
        }
        head(&mut out, "ocelli_ended_total", "counter", "Answers that ended before their time.");
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        for why in ["disconnect", "drain", "error", "timeout"] {
            let count = ended.get(why).copied().unwrap_or(0);
            let _ = writeln!(out, "ocelli_ended_total{{why=\"{why}\"}} {count}");
        }
        drop(ended);
        let mut one = |name: &str, kind: &str, help: &str, value: f64| {
            head(&mut out, name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        };
        let count = |value: &AtomicU64| value.load(Ordering::Relaxed) as f64;
        one("ocelli_prompt_tokens_total", "counter", "Tokens of prompts.", count(&self.prompt_tokens));
        one("ocelli_answer_tokens_total", "counter", "Tokens of answers.", count(&self.answer_tokens));
        one("ocelli_places_taken", "gauge", "Answers that run, wait or are made ready.", held.0 as f64);
        one("ocelli_places", "gauge", "Answers that may run, wait or be made ready.", held.1 as f64);
        if let Some(load) = load {
            one("ocelli_running", "gauge", "Answers that run.", load.running as f64);
            one("ocelli_waiting", "gauge", "Answers that wait for room.", load.waiting as f64);
            let (used, all) = load.pages;
            one("ocelli_kv_pages_used", "gauge", "Pages of keys and values that are held.", used as f64);
            one("ocelli_kv_pages", "gauge", "Pages of keys and values.", all as f64);
            let help = "How often a running answer gave its pages back.";
            one("ocelli_preempted_total", "counter", help, load.preempted as f64);
            let times = &load.timings;
            head(&mut out, "ocelli_stage_seconds_total", "counter", "Time of the engine's stages.");
            for (stage, ms) in [
                ("tower", times.tower_ms),
                ("connector", times.connector_ms),
                ("prefill", times.prefill_ms),
                ("decode", times.decode_ms),
            ] {
                let _ = writeln!(out, "ocelli_stage_seconds_total{{stage=\"{stage}\"}} {}", ms * 1e-3);
            }
        }
        for (times, name, help) in [
            (&self.pictures, "ocelli_pictures_seconds", "Reading and decoding a request's pictures."),
            (&self.prepare, "ocelli_prepare_seconds", "Resizing pictures and laying a prompt out."),
            (
                &self.first_token,
                "ocelli_first_token_seconds",
                "From the scheduler's queue to the first token.",
            ),
            (&self.token_gap, "ocelli_token_gap_seconds", "Between the tokens of an answer."),
            (&self.answers, "ocelli_answer_seconds", "Whole answers."),
        ] {
            times.write(&mut out, name, help);
        }
        out
    }
}
