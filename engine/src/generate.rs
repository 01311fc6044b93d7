//! The generation loop: a scheduler that mixes any number of requests into batches.

use std::ops::ControlFlow;
use std::time::Instant;

use ocelli_kernels::Fetch;
use ocelli_kernels::ops::{Sample, params as column};
use serde::Serialize;

use crate::batch::{Batch, ImageRows, SeqInput, Want};
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::kv::{KvCache, PAGE, SeqId};
use crate::sample::{SamplingParams, uniform};
use crate::tensor::Tensor;
use crate::text::{Detokenizer, StopMatcher, Tokenizer};
use crate::timing::Phase;
use crate::vlm::Vlm;

/// Most prompt tokens that go through the decoder at once; longer prompts take several passes.
pub const MAX_PREFILL: usize = 1024;

/// A prompt to be answered.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids, image tokens expanded.
    pub prompt: Vec<u32>,
    /// Features of each picture `[image_tokens, d_model]`, in the order of the prompt.
    pub images: Vec<Tensor>,
    /// How to answer.
    pub params: SamplingParams,
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
    /// Token ids, the stop token included.
    pub token_ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What the caller of [`Scheduler::step`] is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// New text of a request. May be empty: a token can be part of a character.
    Text {
        /// Number of the request, as [`Scheduler::submit`] gave it.
        request: usize,
        /// The text.
        text: String,
    },
    /// A request is done.
    Done {
        /// Number of the request.
        request: usize,
        /// The answer.
        answer: Answer,
    },
}

struct Running {
    number: usize,
    seq: SeqId,
    prompt: Vec<u32>,
    /// Image features, and the place of each row in the prompt.
    images: Vec<ImageRows>,
    params: SamplingParams,
    /// Tokens of prompt and answer that are in the cache.
    done: usize,
    answer: Vec<u32>,
    text: String,
    detokenizer: Detokenizer,
    stops: StopMatcher,
}

impl Running {
    /// Pages that the request needs at its longest, in tokens.
    fn reserve(&self, max_positions: usize) -> usize {
        (self.prompt.len() + self.params.max_tokens).min(max_positions).next_multiple_of(PAGE)
    }

    fn in_prompt(&self) -> bool {
        self.done < self.prompt.len()
    }
}

/// Tokens on their way to the host.
type Arriving = Box<dyn Fetch>;

/// A forward pass whose tokens are on their way to the host.
struct Pass {
    /// Numbers of the requests that get a token, in the order of the tokens.
    rows: Vec<usize>,
    /// The tokens; `None` where no prompt was complete.
    tokens: Option<Arriving>,
    /// The same on the device.
    ids: Tensor,
    prefill: bool,
    /// Tokens that went through the model.
    count: usize,
}

/// Runs requests against a model. Each step is one forward pass: over prompts if any wait, else over one token of each
/// running request.
pub struct Scheduler<'m> {
    model: &'m dyn Vlm,
    tokenizer: Tokenizer,
    kv: KvCache,
    waiting: std::collections::VecDeque<Running>,
    running: Vec<Running>,
    submitted: usize,
    reserved: usize,
    capacity: usize,
    /// The pass that was started ahead of its turn.
    ahead: Option<Pass>,
    /// Memory for the tokens of two passes.
    tokens: [Option<Tensor>; 2],
}

impl<'m> Scheduler<'m> {
    /// A scheduler whose cache holds `kv_tokens` tokens.
    pub fn new(cx: &mut Ctx, model: &'m dyn Vlm, tokenizer: Tokenizer, kv_tokens: usize) -> Result<Self> {
        let capacity = kv_tokens.next_multiple_of(PAGE);
        let kv = KvCache::new(cx, model.info().kv, capacity)?;
        let (waiting, running) = Default::default();
        let (ahead, tokens) = Default::default();
        Ok(Self {
            model,
            tokenizer,
            kv,
            waiting,
            running,
            submitted: 0,
            reserved: 0,
            capacity,
            ahead,
            tokens,
        })
    }

    /// Tokens that the cache must hold to run all of these requests at once.
    #[must_use]
    pub fn tokens_for(model: &dyn Vlm, requests: &[Request]) -> usize {
        let limit = model.info().max_positions;
        let each = |r: &Request| (r.prompt.len() + r.params.max_tokens).min(limit).next_multiple_of(PAGE);
        requests.iter().map(each).sum()
    }

