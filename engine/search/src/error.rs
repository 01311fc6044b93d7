//! Why an index cannot be used.

use std::path::Path;

/// Why an index cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SearchError {
    /// There is no file.
    #[error("{0}: no such index")]
    Missing(String),
    /// The file is something else.
    #[error("{path}: expected an index of ocelli, found {found}")]
    Foreign {
        /// The file.
        path: String,
        /// What it is.
        found: String,
    },
    /// The file is an index, but not whole.
    #[error("{path}: damaged: {reason}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The index is of another model, or of another folder, than what is asked for.
    #[error("{path}: {field}: expected {expected}, found {found}")]
    Unlike {
        /// The file.
        path: String,
        /// What differs.
        field: &'static str,
        /// What the index has.
        expected: String,
        /// What is asked for.
        found: String,
    },
    /// The database refused.
    #[error("{path}: {source}")]
    Database {
        /// The file.
        path: String,
        /// The reason.
        source: rusqlite::Error,
    },
    /// A file or folder cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The reason.
        source: std::io::Error,
    },
    /// The model failed.
    #[error(transparent)]
    Engine(#[from] ocelli_engine::Error),
    /// Whoever watched the work asked for its end.
    #[error("interrupted")]
    Interrupted,
}

impl SearchError {
    /// What the user can do about it, as one line.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing(_) => Some("`ocelli index DIR --out IDX` makes one".into()),
            Self::Foreign { .. } => Some("give another name for the index".into()),
            Self::Damaged { .. } => Some("remove the file and make the index anew".into()),
            Self::Unlike { field: "folder", .. } => {
                Some("an index is of one folder; give another name for that of another one".into())
            }
            Self::Unlike { .. } => Some(
                "vectors of different models cannot be compared; give another name for another index".into(),
            ),
            Self::Database { source, .. } if is_busy(source) => {
                Some("another process writes to it; try again later".into())
            }
            Self::Engine(error) => error.hint(),
            _ => None,
        }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }

    /// What a failure of the database means.
    pub(crate) fn database(path: &Path, source: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        let path = path.display().to_string();
        match source.sqlite_error_code() {
            Some(NotADatabase) => Self::Foreign { path, found: "a file that is no database".into() },
            Some(DatabaseCorrupt) => Self::Damaged { path, reason: source.to_string() },
            _ => Self::Database { path, source },
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked))
}
