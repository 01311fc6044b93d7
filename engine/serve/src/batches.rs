//! `/v1/batches`: files of requests that are answered beside those of clients, as far as these leave room.
//!
//! A batch is a file `ID.json`, which is replaced whole at each step, and while it runs `ID.out` and `ID.err` with a line for each row
//! that is done. A server that was ended goes on where it was: rows whose lines are there are not asked again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path as Place, Query, State};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde_json::{Value as Json, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::app::{App, Engine};
use crate::chat::{self, now};
use crate::error::{ApiError, json_response};
use crate::fields::{Fields, unlike};
use crate::files::{Store, failed, newest_first, page, write_whole};
use crate::vectors;

/// Most rows of a batch.
const ROWS: usize = 50_000;
/// Most rows that are answered at once.
const TOGETHER: usize = 64;
/// How often it is looked whether a batch may go on, or has to end.
const LOOK: Duration = Duration::from_millis(50);

/// Batches and their files.
pub(crate) struct Batches {
    pub files: Store,
    folder: PathBuf,
    /// Held while a batch's file is read and replaced.
    changing: Mutex<()>,
    /// Rows that are done and that failed, of batches that run.
    counts: Mutex<HashMap<String, (usize, usize)>>,
    more: Notify,
}

/// A row of a batch.
struct Row {
    id: String,
    body: Vec<u8>,
}

/// How a batch stopped.
#[derive(Clone, Copy, PartialEq)]
enum Stop {
    /// All rows are done.
    Done,
    Cancelled,
    Expired,
    /// The server ends: the next one goes on.
    Later,
}

impl Batches {
    /// Those in a folder, which is made if it is not there.
    pub fn open(folder: &Path) -> std::io::Result<Self> {
        let files = Store::open(folder)?;
        let folder = folder.join("batches");
        std::fs::create_dir_all(&folder)?;
        let (changing, counts, more) = Default::default();
        Ok(Self { files, folder, changing, counts, more })
    }

    fn path(&self, id: &str, end: &str) -> PathBuf {
        self.folder.join(format!("{id}.{end}"))
    }

    fn get(&self, id: &str) -> Result<Json, ApiError> {
        let known =
            id.starts_with("batch-") && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let text = known.then(|| std::fs::read(self.path(id, "json")).ok()).flatten();
        let shown: String = id.chars().take(80).collect();
        let batch = text.and_then(|text| serde_json::from_slice::<Json>(&text).ok());
        let mut batch = batch.ok_or_else(|| ApiError::not_found(format!("there is no batch `{shown}`")))?;
        if let Some((done, failed)) = self.counts.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            batch["request_counts"]["completed"] = json!(done);
            batch["request_counts"]["failed"] = json!(failed);
        }
        Ok(batch)
    }

    fn put(&self, batch: &Json) -> Result<(), ApiError> {
        let path = self.path(batch["id"].as_str().unwrap_or_default(), "json");
        write_whole(&path, batch.to_string().as_bytes()).map_err(|error| failed(&path, &error))
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Json)) -> Result<Json, ApiError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = self.get(id)?;
        change(&mut batch);
        self.put(&batch)?;
        Ok(batch)
    }

    /// All batches, the newest first.
    fn list(&self) -> Vec<Json> {
        let names = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let ids = names.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned()));
        let mut all: Vec<Json> = ids.filter_map(|id| self.get(&id).ok()).collect();
        newest_first(&mut all);
        all
    }

    /// Whether a batch that has not ended reads a file.
    pub fn needs(&self, file: &str) -> bool {
        self.list().iter().any(|batch| batch["input_file_id"] == file && !ended(batch))
    }

    fn next(&self) -> Option<String> {
        let oldest = self.list().into_iter().rfind(|batch| !ended(batch))?;
        oldest["id"].as_str().map(str::to_owned)
    }
}

fn ended(batch: &Json) -> bool {
    matches!(batch["status"].as_str(), Some("completed" | "failed" | "expired" | "cancelled"))
}

