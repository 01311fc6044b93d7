//! What all requests share.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use ocelli_engine::scheduler::{Client, Limits};
use ocelli_engine::{EmbeddingPipeline, Pipeline};
use serde_json::Value as Json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::batches::Batches;
use crate::caller::Caller;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::remote::Allowed;
use crate::search::Search;
use crate::vectors;

/// Longest silence within a body.
const SILENCE: Duration = Duration::from_secs(30);

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the model is called.
    pub name: String,
    /// Names of adapters, by which requests ask for the model with one.
    pub adapters: Vec<String>,
    /// Keys of which clients must have one; none are asked for if there are none.
    pub api_keys: Vec<String>,
    /// Most answers that wait beside those that run.
    pub max_queue: usize,
    /// Most bytes of a body.
    pub max_body: usize,
    /// Most pictures of a request.
    pub max_images: usize,
    /// Most pixels of a request's pictures together.
    pub max_pixels: u64,
    /// Longest time of an answer.
    pub timeout: Duration,
    /// Longest time that running answers get once the server is to end.
    pub drain: Duration,
    /// The folder below which pictures may be named.
    pub media_root: Option<PathBuf>,
    /// Hosts and networks that pictures may be taken from.
    pub remote: Allowed,
    /// The origin of pages that may ask, or `*`.
    pub cors: Option<String>,
    /// What is told of the model beside its name.
    pub info: Json,
    /// The index that can be asked.
    pub search: Option<Arc<Search>>,
    /// The folder of files and batches; there are none without it.
    pub files: Option<PathBuf>,
    /// Tells how the model runs here: kernels and memory.
    pub plan: Planner,
    /// Makes the span of a request a child of its caller's, where spans go somewhere.
    pub adopt: Option<Adopt>,
}

/// Makes a span that has not begun a child of a caller's.
pub type Adopt = fn(&tracing::Span, &Caller);

/// Tells how a model runs; errors are why it cannot be told.
#[derive(Clone)]
pub struct Planner(pub Arc<dyn Fn() -> Result<Json, String> + Send + Sync>);

impl std::fmt::Debug for Planner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Planner")
    }
}

/// What answers.
pub enum Engine {
    /// A model that answers messages.
    Answers {
        /// What makes requests for it.
        pipeline: Box<Pipeline>,
        /// What runs them.
        client: Client,
        /// What that can hold.
        limits: Limits,
    },
    /// A model that gives vectors.
    Vectors {
        /// What prepares pictures and texts for it.
        pipeline: Arc<EmbeddingPipeline>,
        /// What computes them.
        client: vectors::Client,
    },
}

/// What all requests share.
pub(crate) struct App {
    pub config: Config,
    pub engine: Engine,
    pub metrics: Metrics,
    /// Places of answers that run or wait.
    places: Arc<Semaphore>,
    all_places: usize,
    /// Threads that decode pictures and lay prompts out.
    workers: Arc<Semaphore>,
    /// Pictures that are being fetched.
    pub fetches: Arc<Semaphore>,
    pub draining: AtomicBool,
    batches: Option<Batches>,
    /// How the model runs, once it was asked for.
    pub plan: OnceLock<Result<Json, String>>,
    /// Unix time of the start, in seconds.
    pub created: u64,
    started: u128,
    requests: AtomicU64,
    /// Whether only this machine can reach the server.
    pub local: bool,
}

impl App {
    pub fn new(config: Config, engine: Engine, address: IpAddr, batches: Option<Batches>) -> Self {
        let running = match &engine {
            Engine::Answers { limits, .. } => limits.seqs,
            Engine::Vectors { .. } => vectors::BATCH,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let all_places = running.saturating_add(config.max_queue).min(Semaphore::MAX_PERMITS >> 1);
        let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            places: Arc::new(Semaphore::new(all_places)),
            all_places,
            workers: Arc::new(Semaphore::new(workers)),
            fetches: Arc::new(Semaphore::new(8)),
            metrics: Metrics::default(),
            draining: AtomicBool::new(false),
            batches,
            plan: OnceLock::new(),
            created: now.as_secs(),
            started: now.as_nanos(),
            requests: AtomicU64::new(0),
            local: address.is_loopback(),
            config,
            engine,
        }
    }

