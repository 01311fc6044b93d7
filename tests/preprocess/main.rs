//! Preprocessing against the reference: resized pixels, decoded pixels, processors and prompts, and hostile pictures.

mod decode;
mod fuzz;
mod processor;
mod resize;

use std::path::PathBuf;

/// A file or folder of the golden data.
fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(path)
}
