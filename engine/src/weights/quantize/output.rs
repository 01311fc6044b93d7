//! A directory that appears whole or not at all.

use std::path::{Path, PathBuf};

use super::QuantizeError;
use crate::files::ModelFiles;

/// A directory in work beside its destination; removed when dropped before [`commit`](Self::commit).
pub(super) struct Output {
    temp: PathBuf,
    old: PathBuf,
    out: PathBuf,
    committed: bool,
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> QuantizeError {
    let path = path.display().to_string();
    move |source| QuantizeError::Io { path: path.clone(), source }
}

impl Output {
    /// Checks the destination and makes the directory to work in.
    pub fn begin(files: &ModelFiles, out: &Path, force: bool) -> Result<Self, QuantizeError> {
        let Some(name) = out.file_name().and_then(|name| name.to_str()) else {
            let path = out.display();
            return Err(QuantizeError::Options(format!("{path}: expected the name of a new directory")));
        };
        if out.symlink_metadata().is_ok() {
            if !force {
                return Err(QuantizeError::Exists(out.display().to_string()));
            }
            replaceable(files, out)?;
        }
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(parent).map_err(io(parent))?;
        let process = std::process::id();
        let temp = parent.join(format!(".{name}.partial-{process}"));
        let old = parent.join(format!(".{name}.old-{process}"));
        std::fs::create_dir(&temp).map_err(io(&temp))?;
        Ok(Self { temp, old, out: out.to_owned(), committed: false })
    }

    /// Where a file of the directory is meanwhile.
    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.join(name)
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
        let replaces = self.out.symlink_metadata().is_ok();
        if replaces {
            std::fs::rename(&self.out, &self.old).map_err(io(&self.out))?;
        }
        if let Err(e) = std::fs::rename(&self.temp, &self.out) {
            if replaces && let Err(e) = std::fs::rename(&self.old, &self.out) {
                tracing::warn!("the former {} is now {}: {e}", self.out.display(), self.old.display());
            }
            return Err(io(&self.out)(e));
        }
        self.committed = true;
        if replaces {
            std::fs::remove_dir_all(&self.old).map_err(io(&self.old))?;
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.committed
            && let Err(e) = std::fs::remove_dir_all(&self.temp)
        {
            tracing::warn!("{} could not be removed: {e}", self.temp.display());
        }
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
