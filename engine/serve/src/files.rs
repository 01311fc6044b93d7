//! `/v1/files`: files of requests and of what came of them, in a folder.
//!
//! A file is two: `ID.data`, and `ID.json` with what is known of it, which appears last. Each is written under another name first, so
//! that what is there is whole.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path as Place, Query, State};
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::Response;
use multer::{Constraints, Multipart, SizeLimit};
use serde_json::{Value as Json, json};
use tokio::io::AsyncWriteExt;

use crate::app::App;
use crate::chat::now;
use crate::error::{ApiError, json_response};

/// Most bytes of a file.
const MOST: u64 = 512 << 20;

/// Where files are.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    folder: PathBuf,
}

/// Writes a file: whoever reads sees none or the whole.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension("part");
    let mut file = std::fs::File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&part, path)
}

/// What cannot be read or written on this side.
pub(crate) fn failed(what: &Path, error: &std::io::Error) -> ApiError {
    tracing::error!(path = %what.display(), %error, "the folder of files");
    ApiError::internal(format!("the server's folder of files: {error}"))
}

impl Store {
    /// The store in a folder, which is made if it is not there.
    pub fn open(folder: &Path) -> std::io::Result<Self> {
        let folder = folder.join("files");
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    fn path(&self, id: &str, end: &str) -> PathBuf {
        self.folder.join(format!("{id}.{end}"))
    }

    /// Where the content of a file is.
    pub fn data(&self, id: &str) -> PathBuf {
        self.path(id, "data")
    }

    /// What is known of a file.
    pub fn get(&self, id: &str) -> Result<Json, ApiError> {
        // An id is a name, never a path.
        let known =
            id.starts_with("file-") && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let text = known.then(|| std::fs::read(self.path(id, "json")).ok()).flatten();
        let shown: String = id.chars().take(80).collect();
        text.and_then(|text| serde_json::from_slice(&text).ok())
            .ok_or_else(|| ApiError::not_found(format!("there is no file `{shown}`")))
    }

    /// Adds a file whose content is at `from`, which is moved.
    pub fn add(&self, id: &str, from: &Path, name: &str, purpose: &str) -> Result<Json, ApiError> {
        let to = self.data(id);
        let add = || {
            std::fs::rename(from, &to)?;
            let known = json!({
                "id": id, "object": "file", "bytes": std::fs::metadata(&to)?.len(), "created_at": now(),
                "filename": name, "purpose": purpose, "status": "processed",
            });
            write_whole(&self.path(id, "json"), known.to_string().as_bytes())?;
            Ok(known)
        };
        add().map_err(|error| failed(&to, &error))
    }

    /// All files, the newest first.
    pub fn list(&self) -> Vec<Json> {
        let names = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let ids = names.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned()));
        let mut all: Vec<Json> = ids.filter_map(|id| self.get(&id).ok()).collect();
        newest_first(&mut all);
        all
    }

    fn remove(&self, id: &str) -> Result<(), ApiError> {
        for end in ["json", "data"] {
            let path = self.path(id, end);
            std::fs::remove_file(&path).map_err(|error| failed(&path, &error))?;
        }
        Ok(())
    }
}

/// Sorts objects by their time, then by their id.
pub(crate) fn newest_first(all: &mut [Json]) {
    all.sort_by_key(|one| {
        let id = one["id"].as_str().unwrap_or_default().to_owned();
        std::cmp::Reverse((one["created_at"].as_u64().unwrap_or(0), id))
    });
}

/// A page of a list, as `after` and `limit` ask for it.
pub(crate) fn page(all: Vec<Json>, query: &[(String, String)]) -> Result<Json, ApiError> {
    let named = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let limit = match named("limit").map(str::parse::<usize>) {
        None => 100,
        Some(Ok(limit @ 1..=10_000)) => limit,
        Some(_) => return Err(ApiError::field("limit", "expected 1 to 10000")),
    };
    let start = match named("after") {
        None => 0,
        Some(after) => match all.iter().position(|one| one["id"] == after) {
            Some(place) => place + 1,
            None => return Err(ApiError::field("after", "expected the id of one of the list")),
        },
    };
    let more = all.len() > start + limit;
    let data: Vec<Json> = all.into_iter().skip(start).take(limit).collect();
    let id = |one: Option<&Json>| one.map_or(Json::Null, |one| one["id"].clone());
    let (first, last) = (id(data.first()), id(data.last()));
    Ok(json!({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}))
}

