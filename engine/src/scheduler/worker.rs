//! A thread that owns a context and a scheduler; others talk to it by channel.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;

use tracing::Span;

use super::{Event, Picture, Request, Scheduler};
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::timing::Timings;

/// Where the events of a request go, on the scheduler's thread; false where nobody listens any more.
type Sink = Box<dyn FnMut(Event) -> bool + Send>;

/// Other work for the context, part by part as long as it goes on.
type Work = Box<dyn FnMut(&mut Ctx) -> ControlFlow<()> + Send>;

/// What clients ask of the thread.
enum Command {
    /// The span is that of the client.
    Submit {
        ticket: u64,
        request: Box<Request>,
        sink: Sink,
        span: Span,
    },
    Cancel {
        ticket: u64,
    },
    Expect(Weak<Picture>),
    Run(Work),
    Stop,
}

/// What clients and the thread share.
#[derive(Default)]
struct Shared {
    tickets: AtomicU64,
    /// Why the thread ended.
    ended: OnceLock<String>,
    /// Why the device cannot be used any more.
    gone: OnceLock<String>,
    load: Mutex<Load>,
}

impl Shared {
    fn error(&self) -> Error {
        Error::Worker(self.ended.get().cloned().unwrap_or_else(|| "it panicked".into()))
    }
}

/// The thread. Dropping it cancels what runs and waits for the thread's end.
pub struct Worker {
    client: Client,
    thread: Option<JoinHandle<()>>,
}

/// Hands requests to the thread, from any other.
#[derive(Clone)]
pub struct Client {
    commands: Sender<Command>,
    shared: Arc<Shared>,
    /// Of what the thread holds as long as it lives.
    alive: Weak<()>,
}

/// Events of one request. Dropping it cancels the request.
pub struct Stream {
    ticket: Ticket,
    events: Receiver<Event>,
    ended: bool,
}

/// How a scheduler does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Requests that wait for room.
    pub waiting: usize,
    /// Requests that run.
    pub running: usize,
    /// Pages of keys and values that sequences hold, of the group of layers that has the fewest left, and those of that group;
    /// pages that are only kept for prompts that begin likewise do not count.
    pub pages: (usize, usize),
    /// How often a running request gave its pages back.
    pub preempted: usize,
    /// Tokens of prompts that were not read, as others had been read that begin likewise.
    pub reused_tokens: usize,
    /// Pictures that were not encoded, as their features were there.
    pub reused_pictures: usize,
    /// Time and work of each stage so far.
    pub timings: Timings,
}

impl Worker {
    /// Starts the thread, which makes its context and scheduler there by `start`; waits until it has.
    ///
    /// # Errors
    /// Those of `start`, and if no thread can be had.
    pub fn spawn(start: impl FnOnce() -> Result<(Ctx, Scheduler)> + Send + 'static) -> Result<Self> {
        let (commands, received) = channel();
        let (ready, started) = channel();
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let lives = Arc::new(());
        let alive = Arc::downgrade(&lives);
        let work = move || {
            let _lives = lives;
            match start() {
                Ok((cx, scheduler)) => {
                    let _ = ready.send(Ok(()));
                    let shared = of_thread.clone();
                    Thread {
                        cx,
                        scheduler,
                        received,
                        requests: HashMap::new(),
                        work: VecDeque::new(),
                        shared,
                    }
                    .run();
                    let _ = of_thread.ended.set("it was stopped".into());
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            };
        };
        let thread = std::thread::Builder::new().name("ocelli-scheduler".into()).spawn(work);
        let thread = thread.map_err(|error| Error::Worker(format!("no thread: {error}")))?;
        let worker =
            Self { client: Client { commands, shared: shared.clone(), alive }, thread: Some(thread) };
        match started.recv() {
            Ok(Ok(())) => Ok(worker),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(shared.error()),
        }
    }

    /// A handle for other threads.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Hands in a request; see [`Client::submit`].
    ///
    /// # Errors
    /// If the thread has ended.
    pub fn submit(&self, request: Request) -> Result<Stream> {
        self.client.submit(request)
    }

    /// Cancels what runs and waits for the thread's end.
    ///
    /// # Errors
    /// If the thread did not end well.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let _ = self.client.commands.send(Command::Stop);
        thread.join().map_err(|_| self.client.shared.error())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "the scheduler's thread");
        }
    }
}

