//! What is asked, what comes back, and a request on its way.

use std::borrow::Cow;
use std::ops::{Deref, Range};
use std::sync::Arc;

use ocelli_kernels::DType;
use serde::Serialize;
use tracing::Span;

use super::plan::{Ask, Limits};
use crate::error::{Error, Result};
use crate::image::{Key, PreparedImage};
use crate::kv::{Extent, Keep, KvGroup, PAGE, SeqId};
use crate::prompt::{Features, Prompt};
use crate::sample::{Guide, Logprobs, SamplingParams};
use crate::text::{Detokenizer, StopMatcher, Thinking, Tokenizer};
use crate::vlm::ModelInfo;

/// A picture that is ready for the tower, and what it is known by. Two that look the same to the model are the same.
#[derive(Debug)]
pub struct Picture {
    image: PreparedImage,
    key: Key,
}

impl Picture {
    /// What it is known by.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }

    /// Patches of 16 x 16 pixels.
    pub(crate) fn patches(&self) -> usize {
        let pixels: usize = self.tiles.iter().map(|tile| tile.height * tile.width).sum();
        pixels.div_ceil(256).max(1)
    }
}

impl From<PreparedImage> for Picture {
    fn from(image: PreparedImage) -> Self {
        Self { key: image.key(), image }
    }
}

impl Deref for Picture {
    type Target = PreparedImage;

    fn deref(&self) -> &PreparedImage {
        &self.image
    }
}

/// A picture of a request.
#[derive(Clone, Debug)]
pub enum Media {
    /// Prepared pixels; the scheduler runs the tower, once for all that are the same.
    Picture(Arc<Picture>),
    /// Features that are there already.
    Features(Box<Features>),
}

impl From<PreparedImage> for Media {
    fn from(image: PreparedImage) -> Self {
        Self::Picture(Arc::new(image.into()))
    }
}

impl From<Features> for Media {
    fn from(features: Features) -> Self {
        Self::Features(features.into())
    }
}

impl Media {
    /// What the picture is known by; `None` of features that were given.
    pub(super) fn key(&self) -> Option<Key> {
        match self {
            Self::Picture(picture) => Some(picture.key()),
            Self::Features(_) => None,
        }
    }

    fn given(&self) -> Option<Features> {
        match self {
            Self::Picture(_) => None,
            Self::Features(features) => Some((**features).clone()),
        }
    }

    /// Patches of 16 x 16 pixels that are to be encoded.
    fn patches(&self) -> usize {
        match self {
            Self::Picture(picture) => picture.patches(),
            Self::Features(_) => 0,
        }
    }
}

/// A prompt to be answered.
#[derive(Clone, Debug)]
pub struct Request {
    /// Tokens and the places of features among them.
    pub prompt: Prompt,
    /// Its pictures, in the order of the prompt's spans.
    pub media: Vec<Media>,
    /// How to answer.
    pub params: SamplingParams,
}

impl Request {
    /// Most tokens of prompt and answer.
    #[must_use]
    pub fn longest(&self, max_positions: usize) -> usize {
        self.prompt.len().saturating_add(self.params.max_tokens).min(max_positions)
    }

    /// Tokens that the cache must hold for this request alone, in whole pages.
    #[must_use]
    pub fn kv_tokens(&self, max_positions: usize) -> usize {
        self.longest(max_positions).div_ceil(PAGE).saturating_mul(PAGE)
    }

    /// Errors if the request can never run: its prompt or parameters are wrong, or `capacity` (pages of each group) is too small.
    pub(super) fn check(&self, info: &ModelInfo, capacity: &[usize]) -> Result<()> {
        self.params.validate()?;
        let limit = info.max_positions.saturating_sub(1);
        match self.prompt.len() {
            0 => return Err(Error::Request(format!("prompt: expected 1 to {limit} tokens, found 0"))),
            found if found > limit => return Err(Error::PromptTooLong { limit, found }),
            _ => {}
        }
        self.prompt.check(self.media.len(), info.embedded)?;
        if self.params.speculate > 0 && info.kv.0.iter().any(|group| group.keep == Keep::State) {
            return Err(Error::Request(
                "speculate: expected 0, as layers of this model keep a state that cannot be taken back"
                    .into(),
            ));
        }
        for (number, media) in self.media.iter().enumerate() {
            if let Media::Features(features) = media {
                check_rows(number, features, &self.prompt)?;
            }
        }
        let of = Extent { tokens: self.kv_tokens(info.max_positions), memory: self.prompt.memory_rows() };
        for (number, (group, &capacity)) in info.kv.0.iter().zip(capacity).enumerate() {
            let held = group.most_pages(of, self.prompt.longest_block().max(1));
            if held > capacity {
                let what = match group.keep {
                    Keep::Memory => format!("{} rows of memory", of.memory),
                    _ => format!("{} tokens of prompt and answer", of.tokens),
                };
                return Err(Error::Request(format!(
                    "request: {what} do not fit in the KV cache: group {number} of layers would keep {}, its limit is {}",
                    held * PAGE,
                    capacity * PAGE
                )));
            }
        }
        Ok(())
    }
}

