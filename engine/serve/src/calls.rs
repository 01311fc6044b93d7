//! Calls of tools that a model writes into its answer as Qwen's and Hermes' templates teach it: JSON objects with `name` and
//! `arguments`, each between `<tool_call>` and `</tool_call>`.

use serde_json::{Map, Value as Json, json};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub name: String,
    /// JSON.
    pub arguments: String,
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    Text(String),
    Call(Call),
}

/// Finds calls in an answer as it comes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    /// What may be the beginning of a call, or is one.
    held: String,
    inside: bool,
    /// Calls so far.
    pub count: usize,
    /// White space is still to come before any text: that around calls is none of the answer.
    blank: String,
}

impl Calls {
    /// Takes more of the answer and gives what is certain.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        loop {
            if self.inside {
                let Some(end) = self.held.find(CLOSE) else { return parts };
                let whole: String = self.held.drain(..end + CLOSE.len()).collect();
                self.inside = false;
                self.call(&whole, &whole[..end], &mut parts);
            } else if let Some(start) = self.held.find(OPEN) {
                let before: String = self.held.drain(..start).collect();
                self.text(&before, &mut parts);
                self.held.drain(..OPEN.len());
                self.inside = true;
            } else {
                // What may go on to be the mark waits.
                let longest = OPEN.len().min(self.held.len() + 1) - 1;
                let held = (0..=longest).rev().find(|&len| self.held.ends_with(&OPEN[..len])).unwrap_or(0);
                let sure = self.held.len() - held;
                let before: String = self.held.drain(..sure).collect();
                self.text(&before, &mut parts);
                return parts;
            }
        }
    }

    /// What is left at the end. A call that was not closed is read if it is whole.
    pub fn finish(&mut self) -> Vec<Part> {
        let (mut parts, rest) = (Vec::new(), std::mem::take(&mut self.held));
        if std::mem::take(&mut self.inside) {
            self.call(&rest, &rest, &mut parts);
        } else {
            self.text(&rest, &mut parts);
        }
        parts
    }

    fn text(&mut self, text: &str, parts: &mut Vec<Part>) {
        self.blank.push_str(text);
        // Blank lines before a call and behind it are shown only between texts.
        if self.blank.trim().is_empty() {
            return;
        }
        let kept = self.blank.trim_end().len();
        let tail = self.blank.split_off(kept);
        let text = std::mem::replace(&mut self.blank, tail);
        let text = if self.count > 0 { text.trim_start().to_owned() } else { text };
        parts.push(Part::Text(text));
    }

    fn call(&mut self, whole: &str, body: &str, parts: &mut Vec<Part>) {
        match read(body) {
            Some(call) => {
                self.count += 1;
                self.blank.clear();
                parts.push(Part::Call(call));
            }
            // No call: the text as the model wrote it.
            None => parts.push(Part::Text(format!("{OPEN}{whole}"))),
        }
    }
}

fn read(body: &str) -> Option<Call> {
    let Json::Object(mut call) = serde_json::from_str(body.trim()).ok()? else { return None };
    let Some(Json::String(name)) = call.remove("name") else { return None };
    let arguments = match call.remove("arguments").or_else(|| call.remove("parameters")) {
        None | Some(Json::Null) => "{}".into(),
        Some(Json::Object(arguments)) => Json::Object(arguments).to_string(),
        // Some models write them as a text of JSON.
        Some(Json::String(text)) => match serde_json::from_str(&text) {
            Ok(Json::Object(_)) => text,
            _ => return None,
        },
        Some(_) => return None,
    };
    Some(Call { name, arguments })
}

/// A grammar of one call or more of these tools, `(name, schema of the arguments)`. `token`: whether the marks are tokens.
pub(crate) fn grammar(tools: &[(String, Json)], token: bool) -> String {
    let mark = |mark: &str| if token { mark.to_owned() } else { Json::from(mark).to_string() };
    let (open, close) = (mark(OPEN), mark(CLOSE));
    let mut text = format!("start: call (\"\\n\" call)*\ncall: {open} \"\\n\" body \"\\n\" {close}\nbody: ");
    let names: Vec<String> = (0..tools.len()).map(|number| format!("tool_{number}")).collect();
    text += &names.join(" | ");
    text.push('\n');
    for (name, (tool, schema)) in names.iter().zip(tools) {
        let mut schema = match schema {
            Json::Object(fields) if !fields.is_empty() => fields.clone(),
            _ => Map::from_iter([("type".to_owned(), json!("object"))]),
        };
        // References of a schema are from its own root on.
        let shared: Vec<(String, Json)> = ["$defs", "definitions"]
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), schema.remove(key)?)))
            .collect();
        let mut whole = json!({
            "type": "object", "properties": {"name": {"const": tool}, "arguments": schema},
            "required": ["name", "arguments"], "additionalProperties": false,
            "x-guidance": {"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "},
        });
        for (key, value) in shared {
            whole[key] = value;
        }
        text += &format!("{name}: %json {whole}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pieces: &[&str]) -> Vec<Part> {
        let mut calls = Calls::default();
        let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| calls.push(piece)).collect();
        parts.extend(calls.finish());
        // Texts in a row are one.
        let mut all: Vec<Part> = Vec::new();
        for part in parts {
            match (all.last_mut(), part) {
                (Some(Part::Text(before)), Part::Text(text)) => before.push_str(&text),
                (_, part) => all.push(part),
            }
        }
        all
    }

    fn call(name: &str, arguments: &str) -> Part {
        Part::Call(Call { name: name.into(), arguments: arguments.into() })
    }

    fn text(text: &str) -> Part {
        Part::Text(text.into())
    }

    #[test]
    fn calls_are_found_however_they_are_cut() {
        let whole = "I look.\n<tool_call>\n{\"name\": \"find\", \"arguments\": {\"what\": \"a <b>\", \"n\": 2}}\n</tool_call>\n\
                     <tool_call>\n{\"name\": \"stop\"}\n</tool_call>\n";
        let expected = [text("I look."), call("find", r#"{"what":"a <b>","n":2}"#), call("stop", "{}")];
        assert_eq!(of(&[whole]), expected);
        for size in 1..20 {
            let bytes: Vec<&str> =
                whole.as_bytes().chunks(size).map(|piece| std::str::from_utf8(piece).unwrap()).collect();
            assert_eq!(of(&bytes), expected, "{size}");
        }
    }

    #[test]
    fn texts_that_are_no_calls_stay() {
        assert_eq!(of(&["a < b", " <tool", "_box> c  \n"]), [text("a < b <tool_box> c")]);
        assert_eq!(of(&["a <tool_c"]), [text("a <tool_c")]);
        assert_eq!(of(&["  x\n", "y"]), [text("  x\ny")]);
        let broken = "<tool_call>{\"name\": 3}</tool_call>";
        assert_eq!(of(&[broken]), [text(broken)]);
        assert_eq!(of(&["<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>"]).len(), 1);
        // Cut at the limit of tokens, and one whose mark is left out at the end.
        assert_eq!(
            of(&["<tool_call>{\"name\": \"f\", \"argu"]),
            [text("<tool_call>{\"name\": \"f\", \"argu")]
        );
        assert_eq!(of(&["<tool_call>\n{\"name\": \"f\"}\n"]), [call("f", "{}")]);
        assert_eq!(
            of(&["<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call> then"]),
            [call("f", "{\"a\": 1}"), text("then")]
        );
    }
}
