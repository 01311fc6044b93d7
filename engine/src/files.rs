//! Where the files of a model come from: a directory, or bytes built into the binary.

use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;

/// Largest small file (configuration, tokenizer, template) that is read into memory, in bytes.
///
/// The largest published `tokenizer.json` files are below 40 MB; weights never pass through here.
pub const MAX_SMALL_FILE: u64 = 256 << 20;

/// The files of one model, by name relative to its root.
#[derive(Clone, Debug)]
pub enum ModelFiles {
    /// A directory on disk, as `save_pretrained` writes it.
    Dir(PathBuf),
    /// Files built into the binary, as (name, content) pairs.
    Embedded {
        /// What error messages call this set of files, e.g. `demo`.
        label: &'static str,
        /// The files.
        files: &'static [(&'static str, &'static [u8])],
    },
}

/// Why a file of a model cannot be read.
#[derive(Debug, Error)]
pub enum FileError {
    /// The file is needed and absent.
    #[error("{0}: no such file")]
    Missing(String),
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The reason.
        source: std::io::Error,
    },
    /// The file is larger than [`MAX_SMALL_FILE`].
    #[error("{path}: expected at most {MAX_SMALL_FILE} bytes, found {found}")]
    TooLarge {
        /// The file.
        path: String,
        /// Its size in bytes.
        found: u64,
    },
    /// The file is not the JSON that it should be.
    #[error("{path}: invalid JSON: {source}")]
    Json {
        /// The file.
        path: String,
        /// The reason, with line and column.
        source: serde_json::Error,
    },
    /// The file is not UTF-8.
    #[error("{path}: not UTF-8 text: {source}")]
    Utf8 {
        /// The file.
        path: String,
        /// The reason.
        source: std::string::FromUtf8Error,
    },
}

impl ModelFiles {
    /// The files of a directory; that it exists is checked by the first read.
    pub fn dir(path: impl Into<PathBuf>) -> Self {
        Self::Dir(path.into())
    }

    /// How messages name a file: its path, or `label:name` for an embedded one.
    pub fn describe(&self, name: &str) -> String {
        match self {
            Self::Dir(dir) => dir.join(name).display().to_string(),
            Self::Embedded { label, .. } => format!("{label}:{name}"),
        }
    }

    /// The path of a file on disk, or `None` for embedded files. The file need not exist.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        match self {
            Self::Dir(dir) => Some(dir.join(name)),
            Self::Embedded { .. } => None,
        }
    }

    /// True when the file exists.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Dir(dir) => dir.join(name).is_file(),
            Self::Embedded { files, .. } => files.iter().any(|(n, _)| *n == name),
        }
    }

    /// The content of a small file, or `None` when there is no such file.
    ///
    /// # Errors
    /// When the file exists but cannot be read, or is larger than [`MAX_SMALL_FILE`].
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, FileError> {
        match self {
            Self::Dir(dir) => read_file(&dir.join(name)).map(|b| b.map(Cow::Owned)),
            Self::Embedded { files, .. } => {
                Ok(files.iter().find(|(n, _)| *n == name).map(|(_, b)| Cow::Borrowed(*b)))
            }
        }
    }

    /// The content of a small file that must exist.
    ///
    /// # Errors
    /// As [`ModelFiles::read`], and [`FileError::Missing`].
    pub fn require(&self, name: &str) -> Result<Cow<'static, [u8]>, FileError> {
        self.read(name)?.ok_or_else(|| FileError::Missing(self.describe(name)))
    }

    /// The text of a small file, or `None` when there is no such file.
    ///
    /// # Errors
    /// As [`ModelFiles::read`], and when the file is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<String>, FileError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        String::from_utf8(bytes.into_owned())
            .map(Some)
            .map_err(|source| FileError::Utf8 { path: self.describe(name), source })
    }

    /// A JSON file as a typed value, or `None` when there is no such file.
    ///
    /// # Errors
    /// As [`ModelFiles::read`], and when the JSON does not have the shape of `T`.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, FileError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| FileError::Json { path: self.describe(name), source })
    }

    /// A JSON file that must exist, as a typed value.
    ///
    /// # Errors
    /// As [`ModelFiles::json`], and [`FileError::Missing`].
    pub fn require_json<T: DeserializeOwned>(&self, name: &str) -> Result<T, FileError> {
        self.json(name)?.ok_or_else(|| FileError::Missing(self.describe(name)))
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let io = |source| FileError::Io { path: path.display().to_string(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    };
    let length = file.metadata().map_err(io)?.len();
    let too_large = |found| FileError::TooLarge { path: path.display().to_string(), found };
    if length > MAX_SMALL_FILE {
        return Err(too_large(length));
    }
    // A pipe or device reports length 0: the limit also bounds what is read.
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(MAX_SMALL_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_SMALL_FILE {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: ModelFiles = ModelFiles::Embedded {
        label: "demo",
        files: &[("config.json", b"{\"a\": 1}"), ("bad.json", b"{"), ("latin1", b"\xe9")],
    };

    #[test]
    fn embedded_files() {
        assert!(FILES.contains("config.json") && !FILES.contains("nothing"));
        assert_eq!(FILES.require_json::<serde_json::Value>("config.json").unwrap()["a"], 1);
        assert!(FILES.read("nothing").unwrap().is_none());
        assert_eq!(FILES.require("nothing").unwrap_err().to_string(), "demo:nothing: no such file");
        let e = FILES.json::<serde_json::Value>("bad.json").unwrap_err().to_string();
        assert!(e.starts_with("demo:bad.json: invalid JSON: EOF"), "{e}");
        assert!(FILES.text("latin1").unwrap_err().to_string().starts_with("demo:latin1: not UTF-8"));
    }

    #[test]
    fn directory() {
        let dir = std::env::temp_dir().join(format!("ocelli-files-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.json"), b"[1, 2]").unwrap();
        let files = ModelFiles::dir(&dir);
        assert_eq!(files.json::<Vec<u32>>("config.json").unwrap(), Some(vec![1, 2]));
        assert!(files.json::<Vec<u32>>("absent.json").unwrap().is_none());
        let e = files.require("absent.json").unwrap_err().to_string();
        assert!(e.starts_with(&dir.display().to_string()) && e.ends_with("absent.json: no such file"), "{e}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
