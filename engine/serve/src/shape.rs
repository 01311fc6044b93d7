//! How answers are written: as chat completions, or as completions of text.

use ocelli_engine::scheduler::Answer;
use serde_json::{Value as Json, json};

use crate::answer::finish;

/// How answers are written.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// As messages, or as texts.
    pub chat: bool,
    pub id: String,
    /// Unix time in seconds.
    pub created: u64,
    pub model: String,
    /// What each text begins with, where completions repeat their prompts.
    pub echo: Vec<String>,
}

impl Shape {
    /// What all objects have.
    pub fn head(&self, chunk: bool) -> Json {
        let object = match (self.chat, chunk) {
            (true, true) => "chat.completion.chunk",
            (true, false) => "chat.completion",
            (false, _) => "text_completion",
        };
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model})
    }

    fn chunk(&self, choices: Json) -> Json {
        let mut chunk = self.head(true);
        chunk["choices"] = choices;
        chunk
    }

    /// A part of the stream without choices.
    pub fn nothing(&self) -> Json {
        self.chunk(json!([]))
    }

    fn delta(&self, number: usize, delta: Json, reason: Option<&str>) -> Json {
        self.chunk(json!([{"index": number, "delta": delta, "logprobs": null, "finish_reason": reason}]))
    }

    fn piece(&self, number: usize, text: &str, reason: Option<&str>) -> Json {
        self.chunk(json!([{"index": number, "text": text, "logprobs": null, "finish_reason": reason}]))
    }

    fn echoed(&self, number: usize) -> &str {
        self.echo.get(number).map_or("", String::as_str)
    }

    /// The first part of an answer's stream, if there is one.
    pub fn begin(&self, number: usize) -> Option<Json> {
        match (self.chat, self.echoed(number)) {
            (true, _) => Some(self.delta(number, json!({"role": "assistant", "content": ""}), None)),
            (false, "") => None,
            (false, echo) => Some(self.piece(number, echo, None)),
        }
    }

    /// More of an answer.
    pub fn more(&self, number: usize, text: &str, thought: bool) -> Json {
        let field = if thought { "reasoning_content" } else { "content" };
        match (self.chat, thought) {
            (true, _) => self.delta(number, json!({field: text}), None),
            (false, false) => self.piece(number, text, None),
            (false, true) => {
                let mut piece = self.piece(number, "", None);
                piece["choices"][0][field] = json!(text);
                piece
            }
        }
    }

    /// The last part of an answer's stream.
    pub fn end(&self, number: usize, answer: &Answer) -> Json {
        let reason = Some(finish(answer.finish_reason));
        if self.chat { self.delta(number, json!({}), reason) } else { self.piece(number, "", reason) }
    }

    /// A whole answer.
    pub fn choice(&self, number: usize, answer: &Answer) -> Json {
        let mut choice =
            json!({"index": number, "logprobs": null, "finish_reason": finish(answer.finish_reason)});
        if self.chat {
            choice["message"] = json!({"role": "assistant", "content": answer.text, "refusal": null});
        } else {
            choice["text"] = json!(format!("{}{}", self.echoed(number), answer.text));
        }
        if let Some(thoughts) = &answer.reasoning {
            let place = if self.chat { &mut choice["message"] } else { &mut choice };
            place["reasoning_content"] = json!(thoughts);
        }
        choice
    }
}
