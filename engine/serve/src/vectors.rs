//! `/v1/embeddings`: vectors of texts and pictures, computed on a thread of their own.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ocelli_engine::image::PreparedImage;
use ocelli_engine::{Ctx, EmbeddingPipeline, Error};
use serde_json::{Value as Json, json};
use tokio::sync::oneshot;

use crate::app::{App, Engine};
use crate::error::{ApiError, json_response};
use crate::fields::{Fields, unlike};
use crate::pictures;

/// Pictures, or texts, that are computed together.
pub(crate) const BATCH: usize = 16;
/// Most texts and pictures of a request.
const MOST: usize = 2048;

/// What a vector is made of.
pub(crate) enum Input {
    Text(Vec<u32>),
    Picture(PreparedImage),
}

type Vectors = Result<Vec<Vec<f32>>, Error>;

struct Job {
    inputs: Vec<Input>,
    reply: oneshot::Sender<Vectors>,
}

/// The thread that computes vectors. It ends once all its clients are gone.
pub struct Worker(JoinHandle<()>);

/// Hands work to the thread.
#[derive(Clone)]
pub struct Client {
    jobs: Sender<Job>,
    /// Of what the thread holds as long as it lives.
    alive: Weak<()>,
    /// Why the device cannot be used any more.
    gone: Arc<OnceLock<String>>,
}

impl Client {
    /// The vectors of `inputs`, which come from the field `field`.
    pub(crate) async fn ask(
        &self,
        app: &App,
        inputs: Vec<Input>,
        deadline: tokio::time::Instant,
        field: &'static str,
    ) -> Result<Vec<Vec<f32>>, ApiError> {
        self.usable().map_err(|error| ApiError::engine(&error, field))?;
        let (reply, vectors) = oneshot::channel();
        let gone = || ApiError::internal("the thread that computes vectors has ended");
        self.jobs.send(Job { inputs, reply }).map_err(|_| gone())?;
        tokio::time::timeout_at(deadline, vectors)
            .await
            .map_err(|_| ApiError::timeout(app.config.timeout.as_secs()))?
            .map_err(|_| gone())?
            .map_err(|error| ApiError::engine(&error, field))
    }

    /// Errors once the device cannot be used any more.
    pub(crate) fn usable(&self) -> Result<(), Error> {
        self.gone.get().map_or(Ok(()), |what| Err(Error::DeviceGone(what.clone())))
    }

    /// Whether the thread has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.alive.strong_count() == 0
    }
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn spawn(pipeline: Arc<EmbeddingPipeline>, cx: Ctx) -> std::io::Result<(Self, Client)> {
        let (jobs, received) = channel();
        let thread = std::thread::Builder::new().name("ocelli-vectors".into());
        let lives = Arc::new(());
        let alive = Arc::downgrade(&lives);
        let gone = Arc::new(OnceLock::new());
        let told = gone.clone();
        let thread = thread.spawn(move || {
            let _lives = lives;
            run(&pipeline, cx, &received, &told);
        })?;
        Ok((Self(thread), Client { jobs, alive, gone }))
    }

    /// Waits for the thread's end.
    pub fn join(self) {
        let _ = self.0.join();
    }
}

fn run(pipeline: &EmbeddingPipeline, mut cx: Ctx, jobs: &Receiver<Job>, gone: &OnceLock<String>) {
    for job in jobs {
        // Whoever asked may have gone.
        if !job.reply.is_closed() {
            let vectors = vectors(pipeline, &mut cx, job.inputs, &job.reply);
            if let Err(error) = &vectors
                && error.ends_device()
            {
                let _ = gone.set(error.to_string());
            }
            let _ = job.reply.send(vectors);
        }
    }
}

fn vectors(
    pipeline: &EmbeddingPipeline,
    cx: &mut Ctx,
    inputs: Vec<Input>,
    reply: &oneshot::Sender<Vectors>,
) -> Vectors {
    let mut all = vec![Vec::new(); inputs.len()];
    let (mut pictures, mut texts) = (Vec::new(), Vec::new());
    for (number, input) in inputs.into_iter().enumerate() {
        match input {
            Input::Text(tokens) => texts.push((number, tokens)),
            Input::Picture(picture) => pictures.push((number, picture)),
        }
    }
    for pictures in pictures.chunks(BATCH) {
        if reply.is_closed() {
            return Err(Error::Cancelled);
        }
        let batch: Vec<_> = pictures.iter().map(|(_, picture)| picture).collect();
        for ((number, _), vector) in pictures.iter().zip(pipeline.images(cx, &batch)?) {
            all[*number] = vector;
        }
    }
    for texts in texts.chunks(BATCH) {
        if reply.is_closed() {
            return Err(Error::Cancelled);
        }
        let batch: Vec<_> = texts.iter().map(|(_, tokens)| tokens.clone()).collect();
        for ((number, _), vector) in texts.iter().zip(pipeline.texts(cx, &batch)?) {
            all[*number] = vector;
        }
    }
    Ok(all)
}