/// Answers batches, one after the other, until the server ends.
pub(crate) async fn run(app: Arc<App>) {
    let Ok(batches) = app.batches() else { return };
    while !app.draining.load(Ordering::Relaxed) {
        let Some(id) = batches.next() else {
            let _ = tokio::time::timeout(Duration::from_secs(1), batches.more.notified()).await;
            continue;
        };
        if let Err(error) = answer(&app, batches, &id).await {
            tracing::warn!(batch = id, error = %error.json(), "a batch failed");
            let errors = json!({"object": "list", "data": [{
                "code": "server_error", "message": error.json()["error"]["message"], "param": null, "line": null,
            }]});
            let failed = batches.change(&id, |batch| {
                batch["status"] = json!("failed");
                batch["failed_at"] = json!(now());
                batch["errors"] = errors;
            });
            if failed.is_err() {
                // Nothing can be written: not again and again at once.
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        }
    }
}

async fn answer(app: &Arc<App>, batches: &Batches, id: &str) -> Result<(), ApiError> {
    let batch = batches.get(id)?;
    let input = batch["input_file_id"].as_str().unwrap_or_default();
    let endpoint = batch["endpoint"].as_str().unwrap_or_default().to_owned();
    let data = batches.files.data(input);
    let text = tokio::fs::read(&data).await.map_err(|error| failed(&data, &error))?;
    let rows = match rows(&text, &endpoint) {
        Ok(rows) => rows,
        Err(errors) => {
            batches.change(id, |batch| {
                batch["status"] = json!("failed");
                batch["failed_at"] = json!(now());
                batch["errors"] = json!({"object": "list", "data": errors});
            })?;
            return Ok(());
        }
    };
    let total = rows.len();
    let batch = batches.change(id, |batch| {
        batch["request_counts"]["total"] = json!(total);
        if batch["status"] == "validating" {
            batch["status"] = json!("in_progress");
            batch["in_progress_at"] = json!(now());
        }
    })?;
    let stop = match batch["status"].as_str() {
        // The next one finds its files where this one left them.
        Some("finalizing") => Stop::Done,
        _ => rows_of(app, batches, &batch, rows, &endpoint).await?,
    };
    if stop == Stop::Later {
        batches.counts.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        return Ok(());
    }
    finish(batches, id, stop)
}

/// Puts the files of a batch where they can be had, and notes how it ended.
fn finish(batches: &Batches, id: &str, stop: Stop) -> Result<(), ApiError> {
    batches.change(id, |batch| {
        if batch["finalizing_at"].is_null() {
            batch["finalizing_at"] = json!(now());
        }
        if stop == Stop::Done {
            batch["status"] = json!("finalizing");
        }
    })?;
    let mut moved = [Json::Null, Json::Null];
    for (kind, slot) in ["out", "err"].into_iter().zip(&mut moved) {
        let (from, file) =
            (batches.path(id, kind), format!("file-{}-{kind}", id.trim_start_matches("batch-")));
        let size = std::fs::metadata(&from).map(|known| known.len());
        if size.as_ref().is_ok_and(|&size| size > 0) {
            let synced = std::fs::File::open(&from).and_then(|file| file.sync_all());
            synced.map_err(|error| failed(&from, &error))?;
            let (name, purpose) = (format!("{id}.{kind}.jsonl"), "batch_output");
            batches.files.add(&file, &from, &name, purpose)?;
        } else if size.is_ok() {
            let _ = std::fs::remove_file(&from);
        }
        if batches.files.get(&file).is_ok() {
            *slot = json!(file);
        }
    }
    batches.change(id, |batch| {
        let (status, time) = match stop {
            Stop::Cancelled => ("cancelled", "cancelled_at"),
            Stop::Expired => ("expired", "expired_at"),
            Stop::Done | Stop::Later => ("completed", "completed_at"),
        };
        batch["status"] = json!(status);
        batch[time] = json!(now());
        let [out, err] = moved;
        (batch["output_file_id"], batch["error_file_id"]) = (out, err);
    })?;
    batches.counts.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    Ok(())
}

/// Reads the rows of a file, or says what is wrong in it.
fn rows(text: &[u8], endpoint: &str) -> Result<Vec<Row>, Vec<Json>> {
    let (mut rows, mut seen, mut errors) = (Vec::new(), HashSet::new(), Vec::new());
    let lines = text.split(|&byte| byte == b'\n').enumerate();
    for (number, line) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let mut wrong = |code: &str, param: Option<&str>, message: String| {
            errors.push(json!({"code": code, "line": number + 1, "param": param, "message": message}));
        };
        let mut row = match serde_json::from_slice::<Json>(line) {
            Ok(row @ Json::Object(_)) => row,
            Ok(_) => {
                wrong("invalid_json_line", None, "expected a JSON object".into());
                continue;
            }
            Err(error) => {
                wrong("invalid_json_line", None, format!("not JSON: {error}"));
                continue;
            }
        };
        let id = row["custom_id"].as_str().unwrap_or_default().to_owned();
        let body = row["body"].take();
        if id.is_empty() {
            wrong("missing_required_parameter", Some("custom_id"), "custom_id: expected a text".into());
        } else if !seen.insert(id.clone()) {
            wrong("duplicate_custom_id", Some("custom_id"), "custom_id: another line has the same".into());
        } else if row["method"].as_str().is_some_and(|method| method != "POST") {
            wrong("invalid_method", Some("method"), "method: expected `POST`".into());
        } else if row["url"].as_str() != Some(endpoint) {
            wrong("invalid_url", Some("url"), format!("url: expected `{endpoint}`, the batch's endpoint"));
        } else if !body.is_object() {
            wrong("invalid_request", Some("body"), "body: expected an object".into());
        } else if body["stream"].as_bool() == Some(true) {
            wrong("invalid_request", Some("body.stream"), "body.stream: expected false".into());
        } else {
            rows.push(Row { id, body: body.to_string().into_bytes() });
        }
        if errors.len() >= 100 {
            break;
        }
    }
    if errors.is_empty() && rows.is_empty() {
        errors.push(
            json!({"code": "empty_file", "line": null, "param": null, "message": "the file has no rows"}),
        );
    }
    if rows.len() > ROWS {
        let message = format!("expected at most {ROWS} rows, found {}", rows.len());
        errors.push(json!({"code": "too_many_rows", "line": null, "param": null, "message": message}));
    }
    if errors.is_empty() { Ok(rows) } else { Err(errors) }
}

