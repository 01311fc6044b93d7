//! Why weights cannot be read.

use ocelli_kernels::ShapeError;

use crate::files::FileError;

/// Why a checkpoint, one of its files or one of its tensors cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// A small file beside the weights cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The reason.
        source: std::io::Error,
    },
    /// The file is not what it should be: truncated, hostile or of another kind.
    #[error("{path}: {reason}")]
    Invalid {
        /// The file.
        path: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// There are no safetensors.
    #[error("{path}: expected model.safetensors or model.safetensors.index.json, found neither{}", instead_text(*.instead))]
    NoFile {
        /// The folder.
        path: String,
        /// Weights of another kind that are there.
        instead: Option<&'static str>,
    },
    /// One tensor of the file is not what it should be.
    #[error("{path}: tensor `{tensor}`: {reason}")]
    Tensor {
        /// The file.
        path: String,
        /// The tensor.
        tensor: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// A tensor that the model needs is absent.
    #[error("{path}: no tensor `{tensor}`{}", near_text(.near))]
    Missing {
        /// The checkpoint.
        path: String,
        /// The tensor, with the alternatives that were tried.
        tensor: String,
        /// Names that resemble it, best first.
        near: Vec<String>,
    },
    /// A module's weights are stored in a way that is not built.
    #[error("{path}: `{module}`: {reason}")]
    Unsupported {
        /// The checkpoint.
        path: String,
        /// The module.
        module: String,
        /// What it is and what would be supported.
        reason: String,
    },
}

fn instead_text(found: Option<&str>) -> String {
    found
        .map_or_else(String::new, |found| format!("; `{found}` is not read: convert it to model.safetensors"))
}

fn near_text(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; nearest: {}", near.join(", ")) }
}

impl WeightError {
    pub(super) fn invalid(path: &str, reason: impl Into<String>) -> Self {
        Self::Invalid { path: path.to_owned(), reason: reason.into() }
    }

    pub(super) fn tensor(path: &str, tensor: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_owned(), tensor: tensor.to_owned(), reason: reason.into() }
    }

    pub(super) fn shape(path: &str, tensor: &str, error: &ShapeError) -> Self {
        Self::tensor(path, tensor, error.to_string())
    }
}
