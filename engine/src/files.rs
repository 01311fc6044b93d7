//! Where the files of a model come from: a directory, or bytes built into the binary.

use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::json::{self, JsonError};

/// Largest small file (configuration, tokenizer, template) that is read into memory, in bytes.
///
/// The largest published `tokenizer.json` files are below 40 MB; weights never pass through here.
pub const MAX_SMALL_FILE: u64 = 256 << 20;

/// Files of a model beside its configuration and weights, as `save_pretrained` writes them: what a copy of it takes along.
pub const BESIDE_WEIGHTS: &[&str] = &[
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "LICENSE",
];

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
    /// The file is a link to nothing, as in a cache from which something was removed.
    #[error("{path}: a link to {target}, which does not exist")]
    Dangling {
        /// The link.
        path: String,
        /// What it names.
        target: String,
    },
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
    /// The file is not JSON.
    #[error("{path}: invalid JSON: {source}")]
    Json {
        /// The file.
        path: String,
        /// The reason, with line and column.
        source: serde_json::Error,
    },
    /// A field of a JSON file is absent or not what it should be.
    #[error("{path}: {field}: {reason}")]
    Field {
        /// The file.
        path: String,
        /// The field, such as `text_config.hidden_size`.
        field: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// The file is not there, only its place holder for Git LFS.
    #[error("{0}: a Git LFS pointer, not the file itself")]
    LfsPointer(String),
    /// The file is not UTF-8.
    #[error("{path}: not UTF-8 text: {source}")]
    Utf8 {
        /// The file.
        path: String,
        /// The reason.
        source: std::string::FromUtf8Error,
    },
}

impl FileError {
    /// What the user can do about it, as one line.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Dangling { .. } => Some(
                "something was removed from the cache; `--model OWNER/NAME` without HF_HUB_OFFLINE gets it again",
            ),
            Self::LfsPointer(_) => Some("fetch the file itself with `git lfs pull`"),
            _ => None,
        }
    }
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

    /// True when the file exists, or a link of its name that leads nowhere: reading it then says so.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Dir(dir) => {
                let path = dir.join(name);
                path.is_file() || dangling(&path).is_some()
            }
            Self::Embedded { files, .. } => files.iter().any(|(n, _)| *n == name),
        }
    }

    /// The content of a small file, or `None` when there is no such file.
    ///
    /// # Errors
    /// When the file exists but cannot be read, is a link to nothing or is larger than [`MAX_SMALL_FILE`].
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

    /// A JSON file as a typed value, or `None` when there is no such file. Takes what Python takes, see [`json`].
    ///
    /// # Errors
    /// As [`ModelFiles::read`], and when the JSON does not have the shape of `T`.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, FileError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        json::from_slice(&bytes).map(Some).map_err(|error| {
            let path = self.describe(name);
            match error {
                _ if bytes.starts_with(b"version https://git-lfs") => FileError::LfsPointer(path),
                JsonError::Syntax(source) => FileError::Json { path, source },
                JsonError::Shape { field, reason } => FileError::Field { path, field, reason },
            }
        })
    }

    /// A JSON file that must exist, as a typed value.
    ///
    /// # Errors
    /// As [`ModelFiles::json`], and [`FileError::Missing`].
    pub fn require_json<T: DeserializeOwned>(&self, name: &str) -> Result<T, FileError> {
        self.json(name)?.ok_or_else(|| FileError::Missing(self.describe(name)))
    }
}

/// What a link that leads nowhere names; `None` for everything else, also for what does not exist at all.
pub(crate) fn dangling(path: &Path) -> Option<PathBuf> {
    if path.exists() { None } else { std::fs::read_link(path).ok() }
}

/// Fails if a file that cannot be found is a link to nothing.
pub(crate) fn is_absent(path: &Path) -> Result<(), FileError> {
    match dangling(path) {
        Some(target) => Err(FileError::Dangling {
            path: path.display().to_string(),
            target: target.display().to_string(),
        }),
        None => Ok(()),
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let io = |source| FileError::Io { path: path.display().to_string(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return is_absent(path).map(|()| None),
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

    #[test]
    fn json_as_python_reads_it() {
        const FILES: ModelFiles = ModelFiles::Embedded {
            label: "demo",
            files: &[
                ("config.json", b"{\"a\": [1], \"b\": Infinity, \"a\": [2, 3]}"),
                ("lfs.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
            ],
        };
        #[derive(serde::Deserialize, Debug)]
        struct Config {
            a: Vec<u32>,
        }
        assert_eq!(FILES.require_json::<Config>("config.json").unwrap().a, [2, 3]);
        let e =
            FILES.require_json::<std::collections::BTreeMap<String, Vec<u32>>>("config.json").unwrap_err();
        assert!(e.to_string().starts_with("demo:config.json: b: invalid type: map, expected "), "{e}");
        let e = FILES.require_json::<Config>("lfs.json").unwrap_err();
        assert_eq!(e.to_string(), "demo:lfs.json: a Git LFS pointer, not the file itself");
        assert!(e.hint().unwrap().contains("git lfs pull"));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_nothing_is_not_an_absent_file() {
        let dir = std::env::temp_dir().join(format!("ocelli-links-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for (target, name) in [("../../blobs/0", "config.json"), ("b.json", "a.json"), ("there", "link")] {
            std::os::unix::fs::symlink(target, dir.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("a.json", dir.join("b.json")).unwrap();
        std::fs::write(dir.join("there"), "1").unwrap();
        let files = ModelFiles::dir(&dir);
        let e = files.text("config.json").unwrap_err();
        let expected =
            format!("{}/config.json: a link to ../../blobs/0, which does not exist", dir.display());
        assert_eq!(e.to_string(), expected);
        assert!(e.hint().unwrap().contains("HF_HUB_OFFLINE"));
        assert_eq!(files.json::<u32>("config.json").unwrap_err().to_string(), expected);
        assert_eq!(files.require("config.json").unwrap_err().to_string(), expected);
        assert!(files.contains("config.json"), "so that whoever asks first reads, and meets the error");
        assert!(files.read("a.json").is_err(), "links in a circle");
        assert_eq!(files.json::<u32>("link").unwrap(), Some(1));
        assert!(files.read("absent.json").unwrap().is_none() && !files.contains("absent.json"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
