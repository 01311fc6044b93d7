//! `/v1/search`: pictures of an index that fit a text, or are like a picture.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use ocelli_engine::image::DecodeOptions;
use ocelli_engine::{EmbeddingPipeline, VectorKind};
use ocelli_search::{Live, shown};
use serde_json::{Value as Json, json};

use crate::app::App;
use crate::error::{ApiError, json_response};
use crate::fields::{Fields, unlike};
use crate::pictures;
use crate::vectors::{Client, Input};

/// Pictures that are found unless a request says otherwise, and most of them.
const FOUND: (u64, u64) = (10, 1000);
/// Most pixels of a thumbnail's longest side.
const THUMBNAIL: u64 = 512;

/// An index, and what makes vectors of queries for it.
pub struct Search {
    live: Live,
    pipeline: Arc<EmbeddingPipeline>,
    client: Client,
}

impl Search {
    /// One whose vectors are those of `pipeline`, which `client` computes.
    #[must_use]
    pub fn new(live: Live, pipeline: Arc<EmbeddingPipeline>, client: Client) -> Self {
        Self { live, pipeline, client }
    }
}

impl std::fmt::Debug for Search {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Search").field("about", self.live.about()).finish_non_exhaustive()
    }
}

/// A whole number of a field between two others.
fn between(fields: &mut Fields, name: &str, range: (u64, u64), default: u64) -> Result<usize, ApiError> {
    let value = fields.whole(name)?.unwrap_or(default);
    if value < range.0 || value > range.1 {
        let (least, most) = range;
        return Err(ApiError::field(name, format!("expected {least} to {most}, found {value}")));
    }
    Ok(value as usize)
}

/// The address of a picture, as a text or as an object with `url`.
fn address(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let Some(value) = fields.any("image_url") else { return Ok(None) };
    match value.as_str().or_else(|| value.get("url").and_then(Json::as_str)) {
        Some(address) => Ok(Some(address.to_owned())),
        None => Err(unlike("image_url", "a text, or an object with `url`", &value)),
    }
}

/// `/v1/search`.
pub(crate) async fn search(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let Some(search) = app.config.search.clone() else {
        return Err(ApiError::not_found("there is no index here; `ocelli serve --index IDX` has one"));
    };
    let mut fields = Fields::read(&app.body(request).await?)?;
    app.is_model(fields.text("model")?.as_deref())?;
    let k = between(&mut fields, "k", (1, FOUND.1), FOUND.0)?;
    let side = between(&mut fields, "thumbnails", (0, THUMBNAIL), 0)?;
    let (text, address) = (fields.text("query")?, address(&mut fields)?);
    fields.end()?;
    let about = search.live.about().clone();
    let field = match (&text, &address) {
        (Some(_), Some(_)) => {
            return Err(ApiError::field("query", "expected a text, or `image_url` in its place, found both"));
        }
        (None, None) => {
            return Err(ApiError::field(
                "query",
                "expected a text, or `image_url` in its place, found nothing",
            ));
        }
        (Some(_), None) if about.kind == VectorKind::PooledTower => {
            let why = format!(
                "the index has {} of a {} model, which texts have none of; expected `image_url`",
                about.kind, about.family
            );
            return Err(ApiError::field("query", why).code("no_text_vectors"));
        }
        (Some(text), None) if text.trim().is_empty() => {
            return Err(ApiError::field("query", "expected a text, found an empty one"));
        }
        (Some(_), None) => "query",
        (None, Some(_)) => "image_url",
    };
    let _place = app.places(1)?;
    let deadline = tokio::time::Instant::now() + app.config.timeout;
    let addresses: Vec<String> = address.into_iter().collect();
    let places = addresses.iter().map(|_| "image_url".to_owned()).collect();
    let found = pictures::find(&app, addresses, places).await?;
    let (shared, theirs) = (app.clone(), search.pipeline.clone());
    let prepared = app.work(move || {
        let failed = |error| ApiError::engine(&error, field);
        match (text, pictures::decode(&found, &shared.config)?.pop()) {
            (_, Some(image)) => Ok(Input::Picture(theirs.prepare(&image).map_err(failed)?)),
            (text, None) => Ok(Input::Text(theirs.tokens(&text.unwrap_or_default()).map_err(failed)?)),
        }
    });
    let vectors = search.client.ask(&app, vec![prepared.await?], deadline, field).await?;
    let max_pixels = app.config.max_pixels;
    let looked = app.work(move || {
        let matrix = search.live.matrix().map_err(|error| {
            tracing::error!(%error, "the index");
            ApiError::internal("the index cannot be read")
        })?;
        let threads = search.pipeline.threads;
        let hits = matrix.nearest(vectors.first().map_or(&[], Vec::as_slice), k, threads);
        let decode = DecodeOptions { max_pixels, ..DecodeOptions::default() };
        Ok((matrix.len(), shown(&about, &matrix, &hits, side, &decode, threads), about.kind))
    });
    let (pictures, found, kind) = looked.await?;
    let value = json!({
        "object": "list", "model": app.config.name, "kind": kind, "pictures": pictures, "data": found,
    });
    Ok(json_response(StatusCode::OK, &value))
}
