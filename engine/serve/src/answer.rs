//! Answers on their way from the scheduler.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use ocelli_engine::Error;
use ocelli_engine::sample::Logprobs;
use ocelli_engine::scheduler::{Answer, Event, FinishReason, Request, Ticket};
use serde_json::{Value as Json, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::Sleep;

use crate::app::App;
use crate::error::ApiError;

/// Where the time of a request went before the scheduler had it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before {
    /// When it came.
    pub arrived: Instant,
    /// Reading and decoding pictures.
    pub pictures: Duration,
    /// Resizing them and laying the prompt out.
    pub prepare: Duration,
}

/// What happens to one of the answers.
#[derive(Debug)]
pub(crate) enum News {
    /// More of its text.
    Text { text: String, thought: bool, logprobs: Option<Box<Logprobs>> },
    /// It is done.
    Done { answer: Answer },
}

/// The answers of a request. Dropping them cancels those that have not ended.
pub(crate) struct Answers {
    app: Arc<App>,
    events: UnboundedReceiver<(usize, Event)>,
    /// Of each answer, until it ends.
    tickets: Vec<Option<Ticket>>,
    /// Tokens of thoughts of each.
    thoughts: Vec<usize>,
    copies: usize,
    deadline: Pin<Box<Sleep>>,
    before: Before,
    span: tracing::Span,
    submitted: Instant,
    first: Option<Instant>,
    last: Instant,
    /// Tokens of the answers that have ended, and of their prompts.
    pub tokens: usize,
    pub prompt_tokens: usize,
    pub thought_tokens: usize,
}

impl Answers {
    /// Hands the requests to the scheduler, each with a place of its own until it has ended there; each prompt comes `copies` times in
    /// a row.
    pub fn begin(
        app: &Arc<App>,
        requests: Vec<Request>,
        mut places: OwnedSemaphorePermit,
        before: Before,
        copies: usize,
    ) -> Result<Self, ApiError> {
        let (_, client, _) = app.answers()?;
        let (sender, events) = unbounded_channel();
        let submitted = Instant::now();
        let mut answers = Self {
            app: app.clone(),
            events,
            thoughts: vec![0; requests.len()],
            tickets: Vec::with_capacity(requests.len()),
            copies: copies.max(1),
            deadline: Box::pin(tokio::time::sleep_until((before.arrived + app.config.timeout).into())),
            before,
            span: tracing::info_span!("answers", count = requests.len()),
            submitted,
            first: None,
            last: submitted,
            tokens: 0,
            prompt_tokens: 0,
            thought_tokens: 0,
        };
        let _span = answers.span.clone().entered();
        for (number, request) in requests.into_iter().enumerate() {
            let (sender, app, mut last) = (sender.clone(), app.clone(), None);
            let mut place = places.split(1);
            let until = before.arrived + app.config.timeout;
            let sink = move |event: Event| {
                if let Event::Text { .. } = event {
                    let now = Instant::now();
                    match last.replace(now) {
                        Some(before) => app.metrics.token_gap.add(now - before),
                        None => app.metrics.first_token.add(now - submitted),
                    }
                    // Also where the client takes nothing, so that nobody asks for more.
                    if now > until {
                        return false;
                    }
                }
                if !matches!(event, Event::Text { .. }) {
                    // Whoever hears of the end finds the place free.
                    drop(place.take());
                }
                sender.send((number, event)).is_ok()
            };
            let ticket =
                client.submit_to(request, sink).map_err(|error| ApiError::engine(&error, "messages"))?;
            answers.tickets.push(Some(ticket));
        }
        Ok(answers)
    }

    /// What comes next, with the number of its answer; `None` once all have ended. After an error nothing is to be asked.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(usize, News), ApiError>>> {
        if self.tickets.iter().all(Option::is_none) {
            return Poll::Ready(None);
        }
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(self.late())));
        }
        let Some((number, event)) = ready!(self.events.poll_recv(cx)) else {
            // The scheduler ends what is late by itself, a little before the clock here strikes.
            if self.before.arrived.elapsed() > self.app.config.timeout {
                return Poll::Ready(Some(Err(self.late())));
            }
            self.cancel("error");
            let error = Error::Worker("it left answers unfinished".into());
            return Poll::Ready(Some(Err(ApiError::engine(&error, "messages"))));
        };
        Poll::Ready(Some(self.note(number, event).map(|news| (number, news))))
    }

    fn late(&mut self) -> ApiError {
        self.cancel("timeout");
        ApiError::timeout(self.app.config.timeout.as_secs())
    }

    fn note(&mut self, number: usize, event: Event) -> Result<News, ApiError> {
        match event {
            Event::Text { text, thought, logprobs, .. } => {
                self.last = Instant::now();
                self.first.get_or_insert(self.last);
                self.thoughts[number] += usize::from(thought);
                Ok(News::Text { text, thought, logprobs: logprobs.filter(|of| of.shown) })
            }
            Event::Done { answer, .. } if answer.finish_reason == FinishReason::Cancelled => {
                self.cancel("drain");
                Err(ApiError::draining())
            }
            Event::Done { answer, .. } => {
                self.tickets[number] = None;
                self.tokens += answer.token_ids.len();
                if number.is_multiple_of(self.copies) {
                    self.prompt_tokens += answer.prompt_tokens;
                }
                self.thought_tokens += self.thoughts[number];
                let metrics = &self.app.metrics;
                metrics.answers.add(self.before.arrived.elapsed());
                metrics.prompt_tokens.fetch_add(answer.prompt_tokens as u64, Ordering::Relaxed);
                metrics.answer_tokens.fetch_add(answer.token_ids.len() as u64, Ordering::Relaxed);
                let first_ms = (self.first.unwrap_or(self.last) - self.submitted).as_millis() as u64;
                self.span.in_scope(|| {
                    let (prompt, tokens) = (answer.prompt_tokens, answer.token_ids.len());
                    tracing::info!(
                        number,
                        prompt,
                        tokens,
                        first_ms,
                        reason = finish(answer.finish_reason),
                        "done"
                    );
                });
                Ok(News::Done { answer })
            }
            Event::Failed { error, .. } => {
                self.tickets[number] = None;
                self.cancel("error");
                Err(ApiError::engine(&error, "messages"))
            }
        }
    }

    fn cancel(&mut self, why: &'static str) {
        for ticket in self.tickets.drain(..).flatten() {
            self.app.metrics.ended(why);
            self.span.in_scope(|| tracing::info!(why, "cancelled"));
            ticket.cancel();
        }
    }

    /// OpenAI's account of tokens.
    pub fn usage(&self) -> Json {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
            "completion_tokens_details": {"reasoning_tokens": self.thought_tokens},
        })
    }

    /// Where the time went.
    pub fn timings(&self) -> Json {
        let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let first = self.first.unwrap_or(self.submitted);
        let decode = self.last - first;
        let more = self.tokens.saturating_sub(self.thoughts.len());
        let rate = if decode.is_zero() { 0.0 } else { more as f64 / decode.as_secs_f64() };
        json!({
            "pictures_ms": ms(self.before.pictures),
            "prepare_ms": ms(self.before.prepare),
            "first_token_ms": ms(first - self.submitted),
            "decode_ms": ms(decode),
            "total_ms": ms(self.before.arrived.elapsed()),
            "tokens_per_s": (rate * 10.0).round() / 10.0,
        })
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.cancel("disconnect");
    }
}

/// OpenAI's word for why an answer ended.
pub(crate) fn finish(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    }
}
