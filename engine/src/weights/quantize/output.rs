//! A directory that appears whole or not at all, and that a later run can go on with.
//!
//! `.NAME.partial` beside the destination `NAME` holds what is done so far: files that are complete, and `progress.json`, which says of what
//! source and with which options they were made. A file in work ends in `.tmp`. `.NAME.lock` is locked by the process that writes.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::Unit;
use super::report::Measured;
use super::scaling::Scales;
use super::{Fold, QuantizeError, QuantizeOptions};
use crate::files::ModelFiles;
use crate::weights::Checkpoint;

/// Name of the file that says what is done.
const PROGRESS: &str = "progress.json";

/// What is done so far.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Done {
    /// Tells source and options from others.
    key: String,
    /// Scales of channels, once they are found.
    pub scales: Option<(Vec<Scales>, Vec<String>)>,
    /// Complete files: their length, and what their matrices are off by.
    pub files: BTreeMap<String, (u64, Vec<Measured>)>,
}

/// A directory in work beside its destination. One with complete files stays where it is dropped before [`commit`](Self::commit).
pub(super) struct Output {
    temp: PathBuf,
    old: PathBuf,
    out: PathBuf,
    _lock: Lock,
    pub done: Done,
}

/// How work on a directory begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// There was nothing.
    Fresh,
    /// A run of the same source and options had ended early.
    Resumed,
    /// What there was is of another source or of other options, and is gone.
    Anew,
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> QuantizeError {
    let path = path.display().to_string();
    move |source| QuantizeError::Io { path: path.clone(), source }
}

