//! Connections, what is asked of every request, and the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ocelli_engine::Error;
use ocelli_engine::scheduler::Worker;
use serde_json::json;
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, watch};
use tracing::Instrument;

use crate::app::{App, Config, Engine};
use crate::batches::{self, Batches};
use crate::caller::Caller;
use crate::error::{ApiError, json_response};
use crate::{chat, files, images, page, search, vectors};

/// Most connections at once.
const CONNECTIONS: usize = 8192;
/// Connections that the system holds until the server takes them: those of many clients that come at once.
const BACKLOG: u32 = 4096;
/// Longest time in which the head of a request must come.
const HEAD: Duration = Duration::from_secs(30);
/// How often the server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Longest time that connections get to be closed once their answers have ended.
const CLOSE: Duration = Duration::from_secs(2);

/// Paths by which requests are counted.
const PATHS: &[&str] = &[
    "/",
    "/health",
    "/metrics",
    "/plan",
    "/tokenize",
    "/v1/batches",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/files",
    "/v1/images/generations",
    "/v1/models",
    "/v1/search",
];

/// A server that listens already and answers nothing yet.
pub struct Server {
    runtime: tokio::runtime::Runtime,
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Listens at an address; port 0 is any that is free.
    ///
    /// # Errors
    /// If the address cannot be had.
    pub fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(64)
            .thread_name("ocelli-http")
            .enable_all()
            .build()?;
        let listen = || -> std::io::Result<TcpListener> {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // A server that was started again finds its address free; elsewhere this means another thing.
            #[cfg(unix)]
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        };
        let listener = {
            let _entered = runtime.enter();
            listen()?
        };
        let address = listener.local_addr()?;
        Ok(Self { runtime, listener, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `asked` says that the server is to end; then what runs may end within the configured time, and new requests are
    /// refused. `worker` is the engine's own.
    ///
    /// # Errors
    /// If the engine ends before.
    pub fn run(
        self,
        config: Config,
        engine: Engine,
        worker: Option<Worker>,
        asked: impl Fn() -> bool,
    ) -> ocelli_engine::Result<()> {
        let open = |folder: &std::path::PathBuf| {
            let named = |error| Error::Store { path: folder.display().to_string(), error };
            Batches::open(folder).map_err(named)
        };
        let batches = config.files.as_ref().map(open).transpose()?;
        let app = Arc::new(App::new(config, engine, self.address.ip(), batches));
        let (closing, closed) = watch::channel(false);
        let accepting = self.runtime.spawn(accept(app.clone(), self.listener, closed));
        let answering = self.runtime.spawn(batches::run(app.clone()));
        let ended = self.runtime.block_on(async {
            while !asked() && !app.broken() {
                tokio::time::sleep(LOOK).await;
            }
            app.draining.store(true, Ordering::Relaxed);
            let until = Instant::now() + app.config.drain;
            while app.taken().0 > 0 && Instant::now() < until && !app.broken() {
                tokio::time::sleep(LOOK).await;
            }
            // Rows of batches that have not ended are asked again by the next server.
            let _ = tokio::time::timeout(CLOSE, answering).await;
            app.broken()
        });
        // What still runs is told that it has ended.
        let stopped = worker.map_or(Ok(()), Worker::stop);
        let _ = closing.send(true);
        self.runtime.block_on(async {
            let _ = tokio::time::timeout(CLOSE, accepting).await;
        });
        self.runtime.shutdown_timeout(CLOSE);
        match (&app.engine, ended) {
            (Engine::Answers { client, .. }, true) => Err(client.error()),
            _ => stopped,
        }
    }
}

/// Waits until the server closes.
async fn told(closed: &mut watch::Receiver<bool>) {
    let _ = closed.wait_for(|closed| *closed).await;
}

/// Takes connections until the server closes, then waits until all have ended.
async fn accept(app: Arc<App>, listener: TcpListener, mut closed: watch::Receiver<bool>) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let router = router(&app);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    loop {
        // The semaphore is never closed.
        let permit = free.clone().acquire_owned().await.ok();
        let stream = tokio::select! {
            () = told(&mut closed) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Such as too many open files: others may close theirs.
                    tracing::warn!(%error, "a connection cannot be taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        // Tokens are to be sent as they come.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let mut closed = closed.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let mut connection = std::pin::pin!(connection);
            let served = tokio::select! {
                served = connection.as_mut() => served,
                () = told(&mut closed) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = served {
                tracing::debug!(%error, "a connection");
            }
        });
    }
    let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
    let _ = free.acquire_many(all).await;
}

fn router(app: &Arc<App>) -> Router {
    Router::new()
        .route("/", get(page::index))
        .route("/{file}", get(page::file))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/plan", get(plan))
        .route("/tokenize", post(chat::tokenize))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/chat/completions", post(chat::chat_completions))
        .route("/v1/completions", post(chat::completions))
        .route("/v1/embeddings", post(vectors::embeddings))
        .route("/v1/search", post(search::search))
        .route("/v1/images/generations", post(images::generations))
        .route("/v1/files", get(files::list).post(files::upload))
        .route("/v1/files/{id}", get(files::get).delete(files::remove))
        .route("/v1/files/{id}/content", get(files::content))
        .route("/v1/batches", get(batches::list).post(batches::create))
        .route("/v1/batches/{id}", get(batches::get))
        .route("/v1/batches/{id}/cancel", post(batches::cancel))
        .fallback(async || ApiError::not_found("there is nothing at this address"))
        .method_not_allowed_fallback(async || ApiError::method())
        .layer(from_fn_with_state(app.clone(), guard))
        .with_state(app.clone())
}

/// What is asked of every request before it is looked at, and said of its answer.
async fn guard(State(app): State<Arc<App>>, request: Request<Body>, next: Next) -> Response {
    let start = Instant::now();
    let path = request.uri().path();
    let path = PATHS.iter().find(|known| **known == path).copied().unwrap_or("other");
    let span = tracing::info_span!("request", path);
    if let Some(adopt) = app.config.adopt
        && let Some(caller) = Caller::of(request.headers())
    {
        adopt(&span, &caller);
    }
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = origin
        .clone()
        .filter(|origin| app.config.cors.as_ref().is_some_and(|cors| cors == "*" || cors == origin));
    let response = async {
        if allowed.is_some() && request.method() == Method::OPTIONS {
            return StatusCode::NO_CONTENT.into_response();
        }
        match app.admit(&request, origin.as_ref().filter(|_| allowed.is_none()), path) {
            Ok(()) => next.run(request).await,
            Err(error) => error.into_response(),
        }
    };
    let mut response = response.instrument(span.clone()).await;
    if let Some(origin) = allowed {
        let headers = response.headers_mut();
        let any = app.config.cors.as_deref() == Some("*");
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            if any { HeaderValue::from_static("*") } else { origin },
        );
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("GET, POST, DELETE, OPTIONS"),
        );
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("*, authorization"));
    }
    if app.draining.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    app.metrics.request(path, response.status().as_u16());
    let _entered = span.enter();
    tracing::info!(status = response.status().as_u16(), ms = start.elapsed().as_millis() as u64, "answered");
    response
}

