//! An index of the pictures of a folder by their vectors, and what is found in it.
//!
//! An [`Index`] is one SQLite file: what the model is, a row for each picture, and a vector for each content. [`update`] makes it what
//! the folder is; [`Matrix`] has all its vectors in memory, in which the nearest are found exactly.

mod error;
mod find;
mod index;
mod sheet;
mod update;

pub use error::SearchError;
pub use find::{Hit, Matrix};
pub use index::{About, Index, Live};
pub use sheet::{Found, Query, page, shown, thumbnail};
pub use update::{Progress, Report, Settings, update};

/// Result of the functions here.
pub type Result<T, E = SearchError> = std::result::Result<T, E>;