impl Client {
    /// Hands in a request. One that can never run fails as its only event.
    ///
    /// # Errors
    /// If the thread has ended, or the device cannot be used any more.
    pub fn submit(&self, request: Request) -> Result<Stream> {
        let (sender, events) = channel();
        let ticket = self.submit_to(request, move |event| sender.send(event).is_ok())?;
        Ok(Stream { ticket, events, ended: false })
    }

    /// Hands in a request whose events go to `sink`, which the scheduler's thread calls and must not wait; it ends the request by
    /// giving false. The numbers in events are of no use. One that can never run fails as its only event.
    ///
    /// # Errors
    /// If the thread has ended, or the device cannot be used any more.
    pub fn submit_to(
        &self,
        request: Request,
        sink: impl FnMut(Event) -> bool + Send + 'static,
    ) -> Result<Ticket> {
        self.usable()?;
        let number = self.shared.tickets.fetch_add(1, Ordering::Relaxed);
        let (request, sink, span) = (Box::new(request), Box::new(sink), Span::current());
        let command = Command::Submit { ticket: number, request, sink, span };
        self.commands.send(command).map_err(|_| self.error())?;
        Ok(Ticket { number, client: self.clone() })
    }

    /// Tells of a picture that a request is to ask about: see [`Scheduler::expect`].
    ///
    /// # Errors
    /// If the thread has ended.
    pub fn expect(&self, picture: &Arc<Picture>) -> Result<()> {
        self.commands.send(Command::Expect(Arc::downgrade(picture))).map_err(|_| self.error())
    }

    /// Has the thread do other work with its context: a part of it after each step, as long as it goes on. Steps wait for a part.
    ///
    /// # Errors
    /// If the thread has ended.
    pub fn run(&self, work: impl FnMut(&mut Ctx) -> ControlFlow<()> + Send + 'static) -> Result<()> {
        self.commands.send(Command::Run(Box::new(work))).map_err(|_| self.error())
    }

    /// Errors once the device cannot be used any more: every request fails from then on, though the thread lives.
    ///
    /// # Errors
    /// The one that a request met.
    pub fn usable(&self) -> Result<()> {
        self.shared.gone.get().map_or(Ok(()), |what| Err(Error::DeviceGone(what.clone())))
    }

    /// How the scheduler does, as of its last step.
    #[must_use]
    pub fn load(&self) -> Load {
        *self.shared.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the thread has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.alive.strong_count() == 0
    }

    /// Why the thread has ended.
    #[must_use]
    pub fn error(&self) -> Error {
        self.shared.error()
    }
}

/// What ends a request before its time. Dropping it does not.
#[derive(Clone)]
pub struct Ticket {
    number: u64,
    client: Client,
}

impl Ticket {
    /// Ends the request; what there is of its answer comes as its last event.
    pub fn cancel(&self) {
        let _ = self.client.commands.send(Command::Cancel { ticket: self.number });
    }
}

impl Stream {
    /// Ends the request; what there is of its answer comes as its last event.
    pub fn cancel(&self) {
        self.ticket.cancel();
    }

    fn note(&mut self, event: Option<Event>) -> Option<Event> {
        let event = event.unwrap_or_else(|| Event::Failed {
            request: self.ticket.number as usize,
            error: self.ticket.client.error(),
        });
        self.ended = !matches!(event, Event::Text { .. });
        Some(event)
    }

    /// The next event if it is there already; `None` otherwise.
    pub fn try_next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        match self.events.try_recv() {
            Ok(event) => self.note(Some(event)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => self.note(None),
        }
    }
}

impl Iterator for Stream {
    type Item = Event;