/// Takes a file in parts of a form: `file`, and `purpose`, which has to be `batch`.
pub(crate) async fn upload(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let store = &app.batches()?.files;
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let boundary = kind.and_then(|kind| multer::parse_boundary(kind).ok());
    let boundary =
        boundary.ok_or_else(|| ApiError::bad("the body: expected multipart/form-data with a boundary"))?;
    let limits = Constraints::new().size_limit(SizeLimit::new().whole_stream(MOST).for_field("purpose", 100));
    let mut form = Multipart::with_constraints(request.into_body().into_data_stream(), boundary, limits);
    let id = app.id("file");
    let part = Part(store.path(&id, "part"));
    let (mut name, mut purpose) = (None, None);
    let broken = |error: multer::Error| match error {
        multer::Error::StreamSizeExceeded { limit } | multer::Error::FieldSizeExceeded { limit, .. } => {
            ApiError::too_large(usize::try_from(limit).unwrap_or(usize::MAX))
        }
        error => ApiError::bad(format!("the body: {error}")),
    };
    while let Some(mut field) = form.next_field().await.map_err(broken)? {
        match field.name().unwrap_or_default() {
            "purpose" => purpose = Some(field.text().await.map_err(broken)?),
            "file" => {
                name = Some(field.file_name().unwrap_or("file").chars().take(200).collect::<String>());
                let lost = |error: std::io::Error| failed(&part.0, &error);
                let mut file = tokio::fs::File::create(&part.0).await.map_err(lost)?;
                while let Some(bytes) = field.chunk().await.map_err(broken)? {
                    file.write_all(&bytes).await.map_err(lost)?;
                }
                file.sync_all().await.map_err(lost)?;
            }
            other => {
                let other: String = other.chars().take(80).collect();
                return Err(ApiError::unsupported(other, "expected `file` and `purpose`"));
            }
        }
    }
    match purpose.as_deref() {
        Some("batch") => {}
        Some(other) => {
            let other: String = other.chars().take(80).collect();
            return Err(ApiError::field("purpose", format!("expected `batch`, found `{other}`")));
        }
        None => return Err(ApiError::field("purpose", "expected `batch`, found nothing")),
    }
    let name = name.ok_or_else(|| ApiError::field("file", "expected a file, found nothing"))?;
    let known = store.add(&id, &part.0, &name, "batch")?;
    Ok(json_response(StatusCode::OK, &known))
}

/// A file in the making, which goes where it is not finished.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// All files.
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Response, ApiError> {
    Ok(json_response(StatusCode::OK, &page(app.batches()?.files.list(), &query)?))
}

/// What is known of a file.
pub(crate) async fn get(State(app): State<Arc<App>>, Place(id): Place<String>) -> Result<Response, ApiError> {
    Ok(json_response(StatusCode::OK, &app.batches()?.files.get(&id)?))
}

/// The content of a file.
pub(crate) async fn content(
    State(app): State<Arc<App>>,
    Place(id): Place<String>,
) -> Result<Response, ApiError> {
    let store = &app.batches()?.files;
    store.get(&id)?;
    let path = store.data(&id);
    let bytes = tokio::fs::read(&path).await.map_err(|error| failed(&path, &error))?;
    let mut response = Response::new(Body::from(bytes));
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// Removes a file, if no batch needs it.
pub(crate) async fn remove(
    State(app): State<Arc<App>>,
    Place(id): Place<String>,
) -> Result<Response, ApiError> {
    let batches = app.batches()?;
    batches.files.get(&id)?;
    if batches.needs(&id) {
        return Err(ApiError::bad("a batch that has not ended reads this file").at("file_id"));
    }
    batches.files.remove(&id)?;
    Ok(json_response(StatusCode::OK, &json!({"id": id, "object": "file", "deleted": true})))
}