    /// Takes a request and gives its number. Errors if it can never run.
    pub fn submit(&mut self, request: Request) -> Result<usize> {
        request.params.validate()?;
        let info = self.model.info();
        let (len, limit) = (request.prompt.len(), info.max_positions);
        if len == 0 || len >= limit {
            return Err(Error::Request(format!("prompt: expected 1 to {} tokens, found {len}", limit - 1)));
        }
        let places: Vec<usize> = (0..len).filter(|&i| request.prompt[i] == info.image_token).collect();
        let rows: usize = request.images.iter().map(|features| features.size(0)).sum();
        if places.len() != rows {
            return Err(Error::Request(format!(
                "prompt: expected {rows} image tokens for its {} pictures, found {}",
                request.images.len(),
                places.len()
            )));
        }
        let mut places = places.into_iter();
        let images = request
            .images
            .into_iter()
            .map(|features| {
                let at = places.by_ref().take(features.size(0)).collect();
                ImageRows { features, at }
            })
            .collect();
        let number = self.submitted;
        let running = Running {
            number,
            seq: self.kv.open(),
            prompt: request.prompt,
            images,
            detokenizer: self.tokenizer.detokenizer(true),
            stops: StopMatcher::new(&request.params.stop),
            params: request.params,
            done: 0,
            answer: Vec::new(),
            text: String::new(),
        };
        if running.reserve(limit) > self.capacity {
            self.kv.close(running.seq);
            return Err(Error::Request(format!(
                "request: {} tokens do not fit in a KV cache of {}",
                running.reserve(limit),
                self.capacity
            )));
        }
        self.submitted += 1;
        self.waiting.push_back(running);
        Ok(number)
    }

    /// Whether every request is done.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Ends a request now; its answer so far comes as an event of the next step.
    pub fn cancel(&mut self, number: usize) -> Option<Answer> {
        if let Some(place) = self.waiting.iter().position(|r| r.number == number) {
            let running = self.waiting.remove(place)?;
            self.kv.close(running.seq);
            return Some(answer(running, FinishReason::Cancelled));
        }
        let place = self.running.iter().position(|r| r.number == number)?;
        Some(self.finish(place, FinishReason::Cancelled))
    }

    fn finish(&mut self, place: usize, reason: FinishReason) -> Answer {
        let running = self.running.remove(place);
        self.reserved -= running.reserve(self.model.info().max_positions);
        self.kv.close(running.seq);
        answer(running, reason)
    }

    /// Finishes one forward pass. Does nothing when idle.
    ///
    /// Where the device works beside the host, the pass after it is started before the host looks at the tokens of this one:
    /// it takes them from the device.
    pub fn step(&mut self, cx: &mut Ctx) -> Result<Vec<Event>> {
        let (start, prepared) = (Instant::now(), cx.host_time());
        let limit = self.model.info().max_positions;
        while let Some(next) = self.waiting.front() {
            if self.reserved + next.reserve(limit) > self.capacity {
                break;
            }
            self.reserved += next.reserve(limit);
            self.running.extend(self.waiting.pop_front());
        }
        let pass = match self.ahead.take() {
            Some(pass) => pass,
            None => match self.start(cx, None)? {
                Some(pass) => pass,
                None => return Ok(Vec::new()),
            },
        };
        if cx.overlaps() && self.may_run_ahead(&pass) {
            self.ahead = self.start(cx, Some(&pass))?;
        }
        let sampled = match pass.tokens {
            Some(fetch) => fetch.wait().map_err(Error::Device)?,
            None => {
                cx.stream().sync()?;
                Vec::new()
            }
        };
        let time = start.elapsed();
        if pass.prefill {
            cx.timings.add(Phase::Prefill, time);
            cx.timings.prefill_tokens += pass.count;
        } else {
            cx.timings.add(Phase::Decode, time);
            cx.timings.decode_tokens += pass.count;
            cx.timings.decode_encode_ms += (cx.host_time() - prepared).as_secs_f64() * 1e3;
        }
        let mut events = Vec::new();
        for (number, id) in pass.rows.into_iter().zip(sampled.chunks_exact(4)) {
            let token = i32::from_le_bytes([id[0], id[1], id[2], id[3]]) as u32;
            // A request that ended meanwhile took part in a pass that had been started before.
            if let Some(place) = self.running.iter().position(|running| running.number == number) {
                self.accept(place, token, &mut events)?;
            }
        }
        Ok(events)
    }

    /// Whether the next pass is known without the tokens of `pass`: one token of each of its requests.
    fn may_run_ahead(&self, pass: &Pass) -> bool {
        let limit = self.model.info().max_positions;
        let goes_on = |running: &Running| {
            let answer = running.answer.len() + 1;
            !running.in_prompt()
                && running.params.repetition_penalty == 1.0
                && answer < running.params.max_tokens
                && running.prompt.len() + answer < limit
        };
        !self.running.is_empty()
            && self.running.iter().map(|running| running.number).eq(pass.rows.iter().copied())
            && self.running.iter().all(goes_on)
    }