    /// Waits for the next event; `None` after the last one. The numbers in events are of no use here.
    fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.recv().ok();
        self.note(event)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.ended {
            self.cancel();
        }
    }
}

/// The thread's own state.
struct Thread {
    cx: Ctx,
    scheduler: Scheduler,
    received: Receiver<Command>,
    /// For each number that the scheduler gave, the client's ticket and where events go.
    requests: HashMap<usize, (u64, Sink)>,
    /// Other work, in turn.
    work: VecDeque<Work>,
    shared: Arc<Shared>,
}

impl Thread {
    fn run(mut self) {
        while self.listen() {
            let events = self.scheduler.step(&mut self.cx);
            // First, so that who hears of an answer finds its work counted.
            self.note_load();
            for event in events {
                if let Event::Failed { error, .. } = &event
                    && error.ends_device()
                {
                    let _ = self.shared.gone.set(error.to_string());
                }
                self.tell(event);
            }
            self.end_all_if_gone();
            if let Some(mut work) = self.work.pop_front()
                && work(&mut self.cx).is_continue()
            {
                self.work.push_back(work);
            }
        }
        let numbers: Vec<usize> = self.requests.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.cancel(number));
    }

    /// Ends every request once the device cannot be used any more.
    fn end_all_if_gone(&mut self) {
        let Some(what) = self.shared.gone.get().cloned() else { return };
        let numbers: Vec<usize> = self.requests.keys().copied().collect();
        if numbers.is_empty() {
            return;
        }
        for &number in &numbers {
            let _ = self.scheduler.cancel(number);
        }
        self.note_load();
        for request in numbers {
            self.tell(Event::Failed { request, error: Error::DeviceGone(what.clone()) });
        }
    }

    fn note_load(&self) {
        *self.shared.load.lock().unwrap_or_else(PoisonError::into_inner) =
            Load { timings: self.cx.timings, ..self.scheduler.load() };
    }

    /// Obeys what has come, and waits for it while there is nothing to do; false at the end.
    fn listen(&mut self) -> bool {
        loop {
            let idle = self.scheduler.is_idle() && !self.scheduler.expects();
            let command = if idle && self.work.is_empty() {
                // What was cancelled is not waited for by any step.
                self.note_load();
                self.received.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                self.received.try_recv()
            };
            match command {
                Ok(command) => {
                    if !self.obey(command) {
                        return false;
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Does what a client asks; false at the end.
    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Submit { ticket, request, mut sink, span } => {
                // A device may have gone while the request was on its way.
                let gone = self.shared.gone.get().map(|what| Error::DeviceGone(what.clone()));
                let submit = || gone.map_or_else(|| self.scheduler.submit(*request), Err);
                match span.in_scope(submit) {
                    Ok(number) => {
                        self.requests.insert(number, (ticket, sink));
                    }
                    Err(error) => {
                        sink(Event::Failed { request: ticket as usize, error });
                    }
                }
            }
            Command::Cancel { ticket } => {
                let number = self.requests.iter().find(|(_, (other, _))| *other == ticket);
                if let Some(number) = number.map(|(&number, _)| number) {
                    self.cancel(number);
                }
            }
            Command::Expect(picture) => {
                if let Some(picture) = picture.upgrade() {
                    self.scheduler.expect(&picture);
                }
            }
            Command::Run(work) => self.work.push_back(work),
            Command::Stop => return false,
        }
        true
    }

    fn cancel(&mut self, request: usize) {
        if let Some(answer) = self.scheduler.cancel(request) {
            self.tell(Event::Done { request, answer });
        }
    }

    fn tell(&mut self, event: Event) {
        let number = event.request();
        let Some((_, sink)) = self.requests.get_mut(&number) else { return };
        let last = !matches!(event, Event::Text { .. });
        // Nobody listens any more: the request ends.
        let gone = !sink(event);
        if last || gone {
            self.requests.remove(&number);
        }
        if gone && !last {
            self.scheduler.cancel(number);
        }
    }
}
