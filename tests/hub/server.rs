//! A hub on loopback: the parts of the hub's HTTP interface that downloading uses, with faults on demand.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

/// One version of a model: its commit and files.
#[derive(Clone, Default)]
pub struct Revision {
    pub sha: String,
    pub files: HashMap<String, Vec<u8>>,
}

/// What goes wrong with a file, in order; when the list is empty all is well.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The connection is cut after this many bytes of the body.
    Cut(usize),
    /// The body has no stated length and ends after this many bytes.
    Short(usize),
    /// The answer is the whole file, whatever range was asked for.
    IgnoreRange,
    /// The answer has this status and no body.
    Status(u16),
    /// Nothing more comes after this many bytes of the body, and the connection stays open.
    Stall(usize),
    /// A part of the body is zeros.
    WrongBytes,
    /// The answer to a range does not say which one it is.
    NoContentRange,
    /// Nothing: this request is answered as it should be.
    None,
}

/// Where requests for files are sent on to.
#[derive(Clone, Debug, Default)]
pub enum Redirect {
    /// Those of weights to another path of the hub.
    #[default]
    Weights,
    /// Nowhere.
    Nowhere,
    /// All, by a path without a host.
    Relative,
    /// All, to the hub at this address.
    Host(String),
    /// All, with this `Location`.
    Location(String),
    /// All, to where they come from.
    Itself,
    /// All, without a `Location`.
    Missing,
}

#[derive(Default)]
pub struct State {
    /// (`OWNER/NAME`, revision) -> content.
    pub revisions: HashMap<(String, String), Revision>,
    /// Faults of requests for file contents, by file name; of the model's description, by `info`.
    pub faults: HashMap<String, Vec<Fault>>,
    /// Requests as `path range`, in order.
    pub log: Vec<String>,
    /// The paths of the same requests, and their `Authorization`.
    pub authorized: Vec<(String, Option<String>)>,
    /// Redirects of files.
    pub redirect: Redirect,
    /// Redirects of the model's description, if not [`Redirect::Weights`].
    pub redirect_info: Redirect,
    /// Ranges are not understood.
    pub no_ranges: bool,
    /// `ETag` of every file, in place of the hash.
    pub etag: Option<&'static str>,
    /// Sent as `Retry-After` with a fault's status.
    pub retry_after: Option<u32>,
    /// If set, requests without this token get 401.
    pub token: Option<String>,
    /// Sent as `X-Error-Code` with 401.
    pub code: Option<&'static str>,
    /// Leave sizes and tags out of the description, as mirrors do.
    pub bare: bool,
}

pub struct Hub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let (shared, base) = (state.clone(), endpoint.clone());
        // The thread ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, base) = (shared.clone(), base.clone());
                std::thread::spawn(move || {
                    let _ = serve(stream, &shared, &base);
                });
            }
        });
        Self { endpoint, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn publish(&self, repo: &str, revision: &str, sha: &str, files: &[(&str, &[u8])]) {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let revision_files = Revision { sha: sha.into(), files };
        let mut state = self.state();
        state.revisions.insert((repo.into(), revision.into()), revision_files.clone());
        state.revisions.insert((repo.into(), sha.into()), revision_files);
    }

    pub fn fault(&self, name: &str, faults: &[Fault]) {
        self.state().faults.insert(name.into(), faults.to_vec());
    }

    /// The requests since the last call.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log)
    }
}

