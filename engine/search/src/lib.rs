//! An index of the pictures of a folder by their vectors, and what is found in it.
//!
//! An [`Index`] is one SQLite file: what the model is, a row for each picture, and a vector for each content. [`update`] makes it what
//! the folder is; [`Matrix`] has all its vectors in memory, in which the nearest are found exactly.
//!
//! Neither usearch nor sqlite-vec does that: among 100,000 vectors of 768 numbers an exact query takes 23 ms here and 287 ms in sqlite-vec, and a
//! graph of usearch answers in half a millisecond, with 99.6% of the true ten nearest, once it was built for 156 s (`bench/peers/vectors.py`).
//! Below some hundred thousand pictures the vector of a picture takes longer to compute than either, and a file that is exact needs
//! nothing kept in step; an approximate index would begin to pay beyond that.

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
