use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::cache::Repository;
use super::client::{Client, Trouble};
use super::digest::Hash;
use super::download::{Download, Stated, length};
use super::{DownloadProgress, HubConfig, HubError, HubId};
use crate::files::{ModelFiles, dangling};
use crate::json;

/// Small files that a model may have at its root; those that exist are fetched.
const SMALL_FILES: [&str; 14] = [
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
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

/// Longest description of a model that is read.
const MAX_DESCRIPTION: u64 = 64 << 20;

/// The snapshot directory of a model, with the files that loading needs: configuration, tokenizer, processor, chat
/// template and safetensors weights. What is absent is downloaded; a download that was cut goes on where it stopped.
///
/// Of these files all that the repository lists are needed. The hub is asked once for the commit that the revision names;
/// if it cannot be reached, a complete cached copy is used and a notice given. A complete cache is not written to.
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
    let client = Client::new(config)?;
    let info = match describe(&client, id, config) {
        Ok(info) => info,
        Err(e @ (HubError::Network { .. } | HubError::Status { .. } | HubError::Answer { .. })) => {
            let Ok(dir) = cached(id, config) else { return Err(e) };
            progress.notice(&format!("{e}; the cached copy is used"));
            return Ok(dir);
        }
        Err(e) => return Err(e),
    };
    let cache = Repository::new(id, config);
    let snapshot = cache.snapshot(&info.sha);
    let download = Download {
        id,
        config,
        client: &client,
        cache: &cache,
        // By commit and not by name, so that all files are of one commit even if the branch moves meanwhile.
        commit: &info.sha,
        progress,
    };
    let mut files = Files { info: &info, snapshot: &snapshot, download };
    files.run()?;
    if let Err(error) = cache.record(id.revision(), &info.sha) {
        // The model is there all the same.
        let (revision, sha) = (id.revision(), &info.sha);
        progress.notice(&format!("{revision} is {sha}, which the cache cannot note: {error}"));
    }
    Ok(snapshot)
}

/// The snapshot directory of a model that the cache has in whole, without any network.
///
/// # Errors
/// [`HubError::NotCached`] or [`HubError::Incomplete`].
pub fn cached(id: &HubId, config: &HubConfig) -> Result<PathBuf, HubError> {
    let cache = Repository::new(id, config);
    // A commit may be cached without a reference of its own.
    let commit = cache.reference(id.revision()).unwrap_or_else(|| id.revision().to_owned());
    let snapshot = cache.snapshot(&commit);
    if !is_commit(&commit) || !snapshot.is_dir() {
        return Err(HubError::NotCached { id: id.to_string(), cache: config.cache.clone() });
    }
    let absent = |file: String| HubError::Incomplete { id: id.to_string(), file, snapshot: snapshot.clone() };
    // What a model may do without is there or not; but a link without its content was there.
    let mut small = SMALL_FILES.iter().chain(&[WEIGHTS, INDEX]);
    if let Some(file) = small.find(|file| dangling(&snapshot.join(file)).is_some()) {
        return Err(absent((*file).to_owned()));
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
        Some(file) => Err(absent(file)),
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
    fn stated(&self) -> Stated {
        let size = self.lfs.as_ref().and_then(|lfs| lfs.size).or(self.size);
        let (name, hash) = match &self.lfs {
            Some(lfs) => (lfs.sha256.as_deref(), lfs.sha256.as_deref().and_then(Hash::sha256)),
            None => (self.blob_id.as_deref(), self.blob_id.as_deref().and_then(Hash::git)),
        };
        Stated { size, tag: name.filter(|name| is_commit(name)).map(str::to_owned), hash }
    }
}

impl Info {
    fn file(&self, name: &str) -> Option<&File> {
        self.siblings.iter().find(|file| file.name == name)
    }
}

fn describe(client: &Client<'_>, id: &HubId, config: &HubConfig) -> Result<Info, HubError> {
    const WHAT: &str = "ask the hub for the model";
    let revision = id.revision().replace('/', "%2F").replace('+', "%2B");
    let url = config.endpoint.at(&format!("/api/models/{}/revision/{revision}?blobs=true", id.repo()));
    let ask = || {
        let answer = client.get(url.clone(), None)?;
        let status = answer.status;
        let code = answer.header("x-error-code").unwrap_or("").to_owned();
        let (pause, host) = (answer.pause(), answer.url.clone());
        let mut text = Vec::new();
        if status == 200 {
            let mut body = answer.into_reader().take(MAX_DESCRIPTION);
            body.read_to_end(&mut text).map_err(|error| client.broken(&host, error))?;
        }
        Ok((status, code, pause, host, text))
    };
    let mut attempt = 0;
    let (status, code, _, host, text) = loop {
        let answer = ask();
        let pause = match &answer {
            Ok((status, _, pause, ..)) => is_passing(*status).then_some(*pause),
            // A refused connection or an unknown host does not come back within seconds.
            Err(Trouble::Network { passing, .. }) => passing.then_some(None),
            Err(Trouble::Answer(_)) => None,
        };
        match pause {
            Some(pause) if attempt < config.retries => {
                let delay = config.retry_delay * 2u32.saturating_pow(attempt.min(4));
                std::thread::sleep(delay.max(pause.unwrap_or_default()));
            }
            _ => break answer.map_err(|trouble| trouble.of(id, WHAT))?,
        }
        attempt += 1;
    };
    if status != 200 {
        return Err(refusal(id, config, WHAT, status, &code));
    }
    let bad = |reason: String| Trouble::Answer(format!("{host}: {reason}")).of(id, WHAT);
    let info: Info = json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
    if !is_commit(&info.sha) {
        return Err(bad(format!("sha: expected a commit, found {:?}", info.sha)));
    }
    Ok(info)
}

/// The files of a commit that are needed.
struct Files<'a> {
    info: &'a Info,
    snapshot: &'a Path,
    download: Download<'a>,
}