impl App {
    /// Whether the engine has ended by itself.
    pub fn broken(&self) -> bool {
        match &self.engine {
            Engine::Answers { client, .. } => client.has_ended(),
            Engine::Vectors { client, .. } => client.has_ended(),
        }
    }

    /// Errors once the device cannot be used any more. The server goes on to say so.
    pub fn usable(&self) -> ocelli_engine::Result<()> {
        match &self.engine {
            Engine::Answers { client, .. } => client.usable(),
            Engine::Vectors { client, .. } => client.usable(),
        }
    }

    /// Errors if a request may not be looked at. `foreign` is the origin of a page that may not ask.
    fn admit(
        &self,
        request: &Request<Body>,
        foreign: Option<&HeaderValue>,
        path: &str,
    ) -> Result<(), ApiError> {
        let headers = request.headers();
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        // Names that lead here may be anybody's: a page of such a name would be of the server's own origin.
        if self.local && self.config.api_keys.is_empty() && !is_local(host) {
            return Err(ApiError::forbidden(
                "host: expected localhost or a loopback address; with --api-key any name is taken",
            ));
        }
        if let Some(origin) = foreign
            && origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, of)| of)
                != Some(host)
        {
            return Err(ApiError::forbidden(
                "origin: pages of other origins may ask where --cors names them",
            ));
        }
        // The page is the same for all, and holds nothing.
        let open = path == "/health"
            || path == "/"
            || (path == "other"
                && request.method() == Method::GET
                && !request.uri().path().starts_with("/v1/"));
        if !open {
            self.check_key(headers)?;
        }
        if request.method() == Method::POST && self.draining.load(Ordering::Relaxed) {
            return Err(ApiError::draining());
        }
        Ok(())
    }

    fn check_key(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.config.api_keys.is_empty() {
            return Ok(());
        }
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer "));
        let Some(given) = given else {
            return Err(ApiError::key("no API key was given; expected `Authorization: Bearer KEY`"));
        };
        // All are compared, each in a time that does not depend on what is in it.
        let given = given.trim().as_bytes();
        let known =
            self.config.api_keys.iter().fold(0, |known, key| known | key.as_bytes().ct_eq(given).unwrap_u8());
        if known == 1 { Ok(()) } else { Err(ApiError::key("the API key is not one of this server's")) }
    }
}