    /// Which requests take part, with the number of their new tokens.
    fn plan(&self, prefill: bool) -> Vec<(usize, usize)> {
        if !prefill {
            return (0..self.running.len()).map(|place| (place, 1)).collect();
        }
        let mut budget = MAX_PREFILL;
        let mut plan = Vec::new();
        for (place, running) in self.running.iter().enumerate() {
            let len = running.prompt.len().saturating_sub(running.done).min(budget);
            if len > 0 {
                plan.push((place, len));
                budget -= len;
            }
        }
        plan
    }

    /// Starts a forward pass and samples for each request whose prompt is complete. With `after`, each request's new token is
    /// that of a pass which is still under way. `None` if nothing is to be done.
    fn start(&mut self, cx: &mut Ctx, after: Option<&Pass>) -> Result<Option<Pass>> {
        let prefill = self.running.iter().any(Running::in_prompt);
        let plan = self.plan(prefill);
        if plan.is_empty() {
            return Ok(None);
        }
        let ids = self.token_memory(cx, plan.len())?;
        let (rows, tokens) = cx.scope(|cx| self.forward(cx, &plan, after, &ids))?;
        for &(place, len) in &plan {
            self.running[place].done += len;
        }
        Ok(Some(Pass { rows, tokens, ids, prefill, count: plan.iter().map(|&(_, len)| len).sum() }))
    }

    /// Memory for the tokens of a pass: not that of the pass before, which may still be read.
    fn token_memory(&mut self, cx: &mut Ctx, rows: usize) -> Result<Tensor> {
        self.tokens.swap(0, 1);
        match &self.tokens[0] {
            Some(tensor) if tensor.size(0) >= rows => tensor.narrow(0, 0, rows),
            _ => {
                let tensor = cx.alloc_owned(&[rows.next_power_of_two()], ocelli_kernels::DType::I32)?;
                let ids = tensor.narrow(0, 0, rows)?;
                self.tokens[0] = Some(tensor);
                Ok(ids)
            }
        }
    }

    /// Runs the plan: the requests that get a token, and the tokens on their way.
    fn forward(
        &mut self,
        cx: &mut Ctx,
        plan: &[(usize, usize)],
        after: Option<&Pass>,
        ids: &Tensor,
    ) -> Result<(Vec<usize>, Option<Arriving>)> {
        let mut images = Vec::with_capacity(plan.len());
        for &(place, len) in plan {
            let running = &self.running[place];
            images.push(images_between(&running.images, running.done, running.done + len)?);
        }
        let mut batch = Batch { ids: after.map(|pass| pass.ids.clone()), ..Batch::default() };
        let mut places = Vec::new();
        for (&(place, len), images) in plan.iter().zip(&images) {
            let running = &self.running[place];
            let (tokens, last) = if after.is_some() {
                (&[0][..], true)
            } else if running.in_prompt() {
                let end = running.done + len;
                (&running.prompt[running.done..end], end == running.prompt.len())
            } else {
                (&running.answer[running.done - running.prompt.len()..], true)
            };
            if last {
                places.push(place);
            }
            let want = if last { Want::Last(1) } else { Want::Nothing };
            batch.seqs.push(SeqInput { seq: running.seq, tokens, images, want });
        }
        let logits = self.model.forward(cx, &batch, &mut self.kv)?;
        let rows: Vec<&Running> = places.iter().map(|&place| &self.running[place]).collect();
        if rows.is_empty() {
            return Ok((Vec::new(), None));
        }
        let out = ids.narrow(0, 0, rows.len())?;
        sample_rows(cx, &logits, &rows, usize::from(after.is_some()), &out)?;
        let fetch = cx.fetch(&out)?;
        Ok((rows.iter().map(|running| running.number).collect(), Some(fetch)))
    }