impl Files<'_> {
    fn run(&mut self) -> Result<(), HubError> {
        let bad = |id: &HubId, reason: String| HubError::Repository { id: id.repo(), reason };
        let id = self.download.id;
        if self.info.file("config.json").is_none() {
            return Err(bad(id, "config.json: no such file".into()));
        }
        let listed = SMALL_FILES.iter().filter(|name| self.info.file(name).is_some());
        let mut files: Vec<String> = listed.map(|name| (*name).to_owned()).collect();
        if self.info.file(WEIGHTS).is_some() {
            files.push(WEIGHTS.into());
        } else if self.info.file(INDEX).is_some() {
            // The index is small and says what else is needed.
            self.get(INDEX)?;
            for shard in shards(id, self.snapshot)? {
                if self.info.file(&shard).is_none() {
                    return Err(bad(id, format!("{INDEX}: {shard}: no such file in the repository")));
                }
                files.push(shard);
            }
        } else {
            let weights = |name: &&str| {
                [".bin", ".gguf", ".pth", ".pt", ".safetensors"].iter().any(|e| name.ends_with(e))
            };
            let names = self.info.siblings.iter().map(|file| file.name.as_str());
            let found: Vec<&str> = names.filter(weights).take(3).collect();
            let found = if found.is_empty() { "none".into() } else { found.join(", ") };
            return Err(bad(id, format!("weights: expected {WEIGHTS} or {INDEX}, found {found}")));
        }
        files.retain(|name| !self.has(name));
        let sizes: Option<Vec<u64>> = files.iter().map(|name| self.info.file(name)?.stated().size).collect();
        self.download.progress.begin(files.len(), sizes.map(|sizes| sizes.iter().sum()));
        files.iter().try_for_each(|name| self.get(name))
    }

    /// Whether the snapshot has a file, of the size that the hub states.
    fn has(&self, name: &str) -> bool {
        let path = self.snapshot.join(name);
        let size = self.info.file(name).and_then(|file| file.stated().size);
        path.is_file() && size.is_none_or(|size| length(&path) == size)
    }

    fn get(&mut self, name: &str) -> Result<(), HubError> {
        if self.has(name) {
            return Ok(());
        }
        self.download.get(name, self.info.file(name).map(File::stated).unwrap_or_default())
    }
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
pub(super) fn is_commit(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// A status that another try may not get.
pub(super) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

pub(super) fn refusal(id: &HubId, config: &HubConfig, what: &str, status: u16, code: &str) -> HubError {
    let endpoint = config.endpoint.to_string();
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
