//! Text: tokenizer, chat templates, streaming detokenization and stop strings.
//!
//! The reference is the behaviour of Hugging Face transformers' `PreTrainedTokenizerFast` and
//! `apply_chat_template`.

mod added;
mod conversation;
mod detokenizer;
mod forms;
mod methods;
mod python;
mod source;
mod stop;
mod template;
mod thinking;
mod tokenizer;

pub use conversation::Conversation;
pub use detokenizer::Detokenizer;
pub use stop::{StopMatch, StopMatcher};
pub use template::{ChatTemplate, Content, Message, Part, RenderOptions};
pub use thinking::Thinking;
pub use tokenizer::{Reading, Tokenizer};

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
    /// The chat template refuses the messages, in its own words.
    #[error("{path}: chat template: {reason}")]
    Refused {
        /// The file that the template came from.
        path: String,
        /// What it says, with the line of the template.
        reason: String,
    },
    /// The messages hold an image, but the template takes text alone.
    #[error("{path}: chat template: takes text alone, found a message with an image")]
    NoImages {
        /// The file that the template came from.
        path: String,
        /// Where else a template was looked for, and what the family does about images.
        hint: Option<String>,
    },
    /// A conversation is not written as one.
    #[error("{name}: {reason}")]
    Conversation {
        /// Its file, as the caller gave it.
        name: String,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// A template's variable is not written as one.
    #[error("template variable: expected NAME=VALUE, found {found:?}")]
    Variable {
        /// What was given.
        found: String,
    },
}

impl TextError {
    /// What the user can do about it, in one line.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::NoImages { hint, .. } => hint.as_deref(),
            Self::Refused { .. } => Some(
                "the template itself says so: other messages, with or without a system message or pictures, may be taken",
            ),
            _ => None,
        }
    }
}