/// Whether a `Host` names this machine alone.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.parse::<std::net::IpAddr>().map_or_else(
        |_| name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost"),
        |address| address.is_loopback(),
    )
}

async fn health(State(app): State<Arc<App>>) -> Response {
    if let Err(error) = app.usable() {
        let told = json!({"status": "device lost", "error": error.to_string()});
        return json_response(StatusCode::SERVICE_UNAVAILABLE, &told);
    }
    let (status, text) = if app.broken() {
        (StatusCode::INTERNAL_SERVER_ERROR, "broken")
    } else if app.draining.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else {
        (StatusCode::OK, "ok")
    };
    json_response(status, &json!({"status": text}))
}

/// How the model runs here: what `ocelli inspect --json` tells.
async fn plan(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let shared = app.clone();
    let work = move || {
        let plan = shared.plan.get_or_init(|| shared.config.plan.0());
        plan.clone().map_err(|why| ApiError::internal(format!("the plan: {why}")))
    };
    Ok(json_response(StatusCode::OK, &app.work(work).await?))
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let load = match &app.engine {
        Engine::Answers { client, .. } => Some(client.load()),
        Engine::Vectors { .. } => None,
    };
    let kind: (HeaderName, &str) = (header::CONTENT_TYPE, "text/plain; version=0.0.4");
    ([kind], app.metrics.text(load.as_ref(), app.taken())).into_response()
}

impl App {
    fn model(&self) -> serde_json::Value {
        let mut model = json!({
            "id": self.config.name, "object": "model", "created": self.created, "owned_by": "ocelli",
        });
        if let Engine::Answers { pipeline, limits, .. } = &self.engine {
            model["max_model_len"] = json!(chat::longest(pipeline, limits));
        }
        model["details"] = self.config.info.clone();
        model
    }

    /// An adapter, told as a model whose parent is the one that it is of.
    fn adapted(&self, name: &str) -> serde_json::Value {
        json!({
            "id": name, "object": "model", "created": self.created, "owned_by": "ocelli", "parent": self.config.name,
        })
    }
}

async fn models(State(app): State<Arc<App>>) -> Response {
    let adapters = app.config.adapters.iter().map(|name| app.adapted(name));
    let data: Vec<_> = std::iter::once(app.model()).chain(adapters).collect();
    json_response(StatusCode::OK, &json!({"object": "list", "data": data}))
}

async fn model(
    State(app): State<Arc<App>>,
    axum::extract::Path(name): axum::extract::Path<String>,
) -> Result<Response, ApiError> {
    let shown = match app.adapter(Some(&name))? {
        Some(adapter) => app.adapted(&adapter),
        None => app.model(),
    };
    Ok(json_response(StatusCode::OK, &shown))
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn hosts_of_this_machine() {
        for (host, expected) in [
            ("localhost:8080", true),
            ("LOCALHOST", true),
            ("a.localhost:1", true),
            ("127.0.0.1:8080", true),
            ("127.9.9.9", true),
            ("[::1]:80", true),
            ("evil.example:8080", false),
            ("localhost.evil.example", false),
            ("192.168.0.1", false),
            ("", false),
        ] {
            assert_eq!(is_local(host), expected, "{host}");
        }
    }
}
