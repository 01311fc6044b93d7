//! Models by name: the embedded demo, a local directory, or a model of the Hugging Face hub.
//!
//! Downloads go through the hub's usual cache (`models--OWNER--NAME/{blobs,snapshots,refs}`), which is shared with
//! the other tools that use it, and follow its usual environment variables; see [`HubConfig::from_env`]. What the hub
//! states of a file, its size and hash, is checked before the file gets its name in the cache.

mod cache;
mod client;
mod config;
mod digest;
mod download;
mod error;
mod fetch;
mod reference;
mod url;

pub use config::HubConfig;
pub use error::HubError;
pub use fetch::{cached, fetch};
pub use reference::{HubId, ModelRef};
pub use url::Endpoint;

/// Told about the progress of a download; every method may do nothing, as those of `()` do.
pub trait DownloadProgress {
    /// The download begins: how many files are needed and absent, and their size in bytes where the hub says so.
    fn begin(&mut self, files: usize, bytes: Option<u64>) {
        let _ = (files, bytes);
    }
    /// A file begins or goes on: `present` of its `size` bytes are there from an earlier attempt.
    fn file(&mut self, name: &str, size: u64, present: u64) {
        let _ = (name, size, present);
    }
    /// More bytes of the current file arrived.
    fn advance(&mut self, bytes: u64) {
        let _ = bytes;
    }
    /// The file is complete.
    fn done(&mut self, name: &str) {
        let _ = name;
    }
    /// Something that the user should know: a retry, or that the cached copy is used because the hub cannot be reached.
    fn notice(&mut self, text: &str) {
        let _ = text;
    }
}

impl DownloadProgress for () {}
