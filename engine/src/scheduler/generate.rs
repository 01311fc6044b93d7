//! A number of requests that are known beforehand.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::request::{Answer, Event, Request};
use super::{Limits, Scheduler};
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::kv::PAGE;
use crate::text::Tokenizer;
use crate::vlm::{ModelInfo, Vlm};

/// Tokens that the cache of [`generate`] holds for many requests, unless one of them needs more.
const MANY_TOKENS: usize = 32_768;

impl Limits {
    /// Limits for these requests: a cache that holds all of them, but no more than many or the largest need.
    #[must_use]
    pub fn of(info: &ModelInfo, requests: &[Request]) -> Self {
        let needs = || requests.iter().map(|request| request.kv_tokens(info.max_positions));
        let sum = needs().fold(0, usize::saturating_add);
        let most = needs().max().unwrap_or(0).max(MANY_TOKENS);
        // Each takes whole pages.
        let memory = || requests.iter().map(|request| request.prompt.memory_rows().next_multiple_of(PAGE));
        let block = requests.iter().map(|request| request.prompt.longest_block()).max().unwrap_or(0);
        let default = Self::default();
        Self {
            tokens: default.tokens.max(block),
            seqs: requests.len().clamp(1, default.seqs),
            kv_tokens: sum.min(most),
            memory: memory().fold(0, usize::saturating_add).min(memory().max().unwrap_or(0).max(MANY_TOKENS)),
            ..default
        }
    }
}

/// A new piece of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The text; may be empty.
    pub text: &'a str,
    /// Whether it is what the model thinks, which is no part of the answer.
    pub thought: bool,
}

/// Answers all requests, telling `on_text` of each new piece of text; it may end everything early. The first request that fails
/// ends everything too.
pub fn generate(
    cx: &mut Ctx,
    model: &Arc<dyn Vlm>,
    tokenizer: &Tokenizer,
    requests: Vec<Request>,
    mut on_text: impl FnMut(usize, Piece<'_>) -> ControlFlow<()>,
) -> Result<Vec<Answer>> {
    let limits = Limits::of(model.info(), &requests);
    let mut answers: Vec<Option<Answer>> = vec![None; requests.len()];
    let mut scheduler = Scheduler::new(cx, model.clone(), tokenizer.clone(), limits)?;
    for request in requests {
        scheduler.submit(request)?;
    }
    while !scheduler.is_idle() {
        for event in scheduler.step(cx) {
            match event {
                Event::Text { request, text, thought, .. } => {
                    if on_text(request, Piece { text: &text, thought }).is_break() {
                        for (number, slot) in answers.iter_mut().enumerate() {
                            *slot = scheduler.cancel(number).or(slot.take());
                        }
                    }
                }
                Event::Done { request, answer } => answers[request] = Some(answer),
                Event::Failed { error, .. } => return Err(error),
            }
        }
    }
    answers.into_iter().map(|answer| answer.ok_or(Error::Cancelled)).collect()
}