/// What tells a source and options from others: names, types and shapes of tensors, sizes and times of files, what becomes of each
/// matrix, and what calibration data there is.
pub(super) fn key(
    files: &ModelFiles,
    checkpoint: &Checkpoint,
    units: &[Unit<'_>],
    options: &QuantizeOptions,
    folds: &[Fold],
    calibration: &str,
) -> Result<String, QuantizeError> {
    let mut hash = blake3::Hasher::new();
    let mut add = |part: &str| {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    };
    // Neither changes what is written.
    let options = QuantizeOptions { force: false, memory: 0, ..options.clone() };
    add(&format!("{} {options:?}", env!("CARGO_PKG_VERSION")));
    add(&format!("{folds:?}"));
    add(calibration);
    for file in checkpoint.files() {
        add(file.path());
        add(&file.len().to_string());
        if matches!(files, ModelFiles::Dir(_)) {
            let path = Path::new(file.path());
            let time = std::fs::metadata(path).and_then(|of| of.modified()).map_err(io(path))?;
            add(&format!("{time:?}"));
        }
    }
    for (name, info) in checkpoint.infos() {
        add(&format!("{name} {} {:?}", info.dtype, info.shape));
    }
    for module in units.iter().flat_map(Unit::modules) {
        add(&format!("{} {:?} {}", module.name, module.role, module.format));
    }
    let config = files.read("config.json")?.unwrap_or_default();
    hash.update(&config);
    Ok(hash.finalize().to_hex().to_string())
}

/// A file that one process at a time holds.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(path: PathBuf, out: &Path) -> Result<Self, QuantizeError> {
        loop {
            let file =
                File::options().create(true).truncate(false).write(true).open(&path).map_err(io(&path))?;
            match file.try_lock() {
                // Whoever held it may have removed it meanwhile.
                Ok(()) if path.exists() => return Ok(Self { path, _file: file }),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(QuantizeError::Busy(out.display().to_string())),
                Err(TryLockError::Error(error)) => return Err(io(&path)(error)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!("{}: {error}", self.path.display());
        }
    }
}

impl Output {
    /// Makes the directory to work in, beside a destination that is [checked](check), or takes the one that is there. `key` tells source
    /// and options from others.
    pub fn begin(out: &Path, key: String) -> Result<(Self, Start), QuantizeError> {
        let name = name_of(out)?;
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(parent).map_err(io(parent))?;
        let temp = parent.join(format!(".{name}.partial"));
        let old = parent.join(format!(".{name}.old"));
        let lock = Lock::take(parent.join(format!(".{name}.lock")), out)?;
        let mut output = Self {
            temp,
            old,
            out: out.to_owned(),
            _lock: lock,
            done: Done { key: key.clone(), ..Done::default() },
        };
        let there = output.temp.symlink_metadata().is_ok();
        let known: Option<Done> = std::fs::read(output.path(PROGRESS))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .filter(|known: &Done| known.key == key);
        let start = match known {
            Some(known) => {
                output.done = known;
                output.done.files.retain(|name, (length, _)| {
                    std::fs::metadata(output.temp.join(name)).is_ok_and(|found| found.len() == *length)
                });
                Start::Resumed
            }
            None if there => {
                std::fs::remove_dir_all(&output.temp).map_err(io(&output.temp))?;
                Start::Anew
            }
            None => Start::Fresh,
        };
        if start != Start::Resumed {
            std::fs::create_dir(&output.temp).map_err(io(&output.temp))?;
        }
        Ok((output, start))
    }

    /// Where a file of the directory is meanwhile.
    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.join(name)
    }

    /// Where a file is while it is written.
    pub fn in_work(&self, name: &str) -> Result<PathBuf, QuantizeError> {
        let path = self.path(&format!("{name}.tmp"));
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(&path)(error)),
            _ => Ok(path),
        }
    }

    /// A file that was in work is complete.
    pub fn complete(&mut self, name: &str, measured: Vec<Measured>) -> Result<(), QuantizeError> {
        let (from, to) = (self.path(&format!("{name}.tmp")), self.path(name));
        let length = std::fs::metadata(&from).map_err(io(&from))?.len();
        std::fs::rename(&from, &to).map_err(io(&to))?;
        self.done.files.insert(name.to_owned(), (length, measured));
        self.note()
    }

    /// Writes down what is done.
    pub fn note(&self) -> Result<(), QuantizeError> {
        let path = self.path(PROGRESS);
        let bytes = serde_json::to_vec(&self.done).map_err(|error| io(&path)(error.into()))?;
        let new = self.path("progress.json.tmp");
        std::fs::write(&new, bytes).map_err(io(&new))?;
        std::fs::rename(&new, &path).map_err(io(&path))
    }

    /// Writes a small file.
    pub fn file(&self, name: &str, bytes: &[u8]) -> Result<(), QuantizeError> {
        let path = self.path(name);
        std::fs::write(&path, bytes).map_err(io(&path))
    }

    /// Writes a small file of JSON.
    pub fn json(&self, name: &str, value: &serde_json::Value) -> Result<(), QuantizeError> {
        self.file(name, format!("{value:#}\n").as_bytes())
    }

    /// Moves the directory to its destination.
    pub fn commit(mut self) -> Result<(), QuantizeError> {
        let progress = self.path(PROGRESS);
        // What is left is of no further use whatever happens: all files are complete.
        if progress.exists() {
            std::fs::remove_file(&progress).map_err(io(&progress))?;
        }
        let replaces = self.out.symlink_metadata().is_ok();
        if replaces {
            if self.old.symlink_metadata().is_ok() {
                std::fs::remove_dir_all(&self.old).map_err(io(&self.old))?;
            }
            std::fs::rename(&self.out, &self.old).map_err(io(&self.out))?;
        }
        if let Err(e) = std::fs::rename(&self.temp, &self.out) {
            if replaces && let Err(e) = std::fs::rename(&self.old, &self.out) {
                tracing::warn!("the former {} is now {}: {e}", self.out.display(), self.old.display());
            }
            self.note()?;
            return Err(io(&self.out)(e));
        }
        self.done = Done::default();
        if replaces {
            std::fs::remove_dir_all(&self.old).map_err(io(&self.old))?;
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let worth = self.done.scales.is_some() || !self.done.files.is_empty();
        if !worth
            && self.temp.exists()
            && let Err(e) = std::fs::remove_dir_all(&self.temp)
        {
            tracing::warn!("{} could not be removed: {e}", self.temp.display());
        }
    }
}

/// The last part of a destination.
fn name_of(out: &Path) -> Result<&str, QuantizeError> {
    let expected = || format!("{}: expected the name of a new directory", out.display());
    out.file_name().and_then(|name| name.to_str()).ok_or_else(|| QuantizeError::Options(expected()))
}

/// Errors where nothing may be written to a destination.
pub(super) fn check(files: &ModelFiles, out: &Path, force: bool) -> Result<(), QuantizeError> {
    name_of(out)?;
    match (out.symlink_metadata().is_ok(), force) {
        (false, _) => Ok(()),
        (true, false) => Err(QuantizeError::Exists(out.display().to_string())),
        (true, true) => replaceable(files, out),
    }
}

/// Whether a directory may be replaced: it is a model or empty, and not the source or around it.
fn replaceable(files: &ModelFiles, out: &Path) -> Result<(), QuantizeError> {
    let protected = |reason| Err(QuantizeError::Protected { path: out.display().to_string(), reason });
    if !out.symlink_metadata().map_err(io(out))?.is_dir() {
        return protected("it is not a directory");
    }
    if let ModelFiles::Dir(source) = files {
        let source = source.canonicalize().map_err(io(source))?;
        if source.starts_with(out.canonicalize().map_err(io(out))?) {
            return protected("the source lies in it");
        }
    }
    let empty = out.read_dir().map_err(io(out))?.next().is_none();
    if !empty && !out.join("config.json").is_file() {
        return protected("it is neither empty nor a model (it has no config.json)");
    }
    Ok(())
}