/// A file of lines that is added to; those that are there are whole.
struct Lines(std::fs::File);

impl Lines {
    /// Opens a file, with what is in it.
    fn open(path: &Path) -> std::io::Result<(Self, Vec<Json>)> {
        let mut file =
            std::fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        let text = std::fs::read(path)?;
        // The last line may have been cut.
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64)?;
        file.seek(std::io::SeekFrom::End(0))?;
        let lines = text[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let known = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        Ok((Self(file), known))
    }

    fn add(&mut self, line: &Json) -> std::io::Result<()> {
        self.0.write_all(format!("{line}\n").as_bytes())
    }
}

/// Answers the rows of a batch that are not done yet.
async fn rows_of(
    app: &Arc<App>,
    batches: &Batches,
    batch: &Json,
    rows: Vec<Row>,
    endpoint: &str,
) -> Result<Stop, ApiError> {
    let id = batch["id"].as_str().unwrap_or_default();
    let open = |kind: &str| {
        let path = batches.path(id, kind);
        Lines::open(&path).map_err(|error| failed(&path, &error))
    };
    let ((mut out, done), (mut err, lost)) = (open("out")?, open("err")?);
    let mut counts = (done.len(), lost.len());
    let known: HashSet<String> =
        done.iter().chain(&lost).filter_map(|line| Some(line["custom_id"].as_str()?.to_owned())).collect();
    let mut left: VecDeque<Row> = rows.into_iter().filter(|row| !known.contains(&row.id)).collect();
    let told = |counts: (usize, usize)| {
        batches.counts.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), counts);
    };
    told(counts);
    let expires = batch["expires_at"].as_u64().unwrap_or(u64::MAX);
    let cannot = |error: std::io::Error| failed(&batches.path(id, "out"), &error);
    let mut running: JoinSet<(Row, Option<(StatusCode, Json)>)> = JoinSet::new();
    let stop = loop {
        if app.draining.load(Ordering::Relaxed) {
            break Stop::Later;
        }
        if batches.get(id)?["status"] == "cancelling" {
            break Stop::Cancelled;
        }
        if now() >= expires {
            break Stop::Expired;
        }
        while running.len() < TOGETHER && app.has_spare_places() {
            let Some(row) = left.pop_front() else { break };
            let (app, endpoint) = (app.clone(), endpoint.to_owned());
            running.spawn(async move {
                let reply = ask(&app, &endpoint, &row.body).await;
                (row, reply)
            });
            // It takes its place before the next one looks for one.
            tokio::task::yield_now().await;
        }
        if running.is_empty() && left.is_empty() {
            break Stop::Done;
        }
        let Ok(joined) = tokio::time::timeout(LOOK, running.join_next()).await else { continue };
        let Some(Ok((row, reply))) = joined else {
            tokio::time::sleep(LOOK).await;
            continue;
        };
        let Some((status, body)) = reply else {
            // No room, or the server ends: later.
            left.push_front(row);
            tokio::time::sleep(LOOK).await;
            continue;
        };
        let name = app.id("batch_req");
        let line = json!({
            "id": name, "custom_id": row.id, "error": null,
            "response": {"status_code": status.as_u16(), "request_id": name, "body": body},
        });
        let (lines, count) =
            if status == StatusCode::OK { (&mut out, &mut counts.0) } else { (&mut err, &mut counts.1) };
        lines.add(&line).map_err(cannot)?;
        *count += 1;
        told(counts);
    };
    // What runs is cancelled.
    let mut asked = Vec::new();
    running.abort_all();
    while running.join_next().await.is_some() {}
    if stop == Stop::Expired {
        let done: HashSet<String> =
            read_ids(&batches.path(id, "out")).chain(read_ids(&batches.path(id, "err"))).collect();
        let input = batches.files.data(batch["input_file_id"].as_str().unwrap_or_default());
        let text = std::fs::read(&input).map_err(|error| failed(&input, &error))?;
        asked.extend(
            self::rows(&text, endpoint).unwrap_or_default().into_iter().filter(|row| !done.contains(&row.id)),
        );
    }
    for row in asked {
        let error =
            json!({"code": "batch_expired", "message": "the row was not answered within the batch's window"});
        let line = json!({"id": app.id("batch_req"), "custom_id": row.id, "response": null, "error": error});
        err.add(&line).map_err(cannot)?;
        counts.1 += 1;
    }
    told(counts);
    Ok(stop)
}

