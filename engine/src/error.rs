//! The engine's error: every failure that a command can meet, with a hint where one helps.

use ocelli_kernels::{KernelError, ShapeError};

use crate::files::{FileError, ModelFiles};
use crate::hub::HubError;
use crate::image::ImageError;
use crate::sample::ParamError;
use crate::text::TextError;
use crate::vlm::{Gives, Model};
use crate::weights::WeightError;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A kernel refused its operands or failed, in the module at `path`.
    #[error("{path}: {source}")]
    Kernel {
        /// Path of the module in the model.
        path: String,
        /// The reason.
        source: KernelError,
    },
    /// A device cannot be used.
    #[error(transparent)]
    Device(#[from] KernelError),
    /// A file of the model cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Weights cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// A model cannot be found or downloaded.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A picture cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Tokenizer or chat template.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A parameter of generation is out of range.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// A configuration that no model code here can run.
    #[error("{path}: {reason}")]
    Config {
        /// The file.
        path: String,
        /// What is wrong or missing.
        reason: String,
    },
    /// A model of another kind than the one that is asked for.
    #[error(
        "{path}: expected a model that gives {expected}, found one of family {family}, which gives {found}"
    )]
    OtherKind {
        /// The file that says so.
        path: String,
        /// The model's family.
        family: &'static str,
        /// What is asked for.
        expected: Gives,
        /// What the model gives.
        found: Gives,
    },
    /// An adapter cannot be used.
    #[error("adapter {name}: {reason}")]
    Adapter {
        /// Its folder or name.
        name: String,
        /// What is wrong or missing.
        reason: String,
    },
    /// Training cannot go on.
    #[error("{0}")]
    Train(String),
    /// A request that the model cannot take.
    #[error("{0}")]
    Request(String),
    /// A prompt with more tokens than the model has positions for.
    #[error("prompt: expected at most {limit} tokens, found {found}")]
    PromptTooLong {
        /// Most tokens of a prompt.
        limit: usize,
        /// Tokens of this one.
        found: usize,
    },
    /// The form of an answer cannot be used.
    #[error("the answer's form: {0}")]
    Grammar(String),
    /// The model gave logits or vectors that are no numbers, or infinite: no token can be chosen.
    #[error("logits or vectors: expected finite numbers, found NaN or infinity")]
    NotNumbers,
    /// A file or folder of stored features.
    #[error("{path}: {error}")]
    Store {
        /// The file.
        path: String,
        /// The reason.
        error: std::io::Error,
    },
    /// The thread that answers requests is gone.
    #[error("the thread that answers requests has ended: {0}")]
    Worker(String),
    /// The device was lost, or did not answer, under this request or an earlier one.
    #[error("the device cannot be used any more: {0}")]
    DeviceGone(String),
    /// The request was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl From<ShapeError> for Error {
    fn from(error: ShapeError) -> Self {
        Self::Device(error.into())
    }
}

impl Error {
    /// Whether the device cannot be used any more: everything else that is asked of it fails too.
    #[must_use]
    pub const fn ends_device(&self) -> bool {
        match self {
            Self::Kernel { source, .. } | Self::Device(source) => source.ends_device(),
            Self::DeviceGone(_) => true,
            _ => false,
        }
    }

    /// Whether there was too little memory for what was asked: something smaller may succeed.
    #[must_use]
    pub const fn is_out_of_memory(&self) -> bool {
        matches!(
            self,
            Self::Kernel { source: KernelError::OutOfMemory { .. }, .. }
                | Self::Device(KernelError::OutOfMemory { .. })
        )
    }

    /// That `model`, whose files these are, does not give what is asked for.
    #[must_use]
    pub fn other_kind(files: &ModelFiles, model: &Model, expected: Gives) -> Self {
        let (family, found) = (model.info().family, model.gives());
        Self::OtherKind { path: files.describe("config.json"), family, expected, found }
    }

    /// What the user can do about it, in one line.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Image(error) => error.hint().map(str::to_owned),
            Self::Hub(error) => error.hint(),
            Self::File(error)
            | Self::Text(TextError::File(error))
            | Self::Weights(WeightError::File(error)) => error.hint().map(str::to_owned),
            Self::Text(error) => error.hint().map(str::to_owned),
            Self::NotNumbers => Some(
                "the weights, or the values that pictures become, may be damaged; `ocelli verify` compares a model with a reference"
                    .into(),
            ),
            Self::Kernel { source, .. } | Self::Device(source) => match source {
                KernelError::OutOfMemory { .. } => Some(
                    "a smaller picture, `--processor do_image_splitting=false` or fewer tokens need less"
                        .into(),
                ),
                KernelError::Lost { .. } | KernelError::Timeout { .. } => Some(NEW_PROCESS.into()),
                _ => None,
            },
            Self::DeviceGone(_) => Some(NEW_PROCESS.into()),
            _ => None,
        }
    }
}

/// What there is to do about a device that is lost to a process.
const NEW_PROCESS: &str = "this process cannot use the device again; one that is started anew can, unless the device itself has failed";

/// Result of engine functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_does_is_told_apart() {
        let (device, doing) = ("a GPU".to_owned(), "a pass".to_owned());
        let lost = KernelError::Lost { device: device.clone(), what: "an address".into(), doing };
        let slow = KernelError::Timeout { device: device.clone(), seconds: 60.0, doing: "a pass".into() };
        let inside = |source| Error::Kernel { path: "text.layers.0".into(), source };
        for error in [Error::Device(lost), inside(slow), Error::DeviceGone("why".into())] {
            assert!(error.ends_device() && !error.is_out_of_memory(), "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("started anew")), "{error}");
        }
        let full = || KernelError::OutOfMemory { bytes: 7, device: device.clone() };
        for error in [Error::Device(full()), inside(full())] {
            assert!(error.is_out_of_memory() && !error.ends_device(), "{error}");
        }
        let other = Error::Device(KernelError::Device("a failure".into()));
        assert!(!other.ends_device() && !other.is_out_of_memory());
    }
}
