use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;

use super::{DownloadProgress, HubConfig, HubError, HubId};
use crate::files::ModelFiles;

/// Small files that a model may have at its root; those that exist are fetched.
const SMALL_FILES: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// How long to wait for the hub's description of a model; the files themselves may take any time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The snapshot directory of a model, with the files that loading needs: configuration, tokenizer, processor, chat
/// template and safetensors weights. What is absent is downloaded; a download that was cut goes on where it stopped.
///
/// The hub is asked once for the commit that the revision names; if it cannot be reached, a complete cached copy is
/// used and a notice given.
///
/// # Errors
/// See [`HubError`]; offline, when the cache does not have the model.
pub fn fetch(
    id: &HubId,
    config: &HubConfig,
    progress: &mut dyn DownloadProgress,
) -> Result<PathBuf, HubError> {
    if config.offline {
        return cached(id, config);
    }
    let cache = Cache::new(config.cache.clone());
    let api = ApiBuilder::from_cache(cache.clone())
        .with_endpoint(config.endpoint.clone())
        .with_token(config.token.clone())
        .with_user_agent("ocelli", env!("CARGO_PKG_VERSION"))
        .with_progress(false)
        .build()
        .map_err(|e| network(id, "set up", &e))?;
    let named = |revision: &str| Repo::with_revision(id.repo(), RepoType::Model, revision.to_owned());

    let info = match describe(&api.repo(named(id.revision())), id, config) {
        Ok(info) => info,
        Err(e @ (HubError::Network { .. } | HubError::Status { .. })) => {
            let Ok(dir) = cached(id, config) else { return Err(e) };
            progress.notice(&format!("{e}; the cached copy is used"));
            return Ok(dir);
        }
        Err(e) => return Err(e),
    };
    let snapshot = cache.repo(named(&info.sha)).pointer_path(&info.sha);
    let mut download = Download {
        id,
        config,
        api: &api,
        // By commit and not by name, so that all files are of one commit even if the branch moves meanwhile.
        repo: api.repo(named(&info.sha)),
        blobs: cache.repo(named(&info.sha)).blob_path(""),
        snapshot: &snapshot,
        info: &info,
        progress,
    };
    download.run()?;
    let io = |source| HubError::Io { path: config.cache.clone(), source };
    cache.repo(named(id.revision())).create_ref(&info.sha).map_err(io)?;
    Ok(snapshot)
}

/// The snapshot directory of a model that the cache has in whole, without any network.
///
/// # Errors
/// [`HubError::NotCached`] or [`HubError::Incomplete`].
pub fn cached(id: &HubId, config: &HubConfig) -> Result<PathBuf, HubError> {
    let repo = Repo::with_revision(id.repo(), RepoType::Model, id.revision().to_owned());
    let root = config.cache.join(repo.folder_name());
    let by_name = std::fs::read_to_string(root.join("refs").join(id.revision()));
    // A commit may be cached without a reference of its own.
    let commit = by_name.map_or_else(|_| id.revision().to_owned(), |commit| commit.trim().to_owned());
    let snapshot = root.join("snapshots").join(&commit);
    if !is_commit(&commit) || !snapshot.is_dir() {
        return Err(HubError::NotCached { id: id.to_string(), cache: config.cache.clone() });
    }
    let mut needed = vec!["config.json".to_owned()];
    if !snapshot.join(WEIGHTS).is_file() {
        if snapshot.join(INDEX).is_file() {
            needed.extend(shards(id, &snapshot)?);
        } else {
            needed.push(WEIGHTS.into());
        }
    }
    match needed.into_iter().find(|file| !snapshot.join(file).is_file()) {
        Some(file) => Err(HubError::Incomplete { id: id.to_string(), file, snapshot }),
        None => Ok(snapshot),
    }
}

/// The hub's description of a model at a revision.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<File>,
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "rfilename")]
    name: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl File {
    fn size(&self) -> Option<u64> {
        self.lfs.as_ref().and_then(|lfs| lfs.size).or(self.size)
    }

    /// The name of the file in the cache's `blobs`, which is also its entity tag.
    fn blob(&self) -> Option<&str> {
        let name = self.lfs.as_ref().map_or(self.blob_id.as_deref(), |lfs| lfs.sha256.as_deref())?;
        is_commit(name).then_some(name)
    }
}

