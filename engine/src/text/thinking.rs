//! The part of an answer in which a model thinks.
//!
//! Models that think mark it by two tokens of their own, such as `<think>` and `</think>`. The first is written by the model or stands
//! at the end of the prompt, where the chat template put it.

use super::Tokenizer;

/// Tokens before and behind thoughts, and whether a line with the name of a channel comes first.
const MARKS: &[(&str, &str, bool)] = &[
    ("<think>", "</think>", false),
    ("[THINK]", "[/THINK]", false),
    ("◁think▷", "◁/think▷", false),
    ("<|channel>", "<channel|>", true),
];

/// Tokens at the end of a prompt among which a template leaves its mark.
const TAIL: usize = 4;

/// Where in an answer a model thinks; follows its tokens.
#[derive(Clone, Debug, Default)]
pub struct Thinking {
    marks: Option<(u32, u32)>,
    inside: bool,
    /// The name of a channel is still to come.
    named: bool,
    at_name: bool,
}

impl Thinking {
    /// At the start of the answer to a prompt.
    #[must_use]
    pub fn after(prompt: &[u32], tokenizer: &Tokenizer) -> Self {
        let find = |&(open, close, named): &(&str, &str, bool)| {
            Some(((tokenizer.token_to_id(open)?, tokenizer.token_to_id(close)?), named))
        };
        let Some((marks, named)) = MARKS.iter().find_map(find) else { return Self::default() };
        let tail = &prompt[prompt.len().saturating_sub(TAIL)..];
        let last = tail.iter().rfind(|&&id| id == marks.0 || id == marks.1);
        let inside = last == Some(&marks.0);
        Self { marks: Some(marks), inside, named, at_name: inside && named }
    }

    /// Whether a token is a mark, which is no part of any text; what comes then is known by [`inside`](Self::inside).
    pub fn turns(&mut self, token: u32) -> bool {
        match self.marks {
            Some((open, close)) if token == if self.inside { close } else { open } => {
                self.inside = !self.inside;
                self.at_name = self.inside && self.named;
                true
            }
            _ => false,
        }
    }

    /// Whether the next tokens are thoughts.
    #[must_use]
    pub fn inside(&self) -> bool {
        self.inside
    }

    /// Text of thoughts without the line that names their channel.
    pub fn unnamed(&mut self, text: &mut String) {
        if !self.at_name {
            return;
        }
        match text.find('\n') {
            Some(end) => {
                text.drain(..=end);
                self.at_name = false;
            }
            None => text.clear(),
        }
    }
}
