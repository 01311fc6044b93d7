//! A hub on loopback: the parts of the hub's HTTP interface that downloading uses, with faults on demand.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
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
    /// Nothing: this request is answered as it should be.
    None,
}

#[derive(Default)]
pub struct State {
    /// (`OWNER/NAME`, revision) -> content.
    pub revisions: HashMap<(String, String), Revision>,
    /// Faults of requests for file contents, by file name; of the model's description, by `info`.
    pub faults: HashMap<String, Vec<Fault>>,
    /// Requests as `path range`, in order.
    pub log: Vec<String>,
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

/// An entity tag: letters and digits that depend on the content alone.
pub fn tag(bytes: &[u8]) -> String {
    let hash = |seed: u64| {
        bytes.iter().fold(seed, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3).rotate_left(5))
    };
    format!("{:016x}{:016x}{:08x}", hash(0xcbf2_9ce4_8422_2325), hash(7), bytes.len())
}

fn serve(stream: TcpStream, state: &Mutex<State>, base: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let target = line.split_whitespace().nth(1).unwrap_or("/").to_owned();
    let (mut range, mut token) = (None, None);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let (name, value) = line.trim().split_once(':').unwrap_or((line.trim(), ""));
        match name.to_ascii_lowercase().as_str() {
            "range" => range = Some(value.trim().to_owned()),
            "authorization" => token = value.trim().strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    let path = target.split('?').next().unwrap_or("").to_owned();
    let mut state = state.lock().unwrap();
    state.log.push(format!("{path} {}", range.as_deref().unwrap_or("-")));
    let answer = answer(&mut state, &path, range.as_deref(), token.as_deref(), base);
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
}

impl Answer {
    fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), limit: usize::MAX, stated_length: true }
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
            if let Some(Fault::Status(status)) = next_fault(state, "info") {
                return Answer::status(status);
            }
            let repo = format!("{owner}/{name}");
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
            if file.ends_with(".safetensors") {
                // Large files live elsewhere.
                return Answer::status(302)
                    .header("X-Repo-Commit", sha)
                    .header("X-Linked-Etag", format!("\"{}\"", tag(&bytes)))
                    .header("X-Linked-Size", bytes.len().to_string())
                    .header("Location", format!("{base}/content/{}/{}/{file}", key.0, key.1));
            }
            let tag = format!("\"{}\"", tag(&bytes));
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

fn describe(revision: &Revision, bare: bool) -> Answer {
    let mut siblings: Vec<serde_json::Value> = revision
        .files
        .iter()
        .map(|(name, bytes)| match (bare, name.ends_with(".safetensors")) {
            (true, _) => serde_json::json!({"rfilename": name}),
            (_, true) => serde_json::json!({"rfilename": name, "size": bytes.len(), "blobId": "0",
                "lfs": {"sha256": tag(bytes), "size": bytes.len(), "pointerSize": 1}}),
            _ => serde_json::json!({"rfilename": name, "size": bytes.len(), "blobId": tag(bytes)}),
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
        return Answer::status(status);
    }
    let range = range.filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
    let mut answer = match range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) {
        Some((start, end)) => {
            let start: usize = start.parse().unwrap();
            if start >= bytes.len() {
                return Answer::status(416).header("Content-Range", format!("bytes */{}", bytes.len()));
            }
            let end = end.parse().map_or(bytes.len(), |end: usize| (end + 1).min(bytes.len()));
            let mut answer = Answer::status(206)
                .header("Content-Range", format!("bytes {start}-{}/{}", end - 1, bytes.len()));
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