impl Info {
    fn file(&self, name: &str) -> Option<&File> {
        self.siblings.iter().find(|file| file.name == name)
    }
}

fn describe(repo: &ApiRepo, id: &HubId, config: &HubConfig) -> Result<Info, HubError> {
    const WHAT: &str = "ask the hub for the model";
    let mut attempt = 0;
    let mut response = loop {
        let request = repo.info_request().query("blobs", "true");
        let answer = request
            .config()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .build()
            .call();
        let passing = match &answer {
            Ok(response) => is_passing(response.status().as_u16()),
            // A refused connection or an unknown host does not come back within seconds.
            Err(_) => false,
        };
        if !passing || attempt >= config.retries {
            break answer.map_err(|e| network(id, WHAT, &e))?;
        }
        std::thread::sleep(config.retry_delay * 2u32.saturating_pow(attempt.min(4)));
        attempt += 1;
    };
    let status = response.status().as_u16();
    if status != 200 {
        let code = response.headers().get("x-error-code").and_then(|v| v.to_str().ok()).unwrap_or("");
        return Err(refusal(id, config, WHAT, status, code));
    }
    let bad = |reason: String| HubError::Repository { id: id.repo(), reason };
    let text = response.body_mut().read_to_vec().map_err(|e| network(id, WHAT, &e))?;
    let info: Info = serde_json::from_slice(&text)
        .map_err(|e| bad(format!("unexpected answer of {}: {e}", config.endpoint)))?;
    if !is_commit(&info.sha) {
        return Err(bad(format!("sha: expected a commit, found {:?}", info.sha)));
    }
    Ok(info)
}

/// A file's content in the cache.
struct Blob {
    path: PathBuf,
    size: u64,
}

struct Download<'a> {
    id: &'a HubId,
    config: &'a HubConfig,
    api: &'a Api,
    repo: ApiRepo,
    blobs: PathBuf,
    snapshot: &'a Path,
    info: &'a Info,
    progress: &'a mut dyn DownloadProgress,
}