/// The rows that lines are about.
fn read_ids(path: &Path) -> impl Iterator<Item = String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines
        .into_iter()
        .filter_map(|line| serde_json::from_str::<Json>(&line).ok()?["custom_id"].as_str().map(str::to_owned))
}

/// Answers a row; `None` where it has to be asked again.
async fn ask(app: &Arc<App>, endpoint: &str, body: &[u8]) -> Option<(StatusCode, Json)> {
    let response = match endpoint {
        "/v1/chat/completions" => chat::chat_of(app, body).await,
        "/v1/completions" => chat::completions_of(app, body).await,
        _ => vectors::embeddings_of(app, body).await,
    };
    let response = response.unwrap_or_else(IntoResponse::into_response);
    let status = response.status();
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    let bytes = response.into_body().collect().await.ok()?.to_bytes();
    Some((status, serde_json::from_slice(&bytes).unwrap_or_default()))
}

/// Seconds of a window such as `24h`, `30m` or `90s`.
fn window(text: &str) -> Option<u64> {
    let (count, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "h" => 3600,
        "m" => 60,
        "s" => 1,
        _ => return None,
    };
    let count: u64 = count.parse().ok()?;
    Some(count.checked_mul(seconds)?).filter(|seconds| (1..=31 * 24 * 3600).contains(seconds))
}