/// Errors if a picture has another number of rows of features than the prompt takes.
pub(super) fn check_rows(media: usize, features: &Features, prompt: &Prompt) -> Result<()> {
    let (expected, found) = (prompt.rows_of(media), features.len());
    if found != expected {
        return Err(Error::Request(format!(
            "picture {}: expected {expected} rows of features, found {found}",
            media + 1
        )));
    }
    let of = |rows: &[usize]| rows.get(media).copied().unwrap_or(0);
    let (expected, found) = (of(&prompt.memory) + of(&prompt.rest), features.memory_rows());
    if found != expected {
        return Err(Error::Request(format!(
            "picture {}: expected {expected} rows of memory, found {found}",
            media + 1
        )));
    }
    Ok(())
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token or a stop text.
    Stop,
    /// The limit of tokens, or the model's last position.
    Length,
    /// The caller asked for it.
    Cancelled,
}

/// An answer.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The text, without white space before it, stop texts and special tokens.
    pub text: String,
    /// What the model thought before, where it marks that: see [`Thinking`].
    pub reasoning: Option<String>,
    /// Token ids, the stop token included.
    pub token_ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// How likely each token was, where that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<Logprobs>,
}

/// What the caller of [`Scheduler::step`](super::Scheduler::step) is told.
#[derive(Debug)]
pub enum Event {
    /// New text of a request. May be empty: a token can be part of a character.
    Text {
        /// Number of the request, as [`Scheduler::submit`](super::Scheduler::submit) gave it.
        request: usize,
        /// The text.
        text: String,
        /// Whether it is what the model thinks, which is no part of the answer.
        thought: bool,
        /// How likely its token was, where that was asked for.
        logprobs: Option<Box<Logprobs>>,
    },
    /// A request is done.
    Done {
        /// Number of the request.
        request: usize,
        /// The answer.
        answer: Answer,
    },
    /// A request cannot be answered; others go on.
    Failed {
        /// Number of the request.
        request: usize,
        /// Why.
        error: Error,
    },
}

impl Event {
    /// Number of the request.
    #[must_use]
    pub fn request(&self) -> usize {
        match self {
            Self::Text { request, .. } | Self::Done { request, .. } | Self::Failed { request, .. } => {
                *request
            }
        }
    }
}

/// What is told of a request to whoever collects spans: one of all its time in the scheduler, and in it one of what it does now:
/// `wait`, `prefill`, `decode`.
struct Spans {
    answer: Span,
    now: Span,
    stage: &'static str,
}

impl Spans {
    fn new(prompt_tokens: usize, pictures: usize) -> Self {
        use tracing::field::Empty;
        let answer =
            tracing::info_span!("answer", prompt_tokens, pictures, tokens = Empty, finish_reason = Empty);
        let mut spans = Self { answer, now: Span::none(), stage: "" };
        spans.go_on("wait");
        spans
    }

    fn go_on(&mut self, stage: &'static str) {
        if std::mem::replace(&mut self.stage, stage) == stage {
            return;
        }
        // The one before ends first.
        self.now = Span::none();
        self.now = match stage {
            "wait" => tracing::info_span!(parent: &self.answer, "wait"),
            "prefill" => tracing::info_span!(parent: &self.answer, "prefill"),
            _ => tracing::info_span!(parent: &self.answer, "decode"),
        };
    }
}

