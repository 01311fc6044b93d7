//! Conversations as they are written in JSON: the messages of OpenAI's chat completions.
//!
//! A conversation is a list of messages, or an object with them as `messages`; beside them `tools` and `chat_template_kwargs` go to the
//! chat template. A message has a `role` and as `content` a text, or a list of parts:
//!
//! ```json
//! [{"role": "user", "content": [
//!     {"type": "image_url", "image_url": {"url": "photo.jpg"}},
//!     {"type": "text", "text": "What is this?"}]}]
//! ```
//!
//! Other fields of messages (`tool_calls`, `reasoning_content`, ...) go to the template as they are, but that the `arguments` of tool
//! calls become the object that their JSON says, as templates expect it.

use serde_json::{Map, Value as Json};

use super::{Content, Message, Part, TextError};

/// Messages and the pictures that they place, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// The messages.
    pub messages: Vec<Message>,
    /// Where each picture is: a path, or an address such as `data:image/png;base64,...`.
    pub pictures: Vec<String>,
    /// The parts that those are: `messages[2].content[0]`.
    pub places: Vec<String>,
    /// Variables for the chat template.
    pub variables: Map<String, Json>,
}

impl Conversation {
    /// Reads a conversation; `name` is what errors call it.
    ///
    /// # Errors
    /// What is not as it should be, with its place: `messages[2].content[0].type`.
    pub fn read(name: &str, json: &[u8]) -> Result<Self, TextError> {
        let bad = |reason: String| TextError::Conversation { name: name.to_owned(), reason };
        let value: Json = serde_json::from_slice(json).map_err(|e| bad(format!("not JSON: {e}")))?;
        Self::from_json(name, value)
    }

    /// As [`read`](Self::read), of JSON that is read already.
    ///
    /// # Errors
    /// As there.
    pub fn from_json(name: &str, value: Json) -> Result<Self, TextError> {
        let bad = |reason: String| TextError::Conversation { name: name.to_owned(), reason };
        let mut out = Self::default();
        let messages = match value {
            Json::Array(messages) => messages,
            Json::Object(mut object) => {
                if let Some(tools) = object.remove("tools").filter(|tools| !tools.is_null()) {
                    out.variables.insert("tools".into(), tools);
                }
                match object.remove("chat_template_kwargs") {
                    None | Some(Json::Null) => {}
                    Some(Json::Object(more)) => out.variables.extend(more),
                    Some(other) => return Err(bad(unlike("chat_template_kwargs", "an object", &other))),
                }
                match object.remove("messages") {
                    Some(Json::Array(messages)) => messages,
                    other => return Err(bad(unlike("messages", "a list", &other.unwrap_or_default()))),
                }
            }
            other => {
                return Err(bad(unlike("the file", "a list of messages or an object with them", &other)));
            }
        };
        for (i, message) in messages.into_iter().enumerate() {
            out.add(format!("messages[{i}]"), message).map_err(bad)?;
        }
        if out.messages.is_empty() {
            return Err(bad("expected at least one message, found none".into()));
        }
        Ok(out)
    }

    fn add(&mut self, at: String, message: Json) -> Result<(), String> {
        let Json::Object(mut fields) = message else { return Err(unlike(&at, "an object", &message)) };
        let role = match fields.remove("role") {
            Some(Json::String(role)) => role,
            other => return Err(unlike(&format!("{at}.role"), "a text", &other.unwrap_or_default())),
        };
        let content = match fields.remove("content") {
            // As a call of a tool has it.
            None | Some(Json::Null) => Content::Text(String::new()),
            Some(Json::String(text)) => Content::Text(text),
            Some(Json::Array(parts)) => {
                let part = |(i, part)| self.part(&format!("{at}.content[{i}]"), part);
                Content::Parts(parts.into_iter().enumerate().map(part).collect::<Result<_, String>>()?)
            }
            Some(other) => return Err(unlike(&format!("{at}.content"), "a text or a list of parts", &other)),
        };
        for call in fields.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten() {
            if let Some(arguments) = call.pointer_mut("/function/arguments")
                && let Some(object) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
            {
                *arguments = Json::Object(object);
            }
        }
        self.messages.push(Message { role, content, more: fields });
        Ok(())
    }

