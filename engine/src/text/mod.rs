//! Text: tokenizer, chat templates, streaming detokenization and stop strings.
//!
//! The reference is the behaviour of Hugging Face transformers' `PreTrainedTokenizerFast` and
//! `apply_chat_template`.

mod detokenizer;
mod python;
mod stop;
mod template;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use stop::{StopMatch, StopMatcher};
pub use template::{ChatTemplate, Content, Message, Part, RenderOptions};
pub use tokenizer::Tokenizer;

use crate::files::FileError;

/// What can go wrong with a tokenizer or a chat template.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file of the model cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// `tokenizer.json` is not a tokenizer, or contradicts another file.
    #[error("{path}: {reason}")]
    Tokenizer {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The text could not be tokenized.
    #[error("tokenize: {0}")]
    Encode(String),
    /// The token ids could not be turned into text.
    #[error("detokenize: {0}")]
    Decode(String),
    /// The chat template does not compile or does not render.
    #[error("{path}: chat template: {reason}")]
    Template {
        /// The file that the template came from.
        path: String,
        /// What is wrong, with the line of the template.
        reason: String,
    },
    /// The messages hold an image, but the template takes text alone.
    #[error("{path}: chat template: takes text alone, found a message with an image")]
    NoImages {
        /// The file that the template came from.
        path: String,
    },
}