impl Download<'_> {
    fn run(&mut self) -> Result<(), HubError> {
        let bad = |reason: String| HubError::Repository { id: self.id.repo(), reason };
        if self.info.file("config.json").is_none() {
            return Err(bad("config.json: no such file".into()));
        }
        let mut files: Vec<String> = SMALL_FILES
            .iter()
            .filter(|name| self.info.file(name).is_some())
            .map(|name| (*name).to_owned())
            .collect();
        if self.info.file(WEIGHTS).is_some() {
            files.push(WEIGHTS.into());
        } else if self.info.file(INDEX).is_some() {
            // The index is small and says what else is needed.
            self.get(INDEX)?;
            for shard in shards(self.id, self.snapshot)? {
                if self.info.file(&shard).is_none() {
                    return Err(bad(format!("{INDEX}: {shard}: no such file in the repository")));
                }
                files.push(shard);
            }
        } else {
            let found: Vec<&str> = self
                .info
                .siblings
                .iter()
                .map(|file| file.name.as_str())
                .filter(|name| {
                    [".bin", ".gguf", ".pth", ".pt", ".safetensors"].iter().any(|e| name.ends_with(e))
                })
                .take(3)
                .collect();
            let found = if found.is_empty() { "none".into() } else { found.join(", ") };
            return Err(bad(format!("weights: expected {WEIGHTS} or {INDEX}, found {found}")));
        }
        files.retain(|name| !self.snapshot.join(name).is_file());
        let sizes: Option<Vec<u64>> = files.iter().map(|name| self.info.file(name)?.size()).collect();
        self.progress.begin(files.len(), sizes.map(|sizes| sizes.iter().sum()));
        files.iter().try_for_each(|name| self.get(name))
    }

    /// Makes a file of the snapshot exist. Broken connections are tried again, going on after the bytes that arrived.
    fn get(&mut self, name: &str) -> Result<(), HubError> {
        let pointer = self.snapshot.join(name);
        if pointer.is_file() {
            return Ok(());
        }
        if pointer.symlink_metadata().is_ok() {
            // A link to a blob that was deleted.
            std::fs::remove_file(&pointer)
                .map_err(|source| HubError::Io { path: pointer.clone(), source })?;
        }
        let blob = self.blob(name)?;
        if self.link_existing_blob(name, &blob, &pointer)? {
            return Ok(());
        }
        let part = blob.path.with_extension("part");
        let mut attempt = 0;
        loop {
            let before = length(&part);
            let error = match self.attempt(name, &blob, &pointer) {
                Ok(()) => {
                    self.progress.done(name);
                    return Ok(());
                }
                Err(error) => error,
            };
            let advanced = length(&part) > before;
            attempt = if advanced { 0 } else { attempt + 1 };
            let passing = match &error {
                HubError::Network { .. } | HubError::Size { .. } => true,
                HubError::Status { status, .. } => is_passing(*status) || *status == 416,
                _ => false,
            };
            if !passing || attempt > self.config.retries {
                return Err(error);
            }
            self.progress.notice(&format!("{error}; trying again"));
            std::thread::sleep(self.config.retry_delay * 2u32.saturating_pow(attempt.min(4)));
        }
    }

    /// What the hub says of a file: in its description of the model, else in the file's headers.
    fn blob(&self, name: &str) -> Result<Blob, HubError> {
        let file = self.info.file(name);
        if let Some((tag, size)) = file.and_then(|file| file.blob().zip(file.size())) {
            return Ok(Blob { path: self.blobs.join(tag), size });
        }
        let headers = self
            .api
            .metadata(&self.repo.url(name))
            .map_err(|e| self.download_error(name, &format!("ask for {name}"), e))?;
        let tag = headers.etag();
        if !is_commit(tag) {
            return Err(
                self.unexpected(name, format!("entity tag: expected letters and digits, found {tag:?}"))
            );
        }
        Ok(Blob { path: self.blobs.join(tag), size: headers.size() as u64 })
    }

    fn attempt(&mut self, name: &str, blob: &Blob, pointer: &Path) -> Result<(), HubError> {
        let io = |path: &Path, source| HubError::Io { path: path.to_owned(), source };
        let part = blob.path.with_extension("part");
        prepare_part(&part, blob.size).map_err(|e| io(&part, e))?;
        let what = format!("download {name}");
        let adapter = Adapter { progress: self.progress, name, size: None };
        let path = match self.repo.download_with_progress(name, adapter) {
            Ok(path) => path,
            Err(e) => return Err(self.download_error(name, &what, e)),
        };
        if path != pointer {
            return Err(self.unexpected(name, format!("expected commit {}, found another", self.info.sha)));
        }
        let (found, expected) = (length(pointer), blob.size);
        if found == expected {
            return Ok(());
        }
        // A blob must never look complete when it is not: a short one becomes a part again, a long one goes.
        let arrived = pointer.canonicalize().map_err(|e| io(pointer, e))?;
        if found < expected {
            std::fs::rename(&arrived, &part).map_err(|e| io(&arrived, e))?;
        } else {
            std::fs::remove_file(&arrived).map_err(|e| io(&arrived, e))?;
        }
        if pointer.symlink_metadata().is_ok() {
            std::fs::remove_file(pointer).map_err(|e| io(pointer, e))?;
        }
        Err(HubError::Size { id: self.id.repo(), file: name.into(), expected, found })
    }

    fn download_error(&self, name: &str, what: &str, e: ApiError) -> HubError {
        match e {
            ApiError::RequestError(e) => match *e {
                ureq::Error::StatusCode(status) => {
                    refusal(self.id, self.config, what, status, "EntryNotFound")
                }
                e => network(self.id, what, &e),
            },
            ApiError::LockAcquisition(lock) => HubError::Busy { id: self.id.repo(), file: name.into(), lock },
            // The body's reader reports a broken connection as an I/O error, like a full disk.
            ApiError::IoError(source) => match source.kind() {
                std::io::ErrorKind::StorageFull
                | std::io::ErrorKind::PermissionDenied
                | std::io::ErrorKind::NotFound
                | std::io::ErrorKind::ReadOnlyFilesystem
                | std::io::ErrorKind::QuotaExceeded => HubError::Io { path: self.blobs.clone(), source },
                _ => network(self.id, what, &source),
            },
            e @ (ApiError::MissingHeader(_) | ApiError::InvalidHeader(_) | ApiError::ParseIntError(_)) => {
                self.unexpected(name, e.to_string())
            }
            e => network(self.id, what, &e),
        }
    }

    fn unexpected(&self, name: &str, reason: String) -> HubError {
        let reason = format!("{name}: unexpected answer of {}: {reason}", self.config.endpoint);
        HubError::Repository { id: self.id.repo(), reason }
    }

    /// Reuses a blob that another revision already brought.
    fn link_existing_blob(&self, name: &str, blob: &Blob, pointer: &Path) -> Result<bool, HubError> {
        if !blob.path.is_file() || length(&blob.path) != blob.size {
            return Ok(false);
        }
        let Some(tag) = blob.path.file_name() else { return Ok(false) };
        if let Some(parent) = pointer.parent() {
            std::fs::create_dir_all(parent).map_err(|source| HubError::Io { path: parent.into(), source })?;
        }
        let up = "../".repeat(2 + name.matches('/').count());
        Ok(link(&Path::new(&up).join("blobs").join(tag), pointer))
    }
}

