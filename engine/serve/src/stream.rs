//! Answers as server-sent events.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use http_body::Frame;
use serde_json::{Value as Json, json};
use tokio::time::Interval;

use crate::answer::{Answers, News};
use crate::calls::{Calls, Part};
use crate::error::ApiError;
use crate::likely;
use crate::shape::Shape;

/// How long it is silent at most, so that nobody between server and client takes the connection for dead.
const SILENCE: Duration = Duration::from_secs(15);

/// How long an error is waited for that can still be the whole answer.
const EARLY: Duration = Duration::from_secs(2);

type Item = Option<Result<(usize, News), ApiError>>;

/// A body of server-sent events.
struct Events {
    answers: Answers,
    shape: Shape,
    usage: bool,
    /// What came before the body was asked for.
    early: VecDeque<Item>,
    began: Vec<bool>,
    /// Calls of tools of each answer, where they are looked for.
    calls: Vec<Calls>,
    /// Characters of each answer whose log probabilities were told.
    told: Vec<usize>,
    ended: bool,
    silence: Interval,
}

/// The answers as a stream of events. Errors that come at once are answers of their own.
pub(crate) async fn stream(
    mut answers: Answers,
    shape: Shape,
    count: usize,
    usage: bool,
) -> Result<Response, ApiError> {
    let mut early = VecDeque::new();
    let first = std::future::poll_fn(|cx| answers.poll(cx));
    if let Ok(item) = tokio::time::timeout(EARLY, first).await {
        match item {
            Some(Err(error)) => return Err(error),
            item => early.push_back(item),
        }
    }
    let mut silence = tokio::time::interval(SILENCE);
    silence.reset();
    let (began, calls, told) = (vec![false; count], vec![Calls::default(); count], vec![0; count]);
    let events = Events { answers, shape, usage, early, began, calls, told, ended: false, silence };
    let mut response = Response::new(Body::new(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that gather answers must not.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn event(out: &mut String, value: &Json) {
    out.push_str("data: ");
    out.push_str(&value.to_string());
    out.push_str("\n\n");
}

impl Events {
    fn write_parts(&mut self, out: &mut String, number: usize, parts: Vec<Part>) {
        let calls = parts.iter().filter(|part| matches!(part, Part::Call(_))).count();
        let mut index = self.calls[number].count - calls;
        for part in parts {
            match part {
                Part::Text(text) => event(out, &self.shape.more(number, &text, false)),
                Part::Call(call) => {
                    event(out, &self.shape.call(number, index, &call));
                    index += 1;
                }
            }
        }
    }

    fn write(&mut self, out: &mut String, item: Item) {
        match item {
            Some(Ok((number, news))) => {
                if let Some(began) = self.began.get_mut(number).filter(|began| !**began) {
                    *began = true;
                    self.shape.begin(number).iter().for_each(|value| event(out, value));
                }
                match news {
                    News::Text { text, thought, logprobs } => {
                        match self.shape.tools && !thought {
                            true => {
                                let parts = self.calls[number].push(&text);
                                self.write_parts(out, number, parts);
                            }
                            false if text.is_empty() => {}
                            false => event(out, &self.shape.more(number, &text, thought)),
                        }
                        if let Some(of) = logprobs
                            && let Some(likely) = self.shape.likely(number, &of, self.told[number])
                        {
                            let words = self.shape.words.iter();
                            self.told[number] += words
                                .map(|words| likely::length(words, std::slice::from_ref(&of)))
                                .sum::<usize>();
                            event(out, &likely);
                        }
                    }
                    News::Done { answer } => {
                        let parts = self.calls[number].finish();
                        self.write_parts(out, number, parts);
                        event(out, &self.shape.end(number, &answer, self.calls[number].count));
                    }
                }
            }
            Some(Err(error)) => {
                self.ended = true;
                event(out, &error.json());
            }
            None => {
                self.ended = true;
                let mut last = self.shape.nothing();
                last["usage"] = if self.usage { self.answers.usage() } else { Json::Null };
                last["timings"] = self.answers.timings();
                if self.usage {
                    event(out, &last);
                }
                out.push_str("data: [DONE]\n\n");
            }
        }
    }
}

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut out = String::new();
        while !self.ended {
            let item = match self.early.pop_front() {
                Some(item) => item,
                None => match self.answers.poll(cx) {
                    Poll::Ready(item) => item,
                    Poll::Pending => break,
                },
            };
            self.write(&mut out, item);
        }
        if out.is_empty() {
            if self.ended {
                return Poll::Ready(None);
            }
            if self.silence.poll_tick(cx).is_pending() {
                return Poll::Pending;
            }
            out.push_str(": the answer is not there yet\n\n");
        }
        self.silence.reset();
        Poll::Ready(Some(Ok(Frame::data(out.into()))))
    }
}

/// The answers as one object.
pub(crate) async fn whole(mut answers: Answers, shape: Shape, count: usize) -> Result<Json, ApiError> {
    let mut choices = vec![Json::Null; count];
    while let Some(item) = std::future::poll_fn(|cx| answers.poll(cx)).await {
        if let (number, News::Done { answer }) = item? {
            choices[number] = shape.choice(number, &answer);
        }
    }
    let mut whole = shape.head(false);
    whole["choices"] = json!(choices);
    whole["usage"] = answers.usage();
    whole["timings"] = answers.timings();
    Ok(whole)
}