/// A request on its way.
pub(super) struct Live {
    pub number: usize,
    /// Its place in the cache, while it runs.
    pub seq: Option<SeqId>,
    pub prompt: Prompt,
    pub media: Vec<Media>,
    /// Features of the media, from the tower's pass until the prompt is read.
    pub features: Vec<Option<Features>>,
    pub params: SamplingParams,
    /// Tokens of prompt and answer that are in the cache.
    pub done: usize,
    pub answer: Vec<u32>,
    /// Tokens of the answer that are under way.
    pub coming: usize,
    /// Guesses of what comes after the last token of the answer: read with it, if that is known.
    pub draft: Vec<u32>,
    /// Most tokens of prompt and answer.
    pub longest: usize,
    /// Was part of a pass that failed.
    pub alone: bool,
    /// What the full pages of the prompt are known by, where prompts are compared.
    pub chain: Vec<Key>,
    text: String,
    thoughts: String,
    guide: Option<Guide>,
    logprobs: Vec<Logprobs>,
    spans: Spans,
    thinking: Thinking,
    detokenizer: Detokenizer,
    stops: StopMatcher,
}

/// What a token does to an answer.
pub(super) struct Step {
    pub text: String,
    pub thought: bool,
    pub ends: Option<FinishReason>,
}

impl Live {
    pub fn new(number: usize, mut request: Request, tokenizer: &Tokenizer, info: &ModelInfo) -> Self {
        // A stop text that is one token of the model is never met in the text.
        request.params.stop_token_ids.extend(tokenizer.stop_ids(&request.params.stop));
        let thinking = Thinking::after(&request.prompt.tokens, tokenizer);
        let spans = Spans::new(request.prompt.len(), request.media.len());
        Self {
            number,
            seq: None,
            features: request.media.iter().map(Media::given).collect(),
            longest: request.longest(info.max_positions),
            prompt: request.prompt,
            media: request.media,
            thinking,
            thoughts: String::new(),
            guide: request.params.grammar.as_ref().map(Guide::new),
            logprobs: Vec::new(),
            spans,
            detokenizer: tokenizer.detokenizer(true),
            stops: StopMatcher::new(&request.params.stop),
            params: request.params,
            done: 0,
            answer: Vec::new(),
            coming: 0,
            draft: Vec::new(),
            alone: false,
            chain: Vec::new(),
            text: String::new(),
        }
    }

    /// Tokens of prompt and answer whose keys and values are in the cache for certain: not those of a pass that is under way.
    pub fn settled(&self) -> usize {
        self.done.saturating_sub(self.coming)
    }

    pub fn known(&self) -> usize {
        self.prompt.len() + self.answer.len() + self.coming
    }