    /// Adds a token to an answer and ends it if that is due.
    fn accept(&mut self, place: usize, token: u32, events: &mut Vec<Event>) -> Result<()> {
        let limit = self.model.info().max_positions;
        let running = &mut self.running[place];
        running.answer.push(token);
        let ends = running.params.stop_token_ids.contains(&token)
            || (!running.params.ignore_eos && self.tokenizer.eos_ids().contains(&token));
        let length = running.answer.len() >= running.params.max_tokens
            || running.prompt.len() + running.answer.len() >= limit;
        let mut text = String::new();
        let mut stopped = ends;
        if !ends {
            // Vocabularies are padded: a model can choose an id that the tokenizer has no text for.
            let known = (token as usize) < self.tokenizer.vocab_size();
            let piece = if known { running.detokenizer.push(token)? } else { String::new() };
            let matched = running.stops.push(&piece);
            text.push_str(&matched.text);
            stopped = matched.stopped.is_some();
        }
        if ends || (length && !stopped) {
            let matched = running.stops.push(&running.detokenizer.finish()?);
            text.push_str(&matched.text);
            text.push_str(&running.stops.finish());
            stopped |= matched.stopped.is_some();
        }
        if running.text.is_empty() {
            // Templates end before the space that the model begins with.
            text.drain(..text.len() - text.trim_start().len());
        }
        running.text.push_str(&text);
        let request = running.number;
        events.push(Event::Text { request, text });
        if stopped || length {
            let reason = if stopped { FinishReason::Stop } else { FinishReason::Length };
            let answer = self.finish(place, reason);
            events.push(Event::Done { request, answer });
        }
        Ok(())
    }
}

fn answer(running: Running, finish_reason: FinishReason) -> Answer {
    Answer {
        text: running.text,
        token_ids: running.answer,
        prompt_tokens: running.prompt.len(),
        finish_reason,
    }
}

/// The rows of image features that lie in `start..end` of the prompt, their places counted from `start`.
fn images_between(images: &[ImageRows], start: usize, end: usize) -> Result<Vec<ImageRows>> {
    let mut found = Vec::new();
    for image in images {
        let first = image.at.partition_point(|&at| at < start);
        let last = image.at.partition_point(|&at| at < end);
        if first < last {
            let features = image.features.narrow(0, first, last - first)?;
            found.push(ImageRows {
                features,
                at: image.at[first..last].iter().map(|at| at - start).collect(),
            });
        }
    }
    Ok(found)
}

/// Chooses a token for each row of `logits: [rows, vocab]`, `out: i32 [rows]`. `unseen` tokens of each answer are still under
/// way.
fn sample_rows(cx: &mut Ctx, logits: &Tensor, rows: &[&Running], unseen: usize, out: &Tensor) -> Result<()> {
    let mut settings = vec![0f32; rows.len() * column::COUNT];
    for (row, running) in settings.chunks_exact_mut(column::COUNT).zip(rows) {
        let params = &running.params;
        row[column::TEMPERATURE] = params.temperature;
        row[column::TOP_K] = params.top_k as f32;
        row[column::TOP_P] = params.top_p;
        row[column::MIN_P] = params.min_p;
        row[column::REPETITION_PENALTY] = params.repetition_penalty;
        row[column::UNIFORM] = uniform(params.seed, 0, (running.answer.len() + unseen) as u64);
    }
    let penalized = rows.iter().any(|running| running.params.repetition_penalty != 1.0);
    let history = if penalized {
        let width = rows.iter().map(|running| running.prompt.len() + running.answer.len()).max().unwrap_or(0);
        let mut ids = vec![-1i32; rows.len() * width];
        for (row, running) in ids.chunks_exact_mut(width).zip(rows) {
            let seen = running.prompt.iter().chain(&running.answer);
            row.iter_mut().zip(seen).for_each(|(slot, &id)| *slot = id as i32);
        }
        let tensor = cx.upload(&[rows.len(), width], &ids)?;
        Some(cx.view(&tensor)?)
    } else {
        None
    };
    let settings = cx.upload(&[rows.len(), column::COUNT], &settings)?;
    let op = Sample { logits: cx.view(logits)?, params: cx.view(&settings)?, history, out: cx.view(out)? };
    cx.exec("sample", &op)
}

/// Answers all requests, telling `on_text` of each new piece of text; it may end everything early.
pub fn generate(
    cx: &mut Ctx,
    model: &dyn Vlm,
    tokenizer: &Tokenizer,
    requests: Vec<Request>,
    mut on_text: impl FnMut(usize, &str) -> ControlFlow<()>,
) -> Result<Vec<Answer>> {
    let count = requests.len();
    let tokens = Scheduler::tokens_for(model, &requests);
    let mut scheduler = Scheduler::new(cx, model, tokenizer.clone(), tokens)?;
    for request in requests {
        scheduler.submit(request)?;
    }
    let mut answers: Vec<Option<Answer>> = vec![None; count];
    while !scheduler.is_idle() {
        for event in scheduler.step(cx)? {
            match event {
                Event::Text { request, text } => {
                    if on_text(request, &text).is_break() {
                        for (number, slot) in answers.iter_mut().enumerate() {
                            *slot = scheduler.cancel(number).or(slot.take());
                        }
                    }
                }
                Event::Done { request, answer } => answers[request] = Some(answer),
            }
        }
    }
    answers.into_iter().map(|answer| answer.ok_or(Error::Cancelled)).collect()
}
