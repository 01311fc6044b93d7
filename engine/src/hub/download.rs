use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cache::{Lock, Repository, create_parent};
use super::client::{Answer, Client, Trouble};
use super::digest::{Hash, Hasher};
use super::fetch::{is_passing, refusal};
use super::{DownloadProgress, HubConfig, HubError, HubId};

/// How often a lock of another process is tried.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Brings files of one commit into the cache.
pub(super) struct Download<'a> {
    pub id: &'a HubId,
    pub config: &'a HubConfig,
    pub client: &'a Client<'a>,
    pub cache: &'a Repository,
    pub commit: &'a str,
    pub progress: &'a mut dyn DownloadProgress,
}

/// What the hub says of a file, as far as it is known.
#[derive(Default)]
pub(super) struct Stated {
    pub size: Option<u64>,
    /// The name of the content in the cache.
    pub tag: Option<String>,
    pub hash: Option<Hash>,
}

/// One file on its way.
struct Arrival<'a> {
    name: &'a str,
    size: Option<u64>,
    part: PathBuf,
    hasher: Hasher,
    /// Whether the part has bytes from before the last answer.
    pieced: bool,
    /// How long the hub asked to wait.
    pause: Option<Duration>,
}

impl Download<'_> {
    /// Makes a file of the snapshot exist. Broken connections are tried again, going on after the bytes that arrived.
    pub fn get(&mut self, name: &str, stated: Stated) -> Result<(), HubError> {
        let pointer = self.cache.snapshot(self.commit).join(name);
        let Stated { size, tag, hash } = stated;
        let (tag, size, hash) = match (tag, size) {
            (Some(tag), Some(size)) => (tag, Some(size), hash),
            (tag, size) => {
                let (asked, found, by_tag) = self.ask(name)?;
                (tag.unwrap_or(asked), size.or(found), hash.or(by_tag))
            }
        };
        let blob = self.cache.blob(&tag);
        let complete = || blob.is_file() && size.is_none_or(|size| length(&blob) == size);
        let lock = if complete() { None } else { self.lock(name, &tag, &complete)? };
        if !complete() {
            let part = self.cache.part(&tag);
            create_parent(&part).map_err(|source| io(&part, source))?;
            let hasher = Hasher::new(hash, size);
            self.bring(&mut Arrival { name, size, part: part.clone(), hasher, pieced: false, pause: None })?;
            std::fs::rename(&part, &blob).map_err(|source| io(&blob, source))?;
        }
        self.cache.link(&tag, name, &pointer).map_err(|source| io(&pointer, source))?;
        if lock.is_some() {
            self.progress.done(name);
        }
        Ok(())
    }

    /// Makes the part of a file whole and sound.
    fn bring(&mut self, file: &mut Arrival<'_>) -> Result<(), HubError> {
        let mut best = length(&file.part);
        let mut attempt = 0;
        loop {
            let error = match self.attempt(file).and_then(|()| self.check(file)) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let present = length(&file.part);
            attempt = if present > best { 0 } else { attempt + 1 };
            best = best.max(present);
            let passing = match &error {
                HubError::Network { .. } | HubError::Size { .. } => true,
                HubError::Status { status, .. } => is_passing(*status) || *status == 416,
                // Pieces that do not fit together; what came in one piece would come again.
                HubError::Content { .. } => std::mem::take(&mut file.pieced),
                _ => false,
            };
            if !passing || attempt > self.config.retries {
                return Err(error);
            }
            self.progress.notice(&format!("{error}; trying again"));
            let delay = self.config.retry_delay * 2u32.saturating_pow(attempt.min(4));
            std::thread::sleep(delay.max(file.pause.take().unwrap_or_default()));
        }
    }

    /// Asks for the bytes that the part lacks.
    fn attempt(&mut self, file: &mut Arrival<'_>) -> Result<(), HubError> {
        let part = &file.part;
        let what = format!("download {}", file.name);
        let mut present = length(part);
        // Where the end is not known, it cannot be told whether it is reached.
        if file.size.is_none_or(|size| present > size) {
            remove(part)?;
            present = 0;
        }
        file.pieced |= present > 0;
        file.hasher.resume(part, present).map_err(|source| io(part, source))?;
        let append =
            || File::options().create(true).append(true).open(part).map_err(|source| io(part, source));
        if file.size == Some(present) {
            self.progress.file(file.name, present, present);
            return append().map(drop);
        }
        let range = (present > 0).then(|| format!("bytes={present}-"));
        let answer = self.ask_for(file.name, &what, range.as_deref())?;
        file.pause = answer.pause();
        let (start, total) = match answer.status {
            200 => (0, answer.length()),
            206 => match answer.range() {
                Some((start, total)) => (start.unwrap_or(present), total),
                None => (present, answer.length().map(|rest| present.saturating_add(rest))),
            },
            416 => {
                remove(part)?;
                return Err(self.refused(&what, &answer));
            }
            _ => return Err(self.refused(&what, &answer)),
        };
        if start > present {
            let reason = format!("{}: expected bytes from {present}, found {start}", answer.url);
            return Err(self.trouble(&what, Trouble::Answer(reason)));
        }
        self.check_answer(&what, &answer)?;
        let size = file.size.or(total);
        if let (Some(expected), Some(found)) = (size, total.filter(|total| Some(*total) != size)) {
            return Err(self.wrong_size(file.name, expected, found));
        }
        if size.is_none() && !answer.ends() {
            let reason = format!("{}: states neither the length of the file nor its end", answer.url);
            return Err(self.trouble(&what, Trouble::Answer(reason)));
        }
        self.progress.file(file.name, size.unwrap_or(0), present);
        let arrived =
            self.receive(file.name, &what, answer, &mut file.hasher, present - start, size, append()?);
        if matches!(arrived, Err(HubError::Size { expected, found, .. }) if found > expected) {
            remove(part)?;
        }
        arrived
    }

    /// Writes a body, without the `skip` bytes that are there.
    fn receive(
        &mut self,
        name: &str,
        what: &str,
        answer: Answer,
        hasher: &mut Hasher,
        mut skip: u64,
        size: Option<u64>,
        mut to: File,
    ) -> Result<(), HubError> {
        let url = answer.url.clone();
        let mut body = answer.into_reader();
        let mut buffer = vec![0; 1 << 18];
        let mut at = hasher.hashed();
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.trouble(what, self.client.broken(&url, error))),
            };
            let old = skip.min(n as u64);
            skip -= old;
            let new = &buffer[old as usize..n];
            at += new.len() as u64;
            if let Some(size) = size.filter(|size| at > *size) {
                return Err(self.wrong_size(name, size, at));
            }
            to.write_all(new).map_err(|source| io(&self.cache.blob(""), source))?;
            hasher.update(new);
            self.progress.advance(new.len() as u64);
        }
        match size {
            Some(size) if size != at => Err(self.wrong_size(name, size, at)),
            _ => Ok(()),
        }
    }

    /// Refuses a part that is not what the hub states.
    fn check(&self, file: &Arrival<'_>) -> Result<(), HubError> {
        let Some((expected, found)) = file.hasher.mismatch() else { return Ok(()) };
        remove(&file.part)?;
        Err(HubError::Content { id: self.id.repo(), file: file.name.into(), expected, found })
    }

    /// Tag, size and hash of a file by the headers of an answer.
    fn ask(&self, name: &str) -> Result<(String, Option<u64>, Option<Hash>), HubError> {
        let what = format!("ask for {name}");
        let mut attempt = 0;
        let answer = loop {
            let answer = self.ask_for(name, &what, Some("bytes=0-0"));
            let (error, pause) = match answer {
                // Of an empty file there is no first byte.
                Ok(answer) if matches!(answer.status, 200 | 206 | 416) => break answer,
                Ok(answer) => (self.refused(&what, &answer), answer.pause()),
                Err(error) => (error, None),
            };
            let passing = match &error {
                HubError::Network { .. } => true,
                HubError::Status { status, .. } => is_passing(*status),
                _ => false,
            };
            if !passing || attempt >= self.config.retries {
                return Err(error);
            }
            let delay = self.config.retry_delay * 2u32.saturating_pow(attempt.min(4));
            std::thread::sleep(delay.max(pause.unwrap_or_default()));
            attempt += 1;
        };
        self.check_answer(&what, &answer)?;
        let linked = answer.first("x-linked-etag");
        let tag = linked.or_else(|| answer.first("etag")).unwrap_or("");
        let tag = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
        if !is_tag(tag) {
            let reason =
                format!("{}: ETag: expected letters and digits, found {tag:?}", self.config.endpoint);
            return Err(self.trouble(&what, Trouble::Answer(reason)));
        }
        let stated = answer.first("x-linked-size").and_then(|size| size.parse().ok());
        let found = match answer.status {
            200 => answer.length(),
            _ => answer.range().and_then(|(_, total)| total),
        };
        Ok((tag.to_owned(), stated.or(found), Hash::sha256(tag)))
    }

    fn ask_for(&self, name: &str, what: &str, range: Option<&str>) -> Result<Answer, HubError> {
        let url = self.config.endpoint.at(&format!("/{}/resolve/{}/{name}", self.id.repo(), self.commit));
        self.client.get(url, range).map_err(|trouble| self.trouble(what, trouble))
    }

    /// Refuses an answer about another commit, or in an encoding that nobody asked for.
    fn check_answer(&self, what: &str, answer: &Answer) -> Result<(), HubError> {
        let commit = answer.first("x-repo-commit").filter(|commit| *commit != self.commit);
        let encoding = answer.header("content-encoding").filter(|v| !v.is_empty() && *v != "identity");
        let reason = match (commit, encoding) {
            (Some(commit), _) => format!("X-Repo-Commit: expected {}, found {commit:?}", self.commit),
            (_, Some(encoding)) => format!("Content-Encoding: expected none, found {encoding:?}"),
            _ => return Ok(()),
        };
        Err(self.trouble(what, Trouble::Answer(format!("{}: {reason}", answer.url))))
    }

    fn refused(&self, what: &str, answer: &Answer) -> HubError {
        if self.config.endpoint.is_origin_of(&answer.url) {
            return refusal(self.id, self.config, what, answer.status, "EntryNotFound");
        }
        // What another host refuses says nothing of the hub's permissions: most often its address has expired.
        let what = format!("{what} from {}", answer.url.origin());
        HubError::Status { id: self.id.repo(), what, status: answer.status }
    }

    fn trouble(&self, what: &str, trouble: Trouble) -> HubError {
        trouble.of(self.id, what)
    }

    fn wrong_size(&self, name: &str, expected: u64, found: u64) -> HubError {
        HubError::Size { id: self.id.repo(), file: name.into(), expected, found }
    }

    /// Waits for another process that brings the same content, as long as it gets on with it.
    fn lock(&mut self, name: &str, tag: &str, complete: &dyn Fn() -> bool) -> Result<Option<Lock>, HubError> {
        let path = self.cache.lock_path(tag);
        let mut since: Option<(Instant, u64)> = None;
        loop {
            if let Some(lock) = self.cache.try_lock(tag).map_err(|source| io(&path, source))? {
                return Ok(Some(lock));
            }
            let present = length(&self.cache.part(tag));
            match since {
                None => {
                    self.progress.notice(&format!("{name}: another process is downloading it; waiting"));
                    since = Some((Instant::now(), present));
                }
                Some((_, before)) if before != present => since = Some((Instant::now(), present)),
                Some((start, _)) if start.elapsed() > self.config.stall_timeout => {
                    return Err(HubError::Busy { id: self.id.repo(), file: name.into(), lock: path });
                }
                Some(_) => {}
            }
            std::thread::sleep(LOCK_PAUSE);
            if complete() {
                return Ok(None);
            }
        }
    }
}

impl Trouble {
    /// As an error of a request.
    pub fn of(self, id: &HubId, what: &str) -> HubError {
        let (id, what) = (id.repo(), what.to_owned());
        match self {
            Self::Network { reason, .. } => HubError::Network { id, what, reason },
            Self::Answer(reason) => HubError::Answer { id, what, reason },
        }
    }
}

/// A name in the cache's `blobs`: letters and digits, and what other servers put between them.
fn is_tag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

fn io(path: &Path, source: std::io::Error) -> HubError {
    HubError::Io { path: path.to_owned(), source }
}

/// Removes a file that may be absent.
fn remove(path: &Path) -> Result<(), HubError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io(path, error)),
        _ => Ok(()),
    }
}

pub(super) fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}