/// Makes a batch of a file.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let mut fields = Fields::read(&app.body(request).await?)?;
    let batches = app.batches()?;
    let input = fields.text("input_file_id")?;
    let input =
        input.ok_or_else(|| ApiError::field("input_file_id", "expected a file's id, found nothing"))?;
    let file = batches.files.get(&input).map_err(|error| error.at("input_file_id"))?;
    if file["purpose"] != "batch" {
        return Err(ApiError::field("input_file_id", "expected a file of purpose `batch`"));
    }
    let endpoint = fields.text("endpoint")?.unwrap_or_default();
    let known: &[&str] = match &app.engine {
        Engine::Answers { .. } => &["/v1/chat/completions", "/v1/completions"],
        Engine::Vectors { .. } => &["/v1/embeddings"],
    };
    if !known.contains(&endpoint.as_str()) {
        return Err(unlike("endpoint", &format!("`{}`", known.join("` or `")), &json!(endpoint)));
    }
    let text = fields.text("completion_window")?.unwrap_or_else(|| "24h".into());
    let window = window(&text);
    let window =
        window.ok_or_else(|| unlike("completion_window", "a time such as 24h, 30m or 90s", &json!(text)))?;
    let metadata = fields.object("metadata")?.map_or(Json::Null, Json::Object);
    fields.end()?;
    let (id, created) = (app.id("batch"), now());
    let batch = json!({
        "id": id, "object": "batch", "endpoint": endpoint, "errors": null, "input_file_id": input,
        "completion_window": text, "status": "validating", "output_file_id": null, "error_file_id": null,
        "created_at": created, "in_progress_at": null, "expires_at": created + window, "finalizing_at": null,
        "completed_at": null, "failed_at": null, "expired_at": null, "cancelling_at": null, "cancelled_at": null,
        "request_counts": {"total": 0, "completed": 0, "failed": 0}, "metadata": metadata,
    });
    batches.put(&batch)?;
    batches.more.notify_one();
    Ok(json_response(StatusCode::OK, &batch))
}

/// All batches.
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Response, ApiError> {
    Ok(json_response(StatusCode::OK, &page(app.batches()?.list(), &query)?))
}

/// How a batch does.
pub(crate) async fn get(State(app): State<Arc<App>>, Place(id): Place<String>) -> Result<Response, ApiError> {
    Ok(json_response(StatusCode::OK, &app.batches()?.get(&id)?))
}

/// Ends a batch before its time; what is done of it can be had.
pub(crate) async fn cancel(
    State(app): State<Arc<App>>,
    Place(id): Place<String>,
) -> Result<Response, ApiError> {
    let batch = app.batches()?.change(&id, |batch| {
        if matches!(batch["status"].as_str(), Some("validating" | "in_progress")) {
            batch["status"] = json!("cancelling");
            batch["cancelling_at"] = json!(now());
        }
    })?;
    match batch["status"].as_str() {
        Some("cancelling" | "cancelled") => Ok(json_response(StatusCode::OK, &batch)),
        other => {
            let status = other.unwrap_or_default();
            Err(ApiError::bad(format!("the batch is {status} already")).at("batch_id"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_checked_before_any_is_answered() {
        let row = |id: &str| json!({"custom_id": id, "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}});
        let text = |rows: &[Json]| rows.iter().map(|row| format!("{row}\n")).collect::<String>().into_bytes();
        let good = rows(&text(&[row("a"), row("b")]), "/v1/completions");
        assert_eq!(good.map(|rows| rows.len()).map_err(|errors| errors.len()), Ok(2));
        let change = |name: &str, value: Json| {
            let mut row = row("a");
            row[name] = value;
            row
        };
        for (bad, code) in [
            (change("custom_id", Json::Null), "missing_required_parameter"),
            (change("method", json!("GET")), "invalid_method"),
            (change("url", json!("/v1/embeddings")), "invalid_url"),
            (change("body", json!("x")), "invalid_request"),
            (change("body", json!({"stream": true})), "invalid_request"),
            (json!(3), "invalid_json_line"),
        ] {
            let errors = rows(&text(&[row("b"), bad]), "/v1/completions").err().unwrap();
            assert_eq!((&errors[0]["code"], &errors[0]["line"]), (&json!(code), &json!(2)));
        }
        assert_eq!(
            rows(&text(&[row("a"), row("a")]), "/v1/completions").err().unwrap()[0]["code"],
            "duplicate_custom_id"
        );
        assert_eq!(rows(b"\n", "/v1/completions").err().unwrap()[0]["code"], "empty_file");
        assert_eq!(rows(b"{", "/v1/completions").err().unwrap()[0]["code"], "invalid_json_line");
    }

    #[test]
    fn windows() {
        let all = ["24h", "30m", "90s", "0s", "1d", "h", "", "9999999h", "ä"].map(window);
        assert_eq!(all, [Some(86_400), Some(1800), Some(90), None, None, None, None, None, None]);
    }
}
