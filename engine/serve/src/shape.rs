//! How answers are written: as chat completions, or as completions of text.

use ocelli_engine::sample::Logprobs;
use ocelli_engine::scheduler::{Answer, FinishReason};
use ocelli_engine::text::Tokenizer;
use serde_json::{Value as Json, json};

use crate::answer::finish;
use crate::calls::{Call, Calls, Part};
use crate::likely;

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
    /// What names tokens, where their log probabilities are told.
    pub words: Option<Tokenizer>,
    /// Whether calls of tools are looked for.
    pub tools: bool,
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

    /// How likely a token was, as `more` of an answer without text. `offset`: characters of the answer before it.
    pub fn likely(&self, number: usize, of: &Logprobs, offset: usize) -> Option<Json> {
        let words = self.words.as_ref()?;
        let of = std::slice::from_ref(of);
        let (mut more, likely) = match self.chat {
            true => (self.more(number, "", false), likely::of_chat(words, of)),
            false => (self.piece(number, "", None), likely::of_text(words, of, offset)),
        };
        more["choices"][0]["logprobs"] = likely;
        Some(more)
    }

    /// A call of a tool, the `index`th of its answer.
    pub fn call(&self, number: usize, index: usize, call: &Call) -> Json {
        let mut call = self.tool_call(number, index, call);
        call["index"] = json!(index);
        self.delta(number, json!({"tool_calls": [call]}), None)
    }

    fn tool_call(&self, number: usize, index: usize, call: &Call) -> Json {
        let id = self.id.rsplit('-').next().unwrap_or_default();
        json!({
            "id": format!("call_{id}_{number}_{index}"), "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        })
    }

    /// The last part of an answer's stream, which had so many calls.
    pub fn end(&self, number: usize, answer: &Answer, calls: usize) -> Json {
        let reason = Some(reason(answer, calls));
        if self.chat { self.delta(number, json!({}), reason) } else { self.piece(number, "", reason) }
    }

    /// A whole answer.
    pub fn choice(&self, number: usize, answer: &Answer) -> Json {
        let (mut text, mut calls) = (answer.text.clone(), Vec::new());
        if self.tools {
            let mut reader = Calls::default();
            let mut parts = reader.push(&text);
            parts.extend(reader.finish());
            text.clear();
            for part in parts {
                match part {
                    Part::Text(more) => text += &more,
                    Part::Call(call) => calls.push(self.tool_call(number, calls.len(), &call)),
                }
            }
        }
        let reason = reason(answer, calls.len());
        let mut choice = json!({"index": number, "logprobs": null, "finish_reason": reason});
        if let Some(words) = &self.words {
            choice["logprobs"] = match self.chat {
                true => likely::of_chat(words, &answer.logprobs),
                false => likely::of_text(words, &answer.logprobs, 0),
            };
        }
        if self.chat {
            let content = if text.is_empty() && !calls.is_empty() { Json::Null } else { json!(text) };
            choice["message"] = json!({"role": "assistant", "content": content, "refusal": null});
            if !calls.is_empty() {
                choice["message"]["tool_calls"] = json!(calls);
            }
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

/// Why an answer with so many calls ended.
fn reason(answer: &Answer, calls: usize) -> &'static str {
    match answer.finish_reason {
        FinishReason::Stop if calls > 0 => "tool_calls",
        reason => finish(reason),
    }
}