/// What is to become a vector, as the request has it.
enum Asked {
    Text(String),
    Picture,
}

/// The entries of `input`, with the addresses of pictures and the places of these.
type Read = (Vec<Asked>, Vec<String>, Vec<String>);

fn read(input: Json) -> Result<Read, ApiError> {
    let entries = match input {
        Json::Array(entries) => entries,
        one => vec![one],
    };
    let (mut asked, mut addresses, mut places) = (Vec::new(), Vec::new(), Vec::new());
    if entries.is_empty() || entries.len() > MOST {
        let found = entries.len();
        return Err(ApiError::field("input", format!("expected 1 to {MOST} entries, found {found}")));
    }
    for (number, entry) in entries.iter().enumerate() {
        let place = format!("input[{number}]");
        let text = |name: &str| entry.get(name).and_then(Json::as_str);
        let address = || {
            let value = entry.get("image_url").or_else(|| entry.get("image"))?;
            value.as_str().or_else(|| value.get("url")?.as_str())
        };
        match (entry, text("text"), address()) {
            (Json::String(text), ..) => asked.push(Asked::Text(text.clone())),
            (Json::Object(_), Some(text), None) => asked.push(Asked::Text(text.to_owned())),
            (Json::Object(_), None, Some(address)) => {
                asked.push(Asked::Picture);
                addresses.push(address.to_owned());
                places.push(place);
            }
            _ => {
                let expected = "a text, or an object with `text` or with `image_url`";
                return Err(unlike(&place, expected, entry));
            }
        }
    }
    Ok((asked, addresses, places))
}

/// `/v1/embeddings`.
pub(crate) async fn embeddings(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let body = app.body(request).await?;
    embeddings_of(&app, &body).await
}

/// The same of a body.
pub(crate) async fn embeddings_of(app: &Arc<App>, body: &[u8]) -> Result<Response, ApiError> {
    let mut fields = Fields::read(body)?;
    let Engine::Vectors { pipeline, client } = &app.engine else {
        let why = "this one gives answers; models such as CLIP and SigLIP give vectors";
        return Err(ApiError::field("model", why));
    };
    app.is_model(fields.text("model")?.as_deref())?;
    let base64 = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::field("encoding_format", "expected `float` or `base64`")),
    };
    let d = pipeline.model.info().d_model;
    let input =
        fields.any("input").ok_or_else(|| ApiError::field("input", "expected a text, found nothing"))?;
    if let Some(dimensions) = fields.whole("dimensions")?.filter(|&dimensions| dimensions != d as u64) {
        let why = format!("the model's vectors have {d} numbers, not {dimensions}");
        return Err(ApiError::unsupported("dimensions", why));
    }
    fields.end()?;
    let (asked, addresses, places) = read(input)?;
    let _place = app.places(1)?;
    let deadline = tokio::time::Instant::now() + app.config.timeout;
    let found = pictures::find(app, addresses, places).await?;
    let (theirs, shared) = (pipeline.clone(), app.clone());
    let prepared = app.work(move || prepare(&theirs, &asked, &found, &shared));
    let (inputs, tokens) = prepared.await?;
    let vectors = client.ask(app, inputs, deadline, "input").await?;
    let data: Vec<Json> = vectors
        .iter()
        .enumerate()
        .map(|(index, vector)| {
            let embedding = if base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                json!(BASE64_STANDARD.encode(bytes))
            } else {
                json!(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    let value = json!({"object": "list", "data": data, "model": app.config.name, "usage": usage});
    Ok(json_response(StatusCode::OK, &value))
}

/// Tokens of texts and pixels of pictures, and the number of tokens.
fn prepare(
    pipeline: &EmbeddingPipeline,
    asked: &[Asked],
    found: &[pictures::Found],
    app: &App,
) -> Result<(Vec<Input>, usize), ApiError> {
    let mut images = pictures::decode(found, &app.config)?.into_iter();
    let (mut inputs, mut count) = (Vec::with_capacity(asked.len()), 0);
    for asked in asked {
        inputs.push(match asked {
            Asked::Text(text) => {
                let tokens = pipeline.tokens(text).map_err(|error| ApiError::engine(&error, "input"))?;
                count += tokens.len();
                Input::Text(tokens)
            }
            Asked::Picture => {
                let image = images.next().ok_or_else(|| ApiError::internal("a picture is missing"))?;
                Input::Picture(pipeline.prepare(&image).map_err(|error| ApiError::engine(&error, "input"))?)
            }
        });
    }
    Ok((inputs, count))
}