    /// A name that no other answer has.
    pub fn id(&self, kind: &str) -> String {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        format!("{kind}-{:x}{number:06x}", self.started)
    }

    /// Takes places for `count` answers, all or none. Errors at once where the device cannot be used any more.
    pub fn places(&self, count: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        self.usable().map_err(|error| ApiError::engine(&error, "model"))?;
        if count > self.all_places {
            let most = self.all_places;
            return Err(ApiError::field("n", format!("expected at most {most} answers, found {count}")));
        }
        let permits = u32::try_from(count).unwrap_or(u32::MAX);
        self.places.clone().try_acquire_many_owned(permits).map_err(|_| {
            // By when a good part of those that are there have ended.
            ApiError::busy((self.metrics.answers.mean().ceil() as u64).clamp(1, 60))
        })
    }

    /// Whether less than half of what can run at once is taken, by a device that is well: work that has time may begin.
    pub fn has_spare_places(&self) -> bool {
        let running = self.all_places - self.config.max_queue.min(self.all_places);
        self.taken().0 < running.div_ceil(2).max(1) && self.usable().is_ok()
    }

    /// Files and batches.
    pub fn batches(&self) -> Result<&Batches, ApiError> {
        let none = || ApiError::not_found("there are files and batches where the server has --files-dir");
        self.batches.as_ref().ok_or_else(none)
    }

    /// Places that are taken, and all of them.
    pub fn taken(&self) -> (usize, usize) {
        (self.all_places - self.places.available_permits(), self.all_places)
    }

    /// Runs work that takes its time on a thread of its own, few at once.
    pub async fn work<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<R, ApiError> + Send + 'static,
    ) -> Result<R, ApiError> {
        // The semaphore is never closed.
        let permit = self.workers.clone().acquire_owned().await.ok();
        let span = tracing::Span::current();
        let work = move || {
            let _permit = permit;
            span.in_scope(work)
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|_| Err(ApiError::internal("the work on this request failed")))
    }

    /// The bytes of a body.
    pub async fn body(&self, request: Request<Body>) -> Result<Vec<u8>, ApiError> {
        let limit = self.config.max_body;
        let mut body = request.into_body();
        let mut bytes = Vec::new();
        if http_body::Body::size_hint(&body).lower() > limit as u64 {
            return Err(ApiError::too_large(limit));
        }
        loop {
            let frame = tokio::time::timeout(SILENCE, body.frame()).await;
            let Some(frame) = frame.map_err(|_| ApiError::slow(SILENCE.as_secs()))? else { return Ok(bytes) };
            let frame = frame.map_err(|error| ApiError::bad(format!("the body: {error}")))?;
            let Some(data) = frame.data_ref() else { continue };
            if bytes.len() + data.len() > limit {
                return Err(ApiError::too_large(limit));
            }
            bytes.extend_from_slice(data);
        }
    }

    /// Errors if a model is asked for that is not this one.
    pub fn is_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name.filter(|name| *name != self.config.name) {
            None => Ok(()),
            Some(other) => {
                let shown: String = other.chars().take(80).collect();
                let ours = &self.config.name;
                let message = format!("model: there is `{ours}` here, no `{shown}`");
                Err(ApiError::not_found(message).at("model").code("model_not_found"))
            }
        }
    }

    /// The adapter that a request names as its model; `None` for the model itself. Errors if there is neither.
    pub fn adapter(&self, name: Option<&str>) -> Result<Option<Arc<str>>, ApiError> {
        match name.and_then(|name| self.config.adapters.iter().find(|adapter| *adapter == name)) {
            Some(adapter) => Ok(Some(adapter.as_str().into())),
            None => self.is_model(name).map(|()| None),
        }
    }

    /// What answers messages here.
    pub fn answers(&self) -> Result<(&Pipeline, &Client, &Limits), ApiError> {
        match &self.engine {
            Engine::Answers { pipeline, client, limits } => Ok((pipeline, client, limits)),
            Engine::Vectors { .. } => Err(ApiError::bad(
                "model: this one gives vectors; /v1/embeddings is what it can be asked for",
            )
            .at("model")),
        }
    }
}