    fn part(&mut self, at: &str, part: Json) -> Result<Part, String> {
        let field = |name: &str| part.get(name).filter(|value| !value.is_null());
        let text = |name: &str| match field(name) {
            Some(Json::String(text)) => Ok(text.clone()),
            other => Err(unlike(&format!("{at}.{name}"), "a text", other.unwrap_or(&Json::Null))),
        };
        match text("type")?.as_str() {
            "text" | "input_text" | "output_text" => Ok(Part::Text { text: text("text")? }),
            // The name of the type is that of the field in most layouts; what it holds is an address or an object with one.
            "image_url" | "image" | "input_image" => {
                let names = ["image_url", "image", "path", "url"];
                let Some((name, value)) = names.iter().find_map(|name| Some((name, field(name)?))) else {
                    return Err(format!("{at}: expected `image_url` with the picture's address, found none"));
                };
                let address = value.as_str().or_else(|| value.get("url")?.as_str());
                let Some(address) = address else {
                    return Err(unlike(&format!("{at}.{name}"), "an address or an object with `url`", value));
                };
                self.pictures.push(address.to_owned());
                self.places.push(at.to_owned());
                Ok(Part::Image)
            }
            other => Err(format!("{at}.type: expected `text` or `image_url`, found `{}`", short(other))),
        }
    }
}

/// What is at a place in place of what is expected there.
fn unlike(at: &str, expected: &str, found: &Json) -> String {
    let found = match found {
        Json::Null => "nothing".into(),
        Json::Array(_) => "a list".into(),
        Json::Object(_) => "an object".into(),
        other => format!("`{}`", short(&other.to_string())),
    };
    format!("{at}: expected {expected}, found {found}")
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Json) -> Result<Conversation, String> {
        Conversation::read("chat.json", value.to_string().as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn pictures_anywhere() {
        let text = |text: &str| Part::Text { text: text.into() };
        let read = read(&json!({
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [
                    {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "1.png", "detail": "low"}},
                    {"type": "image_url", "image_url": "data:image/png;base64,AA=="}]},
                {"role": "assistant", "content": null, "tool_calls": [
                    {"function": {"name": "f", "arguments": "{\"x\": 1}"}}, {"function": {"name": "g", "arguments": "no JSON"}}]},
                {"role": "user", "content": [{"type": "image", "image": "2.png"}, {"type": "text", "text": "b"}]}],
            "tools": [{"type": "function"}], "chat_template_kwargs": {"enable_thinking": false}, "model": "any"
        }))
        .unwrap();
        assert_eq!(read.pictures, ["1.png", "data:image/png;base64,AA==", "2.png"]);
        assert_eq!(
            read.places,
            ["messages[1].content[1]", "messages[1].content[2]", "messages[3].content[0]"]
        );
        let contents: Vec<_> = read.messages.iter().map(|message| &message.content).collect();
        assert_eq!(contents[0], &Content::Text("Be brief.".into()));
        assert_eq!(contents[1], &Content::Parts(vec![text("a"), Part::Image, Part::Image]));
        assert_eq!(contents[3], &Content::Parts(vec![Part::Image, text("b")]));
        let calls = &read.messages[2].more["tool_calls"];
        assert_eq!(calls[0]["function"]["arguments"], json!({"x": 1}));
        assert_eq!(calls[1]["function"]["arguments"], json!("no JSON"));
        assert_eq!(
            Json::from(read.variables),
            json!({"tools": [{"type": "function"}], "enable_thinking": false})
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (value, parts) in [
            (json!(3), ["the file", "`3`"]),
            (json!({}), ["messages", "found nothing"]),
            (json!([]), ["at least one", "none"]),
            (json!(["x"]), ["messages[0]", "an object"]),
            (json!([{"content": "x"}]), ["messages[0].role", "nothing"]),
            (json!([{"role": "user", "content": 3}]), ["messages[0].content", "`3`"]),
            (json!([{"role": "user", "content": [{"text": "x"}]}]), ["content[0].type", "nothing"]),
            (json!([{"role": "user", "content": [{"type": "text"}]}]), ["content[0].text", "nothing"]),
            (json!([{"role": "user", "content": [{"type": "audio"}]}]), ["content[0].type", "`audio`"]),
            (json!([{"role": "user", "content": [{"type": "image_url"}]}]), ["content[0]", "found none"]),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
                ["image_url", "an object"],
            ),
        ] {
            let error = read(&value).unwrap_err();
            assert!(
                error.starts_with("chat.json: ") && parts.iter().all(|part| error.contains(part)),
                "{error}"
            );
        }
        let error = Conversation::read("-", b"{").unwrap_err().to_string();
        assert!(error.starts_with("-: not JSON"), "{error}");
    }
}
