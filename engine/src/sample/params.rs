//! Parameters of generation.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Grammar;

/// Most of [`SamplingParams::speculate`].
const MOST_GUESSES: usize = 64;

/// How an answer is generated. The default is greedy, without penalties.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// 0 is greedy: the largest logit, no randomness.
    pub temperature: f32,
    /// Sample among this many most likely tokens; 0 is all.
    pub top_k: u32,
    /// Sample among the most likely tokens that reach this mass; 1 is all.
    pub top_p: f32,
    /// Sample among tokens that have at least this part of the largest probability; 0 is all.
    pub min_p: f32,
    /// Above 1, tokens of the prompt and of the answer so far become less likely; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Seed of the random numbers; equal seeds give equal answers, whatever else runs in the batch.
    pub seed: u64,
    /// Ids that end the answer, besides the model's own end tokens.
    pub stop_token_ids: Vec<u32>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// Goes on after the model's own end tokens.
    pub ignore_eos: bool,
    /// The form that the answer is held to: only tokens that its grammar allows are chosen, also where none is random. Thoughts are
    /// free. End tokens come where the grammar accepts, and end the answer.
    #[serde(skip)]
    pub grammar: Option<Grammar>,
    /// The adapter that answers, by the name that the context knows it by; that of all others without one.
    #[serde(skip)]
    pub adapter: Option<std::sync::Arc<str>>,
    /// Tell how likely each token of the answer was, and so many of the likeliest ones at its place.
    pub logprobs: Option<u32>,
    /// Most tokens that are guessed at a time, from where the last ones stood before, and read with the next one: less passes where
    /// an answer repeats the prompt or itself. The answer is the same. 0 guesses nothing.
    pub speculate: usize,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            stop_token_ids: Vec::new(),
            stop: Vec::new(),
            max_tokens: 512,
            ignore_eos: false,
            grammar: None,
            adapter: None,
            logprobs: None,
            speculate: 0,
        }
    }
}

/// A parameter outside its range.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{name}: expected {expected}, found {found}")]
pub struct ParamError {
    /// The parameter's name in [`SamplingParams`].
    pub name: &'static str,
    /// Its range.
    pub expected: &'static str,
    /// The value as text.
    pub found: String,
}

impl SamplingParams {
    /// True when nothing is random.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks every range.
    ///
    /// # Errors
    /// Names the first parameter that is outside its range.
    pub fn validate(&self) -> Result<(), ParamError> {
        let checks = [
            ("temperature", "a number, 0 or above", self.temperature, self.temperature >= 0.0),
            ("top_p", "a number above 0, at most 1", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0),
            ("min_p", "a number from 0 to 1", self.min_p, (0.0..=1.0).contains(&self.min_p)),
            (
                "repetition_penalty",
                "a number above 0",
                self.repetition_penalty,
                self.repetition_penalty > 0.0,
            ),
        ];
        for (name, expected, value, ok) in checks {
            if !(ok && value.is_finite()) {
                return Err(ParamError { name, expected, found: value.to_string() });
            }
        }
        if self.max_tokens == 0 {
            return Err(ParamError { name: "max_tokens", expected: "1 or more", found: "0".into() });
        }
        if self.ignore_eos && self.grammar.is_some() {
            return Err(ParamError {
                name: "ignore_eos",
                expected: "false where the answer has a form",
                found: "true".into(),
            });
        }
        if self.speculate > MOST_GUESSES {
            return Err(ParamError {
                name: "speculate",
                expected: "0 to 64",
                found: self.speculate.to_string(),
            });
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(ParamError {
                name: "stop",
                expected: "texts of at least one byte",
                found: "\"\"".into(),
            });
        }
        Ok(())
    }
}