    pub fn ask(&self) -> Ask<'_> {
        let patches = self.media.iter().zip(&self.features);
        Ask {
            prompt: &self.prompt,
            known: self.known(),
            guessed: if self.coming == 0 { self.draft.len() } else { 0 },
            done: self.done,
            longest: self.longest,
            media: patches.map(|(media, there)| if there.is_some() { 0 } else { media.patches() }).collect(),
            alone: self.alone,
            bound: !self.is_free(),
        }
    }

    /// Tokens of prompt and answer, and the guesses after them; those that are under way are 0.
    pub fn tokens(&self, range: Range<usize>) -> Cow<'_, [u32]> {
        let (prompt, len) = (&self.prompt.tokens, self.prompt.len());
        if range.end <= len {
            return Cow::Borrowed(&prompt[range]);
        }
        let answer = |token: usize| {
            let guess = || self.draft.get((token - len).checked_sub(self.answer.len())?);
            self.answer.get(token - len).or_else(guess).copied().unwrap_or(0)
        };
        range.map(|token| if token < len { prompt[token] } else { answer(token) }).collect()
    }

    /// Runs from here on.
    pub fn begin(&mut self) {
        self.spans.go_on("prefill");
    }

    /// Its span, for whoever collects them.
    pub fn span(&self) -> &Span {
        &self.spans.answer
    }

    /// Goes back to its beginning, for what is read again. The answer so far stays.
    pub fn restart(&mut self) {
        (self.seq, self.done, self.coming) = (None, 0, 0);
        self.spans.go_on("wait");
        self.draft.clear();
        for (features, media) in self.features.iter_mut().zip(&self.media) {
            *features = features.take().or_else(|| media.given());
        }
    }

    /// Frees features that no pass to come reads.
    pub fn forget_features(&mut self) {
        if self.done >= self.prompt.len() {
            self.features.iter_mut().for_each(|features| *features = None);
        }
    }

    /// What says which tokens may come next, where not all may.
    pub fn guide(&self) -> Option<&Guide> {
        self.guide.as_ref().filter(|_| !self.thinking.inside())
    }

    /// Whether a token can be chosen before the host knows the one before it.
    pub fn is_free(&self) -> bool {
        self.params.repetition_penalty == 1.0 && self.guide.is_none()
    }

    /// Sets the bits of the tokens that may come next; those of a guide.
    pub fn write_mask(&self, guide: &Guide, words: &mut [i32]) {
        guide.write(words, self.prompt.stop.iter().chain(&self.params.stop_token_ids).copied());
    }

    /// Why no token could be chosen.
    pub fn stuck(&self) -> Error {
        self.guide().map_or(Error::NotNumbers, Guide::error)
    }

    /// Notes how likely the token was that is about to be added.
    pub fn note_logprobs(&mut self, row: &[u8], dtype: DType, token: u32) {
        if let Some(top) = self.params.logprobs {
            self.logprobs.push(Logprobs::of(row, dtype, token, top as usize));
        }
    }

    /// How likely the last token was, if that was noted.
    pub fn last_logprobs(&self) -> Option<Box<Logprobs>> {
        self.logprobs.last().filter(|_| self.logprobs.len() == self.answer.len()).cloned().map(Box::new)
    }

    /// Adds a token to the answer.
    pub fn accept(&mut self, token: u32, tokenizer: &Tokenizer, max_positions: usize) -> Result<Step> {
        self.spans.go_on("decode");
        self.answer.push(token);
        let eos = tokenizer.eos_ids().contains(&token) || self.prompt.stop.contains(&token);
        let ends = self.params.stop_token_ids.contains(&token) || (!self.params.ignore_eos && eos);
        let length = self.answer.len() >= self.params.max_tokens
            || self.prompt.len() + self.answer.len() >= max_positions;
        let mut text = String::new();
        let mut stopped = ends;
        let thought = self.thinking.inside();
        let turns = !ends && self.thinking.turns(token);
        if !ends && !turns {
            // Vocabularies are padded: a model can choose an id that the tokenizer has no text for.
            let known = (token as usize) < tokenizer.vocab_size();
            let piece = if known { self.detokenizer.push(token)? } else { String::new() };
            let matched = self.stops.push(&piece);
            text.push_str(&matched.text);
            stopped = matched.stopped.is_some();
        }
        // Stop texts lie in the answer or in the thoughts, not across.
        if ends || turns || (length && !stopped) {
            let matched = self.stops.push(&self.detokenizer.finish()?);
            text.push_str(&matched.text);
            text.push_str(&self.stops.finish());
            stopped |= matched.stopped.is_some();
            self.stops = StopMatcher::new(&self.params.stop);
        }
        if thought {
            self.thinking.unnamed(&mut text);
        }
        let all = if thought { &mut self.thoughts } else { &mut self.text };
        if all.is_empty() {
            // Templates end before the space that the model begins with.
            text.drain(..text.len() - text.trim_start().len());
        }
        all.push_str(&text);
        if let Some(noted) = self.logprobs.last_mut() {
            noted.shown = !thought && !ends && !turns;
        }
        if let Some(guide) = self.guide.as_mut().filter(|_| !(thought || turns || stopped || length)) {
            guide.consume(token);
        }
        let reason = if stopped { FinishReason::Stop } else { FinishReason::Length };
        Ok(Step { text, thought, ends: (stopped || length).then_some(reason) })
    }

    pub fn into_answer(self, finish_reason: FinishReason) -> Answer {
        let thoughts = self.thoughts.trim_end();
        self.spans.answer.record("tokens", self.answer.len());
        self.spans.answer.record("finish_reason", tracing::field::debug(finish_reason));
        Answer {
            text: self.text,
            reasoning: (!thoughts.is_empty()).then(|| thoughts.to_owned()),
            token_ids: self.answer,
            prompt_tokens: self.prompt.len(),
            finish_reason,
            logprobs: self.logprobs,
        }
    }
}

/// Pages that each group of a cache has.
pub(super) fn capacities(groups: &[KvGroup], limits: &Limits) -> Vec<usize> {
    let all = Extent { tokens: limits.kv_tokens, memory: limits.memory };
    let pages = |group: &KvGroup| match group.keep {
        Keep::All => group.most_pages(all, 0),
        Keep::Memory => group.most_pages(all.at(1), 0),
        Keep::State => limits.seqs,
        Keep::Window(_) | Keep::Chunk(_) => {
            let most = all.tokens.div_ceil(PAGE);
            group.most_pages(all, limits.tokens).saturating_mul(limits.seqs).min(most)
        }
    };
    groups.iter().map(pages).collect()
}
