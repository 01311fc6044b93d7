//! Answers on their way to Python.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ocelli_engine::Error;
use ocelli_engine::scheduler::{Client, Event, FinishReason, Request, Ticket};
use pyo3::exceptions::PyStopIteration;
use pyo3::prelude::*;

use crate::error::{engine, raised};

/// How often a wait looks for Ctrl-C.
const LOOK: Duration = Duration::from_millis(50);

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits without the interpreter's lock until something comes, or a signal's handler raises.
fn wait<T: Send>(py: Python<'_>, from: &Mutex<Receiver<T>>) -> PyResult<T> {
    loop {
        match py.detach(|| held(from).recv_timeout(LOOK)) {
            Ok(item) => return Ok(item),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(engine("the thread that answers requests has ended".into(), None));
            }
        }
    }
}

/// An answer.
#[pyclass(frozen, get_all, module = "ocelli")]
pub struct Answer {
    text: String,
    reasoning: Option<String>,
    token_ids: Vec<u32>,
    prompt_tokens: usize,
    finish_reason: &'static str,
}

impl From<ocelli_engine::scheduler::Answer> for Answer {
    fn from(answer: ocelli_engine::scheduler::Answer) -> Self {
        let finish_reason = match answer.finish_reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        };
        let (prompt_tokens, reasoning) = (answer.prompt_tokens, answer.reasoning);
        Self { text: answer.text, reasoning, token_ids: answer.token_ids, prompt_tokens, finish_reason }
    }
}

#[pymethods]
impl Answer {
    fn __str__(&self) -> &str {
        &self.text
    }

    fn __repr__(&self) -> String {
        format!(
            "Answer({:?}, finish_reason={:?}, {} tokens)",
            self.text,
            self.finish_reason,
            self.token_ids.len()
        )
    }
}

/// One request: its text as it comes, and its answer. Dropping it cancels the request.
#[pyclass(frozen, module = "ocelli")]
pub struct Stream {
    events: Mutex<Receiver<Event>>,
    ticket: Ticket,
    answer: Mutex<Option<Py<Answer>>>,
}

impl Stream {
    pub fn submit(client: &Client, request: Request) -> Result<Self, Error> {
        let (sender, events) = channel();
        let ticket = client.submit_to(request, move |event| sender.send(event).is_ok())?;
        Ok(Self { events: Mutex::new(events), ticket, answer: Mutex::new(None) })
    }

    /// The next piece of text, and whether it is a thought; none at the end.
    fn next(&self, py: Python<'_>) -> PyResult<Option<(String, bool)>> {
        if held(&self.answer).is_some() {
            return Ok(None);
        }
        match wait(py, &self.events)? {
            Event::Text { text, thought, .. } => Ok(Some((text, thought))),
            Event::Done { answer, .. } => {
                *held(&self.answer) = Some(Py::new(py, Answer::from(answer))?);
                Ok(None)
            }
            Event::Failed { error, .. } => Err(raised(&error)),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.ticket.cancel();
    }
}

#[pymethods]
impl Stream {
    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// The next piece of the answer; what the model thinks before is left out.
    fn __next__(&self, py: Python<'_>) -> PyResult<String> {
        while let Some((text, thought)) = self.next(py)? {
            if !thought && !text.is_empty() {
                return Ok(text);
            }
        }
        Err(PyStopIteration::new_err(()))
    }

    /// Waits for the whole answer.
    fn result(&self, py: Python<'_>) -> PyResult<Py<Answer>> {
        while self.next(py)?.is_some() {}
        match &*held(&self.answer) {
            Some(answer) => Ok(answer.clone_ref(py)),
            None => Err(engine("the answer is missing".into(), None)),
        }
    }

    /// The answer, once the text is at its end; None before.
    #[getter]
    fn answer(&self, py: Python<'_>) -> Option<Py<Answer>> {
        held(&self.answer).as_ref().map(|answer| answer.clone_ref(py))
    }

    /// Ends the request; what there is of its answer is the answer.
    fn cancel(&self) {
        self.ticket.cancel();
    }
}

/// What came of a request.
enum End {
    Answer(ocelli_engine::scheduler::Answer),
    Failed(Error),
    /// It never began.
    Lost(Py<PyAny>),
}

type Ended = (usize, End);

/// Requests by numbers, and their answers as they end. Dropping it cancels those that have not.
#[pyclass(frozen, module = "ocelli")]
pub struct Results {
    sender: Mutex<Sender<Ended>>,
    ended: Mutex<Receiver<Ended>>,
    tickets: Mutex<HashMap<usize, Ticket>>,
}

impl Results {
    /// Hands a request in under a number.
    pub fn submit(&self, client: &Client, number: usize, request: Request) -> Result<(), Error> {
        let sender = held(&self.sender).clone();
        let sink = move |event| match event {
            Event::Text { .. } => true,
            Event::Done { answer, .. } => sender.send((number, End::Answer(answer))).is_ok(),
            Event::Failed { error, .. } => sender.send((number, End::Failed(error))).is_ok(),
        };
        // Locked, so that an end that comes at once finds its beginning.
        let mut tickets = held(&self.tickets);
        tickets.insert(number, client.submit_to(request, sink)?);
        Ok(())
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[pymethods]
impl Results {
    #[new]
    fn new() -> Self {
        let (sender, ended) = channel();
        Self { sender: Mutex::new(sender), ended: Mutex::new(ended), tickets: Mutex::default() }
    }

    /// Waits for the next request that ends: its number, and its answer or exception.
    fn next(&self, py: Python<'_>) -> PyResult<(usize, Py<PyAny>)> {
        let (number, result) = wait(py, &self.ended)?;
        held(&self.tickets).remove(&number);
        let result = match result {
            End::Answer(answer) => Py::new(py, Answer::from(answer))?.into_any(),
            End::Failed(error) => raised(&error).into_value(py).into_any(),
            End::Lost(error) => error,
        };
        Ok((number, result))
    }

    /// Has a request that never began end with an exception.
    fn lose(&self, number: usize, error: Py<PyAny>) {
        let _ = held(&self.sender).send((number, End::Lost(error)));
    }

    /// Ends all requests.
    fn cancel(&self) {
        held(&self.tickets).drain().for_each(|(_, ticket)| ticket.cancel());
    }
}
