//! Tokenizers, chat templates and streaming detokenization against transformers' results.

mod added;
mod golden;
mod lookup;
mod published;
mod real;
mod streaming;

use std::path::{Path, PathBuf};

use ocelli_engine::files::ModelFiles;
use ocelli_engine::text::Tokenizer;

/// Model directories with `inputs.json`: whole models, and tokenizers alone (`golden/text`).
pub fn golden_dirs() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(root.join("text"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    dirs.extend([root.join("smolvlm"), root.join("idefics3")]);
    dirs.sort();
    dirs
}

/// The demo model.
pub fn demo_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/model")
}

/// The tokenizer of a directory.
pub fn tokenizer(dir: &Path) -> Tokenizer {
    Tokenizer::load(&ModelFiles::dir(dir)).unwrap_or_else(|e| panic!("{e}"))
}
