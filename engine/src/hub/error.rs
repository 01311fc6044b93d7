use std::path::PathBuf;

use thiserror::Error;

use crate::files::FileError;

/// Why a model cannot be found or fetched.
#[derive(Debug, Error)]
pub enum HubError {
    /// The text is neither a path nor a hub id.
    #[error("model {text:?}: {reason}")]
    Reference {
        /// What was given.
        text: String,
        /// Why it is neither.
        reason: String,
    },
    /// A path that does not exist.
    #[error("model {0}: no such directory")]
    MissingPath(PathBuf),
    /// A path to a file.
    #[error("model {0}: expected a directory, found a file")]
    NotADirectory(PathBuf),
    /// A path that is a link to nothing.
    #[error("model {path}: a link to {target}, which does not exist")]
    Dangling {
        /// The link.
        path: PathBuf,
        /// What it names.
        target: PathBuf,
    },
    /// An environment variable has a value that cannot be used.
    #[error("{name}: expected {expected}, found {found:?}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// What it takes.
        expected: &'static str,
        /// Its value.
        found: String,
    },
    /// The hub has no such model, or hides it from us.
    #[error("hub model {id}: no such model at {endpoint}")]
    NotFound {
        /// `OWNER/NAME`.
        id: String,
        /// The hub.
        endpoint: String,
    },
    /// The model exists, the branch, tag or commit does not.
    #[error("hub model {id}: no revision {revision:?}")]
    RevisionNotFound {
        /// `OWNER/NAME`.
        id: String,
        /// What was asked for.
        revision: String,
    },
    /// The hub refuses access: 401 or 403.
    #[error(
        "hub model {id}: access denied by {endpoint} (HTTP {status}): the model is gated, private or absent"
    )]
    Denied {
        /// `OWNER/NAME`.
        id: String,
        /// The hub.
        endpoint: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// Another HTTP error.
    #[error("hub model {id}: {what}: HTTP {status}")]
    Status {
        /// `OWNER/NAME`.
        id: String,
        /// The request.
        what: String,
        /// The status code.
        status: u16,
    },
    /// The hub cannot be reached, or the connection broke and did not come back.
    #[error("hub model {id}: {what}: {reason}")]
    Network {
        /// `OWNER/NAME`.
        id: String,
        /// The request.
        what: String,
        /// What the network said.
        reason: String,
    },
    /// The answer of the hub, or of a host that it names, makes no sense.
    #[error("hub model {id}: {what}: unexpected answer of {reason}")]
    Answer {
        /// `OWNER/NAME`.
        id: String,
        /// The request.
        what: String,
        /// Who answered, and what is wrong.
        reason: String,
    },
    /// Offline, and the cache does not have the model.
    #[error("hub model {id}: not in the cache {cache}, and HF_HUB_OFFLINE forbids to download it")]
    NotCached {
        /// `OWNER/NAME@REVISION`.
        id: String,
        /// The cache directory.
        cache: PathBuf,
    },
    /// Offline, and the cache has only a part of the model.
    #[error(
        "hub model {id}: {file} is not in the cache {snapshot}, and HF_HUB_OFFLINE forbids to download it"
    )]
    Incomplete {
        /// `OWNER/NAME@REVISION`.
        id: String,
        /// The file that is absent.
        file: String,
        /// The snapshot directory.
        snapshot: PathBuf,
    },
    /// The repository is not a model that can be loaded.
    #[error("hub model {id}: {reason}")]
    Repository {
        /// `OWNER/NAME`.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A downloaded file does not have the size that the hub states.
    #[error("hub model {id}: {file}: expected {expected} bytes, found {found}")]
    Size {
        /// `OWNER/NAME`.
        id: String,
        /// The file.
        file: String,
        /// Size by the hub's own account.
        expected: u64,
        /// Size on disk.
        found: u64,
    },
    /// A downloaded file is not the one that the hub states; it is not kept.
    #[error("hub model {id}: {file}: expected content with {expected}, found {found}")]
    Content {
        /// `OWNER/NAME`.
        id: String,
        /// The file.
        file: String,
        /// Kind of hash and its value by the hub's own account.
        expected: String,
        /// Hash of what arrived.
        found: String,
    },
    /// Another process is downloading the same file.
    #[error("hub model {id}: {file}: another process is downloading it (lock {lock})")]
    Busy {
        /// `OWNER/NAME`.
        id: String,
        /// The file.
        file: String,
        /// The lock file.
        lock: PathBuf,
    },
    /// The cache cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A file of the model cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

impl HubError {
    /// What the user can do about it, as one line.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Reference { .. } | Self::MissingPath(_) => {
                Some("a model is a directory, or OWNER/NAME[@REVISION] of the Hugging Face hub".into())
            }
            Self::NotADirectory(path) => {
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
                Some(format!(
                    "give its directory: {}",
                    parent.map_or(".".into(), |p| p.display().to_string())
                ))
            }
            Self::NotFound { .. } => {
                Some("check the spelling; a private model needs HF_TOKEN to be set".into())
            }
            Self::RevisionNotFound { .. } => Some("a revision is a branch, a tag or a commit".into()),
            Self::Denied { id, endpoint, with_token, .. } => Some(if *with_token {
                format!("accept the terms at {endpoint}/{id} with the account that HF_TOKEN belongs to")
            } else {
                format!(
                    "accept the terms at {endpoint}/{id}, then set HF_TOKEN to an access token of that account"
                )
            }),
            Self::NotCached { .. } | Self::Incomplete { .. } => {
                Some("unset HF_HUB_OFFLINE, or pass a local directory".into())
            }
            Self::Network { .. } => Some(
                "check the connection; a download that was cut goes on where it stopped when run again"
                    .into(),
            ),
            Self::Answer { .. } | Self::Content { .. } | Self::Size { .. } => {
                Some("a proxy or the mirror in HF_ENDPOINT may be at fault; try again, or another one".into())
            }
            Self::File(error) => error.hint().map(str::to_owned),
            Self::Busy { .. } => Some("wait for it, then run again".into()),
            _ => None,
        }
    }
}
