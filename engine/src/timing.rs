//! Where the time of a request goes.

use std::time::{Duration, Instant};

use serde::Serialize;

/// A stage whose time is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading and decoding picture files.
    DecodeImage,
    /// Resizing and tiling, and laying the prompt out.
    Resize,
    /// Vision tower.
    Tower,
    /// Connector between tower and decoder.
    Connector,
    /// Forward passes over prompts, pictures excluded.
    Prefill,
    /// Forward passes over one token a sequence, and sampling.
    Decode,
}

impl Phase {
    /// A span of the stage, for whoever collects them.
    #[must_use]
    pub fn span(self) -> tracing::Span {
        match self {
            Self::DecodeImage => tracing::info_span!("decode_image"),
            Self::Resize => tracing::info_span!("resize"),
            Self::Tower => tracing::info_span!("tower"),
            Self::Connector => tracing::info_span!("connector"),
            Self::Prefill => tracing::info_span!("prefill"),
            Self::Decode => tracing::info_span!("decode"),
        }
    }
}

/// Time and amount of work of each stage. Always collected: two clock reads a stage.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Timings {
    /// Milliseconds of reading and decoding picture files.
    pub decode_image_ms: f64,
    /// Milliseconds of resizing and tiling, and of laying the prompt out; the tower may run meanwhile.
    pub resize_ms: f64,
    /// Milliseconds in the vision tower.
    pub tower_ms: f64,
    /// Milliseconds in the connector.
    pub connector_ms: f64,
    /// Milliseconds of forward passes over prompts.
    pub prefill_ms: f64,
    /// Milliseconds of decode steps.
    pub decode_ms: f64,
    /// Milliseconds of these in which the host prepared work for a device beside it; 0 where the host does the work.
    pub decode_encode_ms: f64,
    /// Tiles that went through the tower.
    pub tiles: usize,
    /// Prompt tokens that went through the decoder.
    pub prefill_tokens: usize,
    /// Tokens made by decode steps.
    pub decode_tokens: usize,
    /// Tokens that were guessed, and those of them that were right: these are among `decode_tokens`.
    pub guessed_tokens: usize,
    /// See `guessed_tokens`.
    pub accepted_tokens: usize,
}

impl Timings {
    /// Adds to a stage.
    pub fn add(&mut self, phase: Phase, time: Duration) {
        let slot = match phase {
            Phase::DecodeImage => &mut self.decode_image_ms,
            Phase::Resize => &mut self.resize_ms,
            Phase::Tower => &mut self.tower_ms,
            Phase::Connector => &mut self.connector_ms,
            Phase::Prefill => &mut self.prefill_ms,
            Phase::Decode => &mut self.decode_ms,
        };
        *slot += time.as_secs_f64() * 1e3;
    }

    /// Runs `work` and adds its time to a stage.
    pub fn measure<R>(&mut self, phase: Phase, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = phase.span().in_scope(work);
        self.add(phase, start.elapsed());
        result
    }

    /// Prompt tokens a second, 0 if none.
    #[must_use]
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prefill_tokens, self.prefill_ms)
    }

    /// Share of the decode steps in which the host prepared work for the device.
    #[must_use]
    pub fn encode_share(&self) -> f64 {
        if self.decode_ms > 0.0 { self.decode_encode_ms / self.decode_ms } else { 0.0 }
    }

    /// Generated tokens a second after the first, 0 if none.
    #[must_use]
    pub fn decode_rate(&self) -> f64 {
        rate(self.decode_tokens, self.decode_ms)
    }
}

fn rate(count: usize, ms: f64) -> f64 {
    if count == 0 || ms <= 0.0 { 0.0 } else { count as f64 * 1e3 / ms }
}