#[cfg(unix)]
fn link(target: &Path, pointer: &Path) -> bool {
    std::os::unix::fs::symlink(target, pointer).is_ok()
}

#[cfg(not(unix))]
fn link(_target: &Path, _pointer: &Path) -> bool {
    false
}

/// Passes the library's progress on.
struct Adapter<'a> {
    progress: &'a mut dyn DownloadProgress,
    name: &'a str,
    /// Set between `init` and the first `update`, which counts the bytes that an earlier attempt left.
    size: Option<u64>,
}

impl hf_hub::api::Progress for Adapter<'_> {
    fn init(&mut self, size: usize, _filename: &str) {
        self.size = Some(size as u64);
    }

    fn update(&mut self, bytes: usize) {
        match self.size.take() {
            Some(size) => self.progress.file(self.name, size, bytes as u64),
            None if bytes > 0 => self.progress.advance(bytes as u64),
            None => {}
        }
    }

    fn finish(&mut self) {}
}

/// Makes the library's resumption safe: it asks for the bytes after the part's end, which must exist, so a part that
/// is complete gives back its last byte and one that is too long goes.
fn prepare_part(part: &Path, expected: u64) -> std::io::Result<()> {
    let present = length(part);
    if present == 0 || present < expected {
        return Ok(());
    }
    if present > expected {
        return std::fs::remove_file(part);
    }
    std::fs::OpenOptions::new().write(true).open(part)?.set_len(expected - 1)
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// The files that the index of a snapshot names, without repeats.
fn shards(id: &HubId, snapshot: &Path) -> Result<BTreeSet<String>, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index = ModelFiles::dir(snapshot).require_json(INDEX)?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    match shards.iter().find(|name| !is_safe_name(name)) {
        Some(name) => Err(HubError::Repository {
            id: id.repo(),
            reason: format!("{INDEX}: expected the name of a safetensors file, found {name:?}"),
        }),
        None => Ok(shards),
    }
}

/// A relative path that stays inside the snapshot and needs no escapes in an address.
fn is_safe_name(name: &str) -> bool {
    name.ends_with(".safetensors")
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b))
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// A name of letters and digits, as commits and entity tags are; it becomes a part of a path.
fn is_commit(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// A status that another try may not get.
fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

fn refusal(id: &HubId, config: &HubConfig, what: &str, status: u16, code: &str) -> HubError {
    let endpoint = config.endpoint.clone();
    match (code, status) {
        ("RevisionNotFound", _) => {
            HubError::RevisionNotFound { id: id.repo(), revision: id.revision().to_owned() }
        }
        ("RepoNotFound", _) => HubError::NotFound { id: id.repo(), endpoint },
        (_, 401 | 403) => {
            HubError::Denied { id: id.repo(), endpoint, status, with_token: config.token.is_some() }
        }
        ("EntryNotFound", _) => HubError::Status { id: id.repo(), what: what.into(), status },
        (_, 404) => HubError::NotFound { id: id.repo(), endpoint },
        _ => HubError::Status { id: id.repo(), what: what.into(), status },
    }
}

fn network(id: &HubId, what: &str, e: &dyn std::fmt::Display) -> HubError {
    HubError::Network { id: id.repo(), what: what.into(), reason: e.to_string().replace('\n', " ") }
}