/// The entity tag: SHA-256 of weights, Git's hash of other files.
pub fn tag(name: &str, bytes: &[u8]) -> String {
    use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
    let digest = if name.ends_with(".safetensors") {
        digest(&SHA256, bytes)
    } else {
        let head = format!("blob {}\0", bytes.len());
        digest(&SHA1_FOR_LEGACY_USE_ONLY, &[head.as_bytes(), bytes].concat())
    };
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn serve(stream: TcpStream, state: &Mutex<State>, base: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let target = line.split_whitespace().nth(1).unwrap_or("/").to_owned();
    let (mut range, mut authorization) = (None, None);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let (name, value) = line.trim().split_once(':').unwrap_or((line.trim(), ""));
        match name.to_ascii_lowercase().as_str() {
            "range" => range = Some(value.trim().to_owned()),
            "authorization" => authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let path = target.split('?').next().unwrap_or("").to_owned();
    let mut state = state.lock().unwrap();
    state.log.push(format!("{path} {}", range.as_deref().unwrap_or("-")));
    state.authorized.push((path.clone(), authorization.clone()));
    let token = authorization.as_deref().and_then(|value| value.strip_prefix("Bearer "));
    let range = range.filter(|_| !state.no_ranges);
    let answer = answer(&mut state, &path, range.as_deref(), token, base);
    drop(state);
    answer.send(stream)
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Send only this much of the body.
    limit: usize,
    stated_length: bool,
    /// Leave the connection open.
    stalled: bool,
}

impl Answer {
    fn status(status: u16) -> Self {
        let (headers, body) = (Vec::new(), Vec::new());
        Self { status, headers, body, limit: usize::MAX, stated_length: true, stalled: false }
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn send(self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if self.stated_length {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        stream.write_all((head + "\r\n").as_bytes())?;
        stream.write_all(&self.body[..self.limit.min(self.body.len())])?;
        stream.flush()?;
        if self.stalled {
            // Until the other side has had enough.
            let _ = stream.read(&mut [0]);
        }
        stream.shutdown(Shutdown::Both)
    }
}

fn answer(state: &mut State, path: &str, range: Option<&str>, token: Option<&str>, base: &str) -> Answer {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let contents = parts[0] == "content";
    if !contents && state.token.is_some() && state.token.as_deref() != token {
        let answer = Answer::status(401);
        return match state.code {
            Some(code) => answer.header("X-Error-Code", code),
            None => answer,
        };
    }
    match parts[..] {
        ["api", "models", owner, name, "revision", revision] => {
            match next_fault(state, "info") {
                Some(Fault::Status(status)) => return refuse(state, status),
                Some(Fault::Stall(_)) => return Answer { stalled: true, ..Answer::status(200) },
                _ => {}
            }
            let repo = format!("{owner}/{name}");
            if !matches!(state.redirect_info, Redirect::Weights) {
                return redirect(&state.redirect_info, base, path, path);
            }
            if !state.revisions.keys().any(|(known, _)| *known == repo) {
                return Answer::status(404).header("X-Error-Code", "RepoNotFound");
            }
            match state.revisions.get(&(repo, revision.replace("%2F", "/"))) {
                Some(revision) => describe(revision, state.bare),
                None => Answer::status(404).header("X-Error-Code", "RevisionNotFound"),
            }
        }
        [owner, name, "resolve", revision, ref file @ ..] => {
            let file = file.join("/");
            let key = (format!("{owner}/{name}"), revision.replace("%2F", "/"));
            let Some(revision) = state.revisions.get(&key) else { return Answer::status(404) };
            let sha = revision.sha.clone();
            let Some(bytes) = revision.files.get(&file).cloned() else { return Answer::status(404) };
            let tag = state.etag.map_or_else(|| format!("\"{}\"", tag(&file, &bytes)), str::to_owned);
            let elsewhere = match state.redirect {
                Redirect::Weights => file.ends_with(".safetensors"),
                Redirect::Nowhere => false,
                _ => true,
            };
            if elsewhere {
                let content = format!("/content/{}/{}/{file}", key.0, key.1);
                return redirect(&state.redirect, base, path, &content)
                    .header("X-Repo-Commit", sha)
                    .header("X-Linked-Etag", tag)
                    .header("X-Linked-Size", bytes.len().to_string());
            }
            content(state, &file, bytes, range).header("X-Repo-Commit", sha).header("ETag", tag)
        }
        ["content", owner, name, revision, ref file @ ..] => {
            let file = file.join("/");
            let key = (format!("{owner}/{name}"), revision.to_owned());
            let bytes = state.revisions.get(&key).and_then(|r| r.files.get(&file)).cloned();
            match bytes {
                Some(bytes) => content(state, &file, bytes, range),
                None => Answer::status(404),
            }
        }
        _ => Answer::status(404),
    }
}

fn redirect(redirect: &Redirect, base: &str, path: &str, content: &str) -> Answer {
    let location = match redirect {
        Redirect::Relative => content.to_owned(),
        Redirect::Host(host) => format!("{host}{content}"),
        Redirect::Location(location) => location.clone(),
        Redirect::Itself => path.to_owned(),
        Redirect::Missing => return Answer::status(302),
        Redirect::Weights | Redirect::Nowhere => format!("{base}{content}"),
    };
    Answer::status(302).header("Location", location)
}

fn refuse(state: &State, status: u16) -> Answer {
    let answer = Answer::status(status);
    match state.retry_after {
        Some(seconds) => answer.header("Retry-After", seconds.to_string()),
        None => answer,
    }
}

fn describe(revision: &Revision, bare: bool) -> Answer {
    let mut siblings: Vec<serde_json::Value> = revision
        .files
        .iter()
        .map(|(name, bytes)| match (bare, name.ends_with(".safetensors")) {
            (true, _) => serde_json::json!({"rfilename": name}),
            (_, true) => serde_json::json!({"rfilename": name, "size": bytes.len(), "blobId": "0",
                "lfs": {"sha256": tag(name, bytes), "size": bytes.len(), "pointerSize": 1}}),
            _ => serde_json::json!({"rfilename": name, "size": bytes.len(), "blobId": tag(name, bytes)}),
        })
        .collect();
    siblings.sort_by_key(|s| s["rfilename"].to_string());
    let body = serde_json::json!({"sha": revision.sha, "siblings": siblings, "private": false});
    let mut answer = Answer::status(200).header("Content-Type", "application/json");
    answer.body = body.to_string().into_bytes();
    answer
}

fn content(state: &mut State, name: &str, bytes: Vec<u8>, range: Option<&str>) -> Answer {
    // The probe for the length is always answered; faults belong to the download itself.
    let probe = range == Some("bytes=0-0");
    let fault = if probe { None } else { next_fault(state, name) };
    if let Some(Fault::Status(status)) = fault {
        return refuse(state, status);
    }
    let mut bytes = bytes;
    if matches!(fault, Some(Fault::WrongBytes)) {
        let length = bytes.len();
        bytes[length / 3..=length / 2].fill(0);
    }
    let range = range.filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
    let mut answer = match range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) {
        Some((start, end)) => {
            let start: usize = start.parse().unwrap();
            if start >= bytes.len() {
                return Answer::status(416).header("Content-Range", format!("bytes */{}", bytes.len()));
            }
            let end = end.parse().map_or(bytes.len(), |end: usize| (end + 1).min(bytes.len()));
            let mut answer = Answer::status(206);
            if !matches!(fault, Some(Fault::NoContentRange)) {
                let range = format!("bytes {start}-{}/{}", end - 1, bytes.len());
                answer = answer.header("Content-Range", range);
            }
            answer.body = bytes[start..end].to_vec();
            answer
        }
        None => {
            let mut answer = Answer::status(200);
            answer.body = bytes;
            answer
        }
    };
    match fault {
        Some(Fault::Cut(bytes)) => answer.limit = bytes,
        Some(Fault::Stall(bytes)) => (answer.limit, answer.stalled) = (bytes, true),
        Some(Fault::Short(bytes)) => {
            answer.limit = bytes;
            answer.stated_length = false;
        }
        _ => {}
    }
    answer
}

fn next_fault(state: &mut State, name: &str) -> Option<Fault> {
    let faults = state.faults.get_mut(name)?;
    if faults.is_empty() { None } else { Some(faults.remove(0)) }
}
