//! Chat templates in the manner of published ones against transformers' renderings (`golden/templates/published.py`), and Python's methods
//! (`golden/templates/methods.py`).

use std::path::{Path, PathBuf};

use ocelli_engine::text::{ChatTemplate, Message, RenderOptions, TextError};
use serde_json::{Value, json};

use crate::tokenizer;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn read(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn options(row: &Value) -> RenderOptions {
    let mut options = RenderOptions::default();
    for (key, value) in row["options"].as_object().unwrap() {
        match key.as_str() {
            "add_generation_prompt" => options.add_generation_prompt = value.as_bool().unwrap(),
            _ => drop(options.extra.insert(key.clone(), value.clone())),
        }
    }
    options
}

/// Whether a template does with a conversation what transformers does: renders this prompt, or refuses it too. `expected` is compared
/// with what `shown` makes of the prompt.
fn agrees(
    template: &ChatTemplate,
    row: &Value,
    conversations: &Value,
    shown: fn(&str) -> String,
) -> Result<bool, String> {
    let messages = &conversations[row["conversation"].as_str().unwrap()][row["given"].as_str().unwrap()];
    let messages: Vec<Message> = serde_json::from_value(messages.clone()).unwrap();
    match (row["text"].as_str(), template.render(&messages, &options(row))) {
        (Some(expected), Ok(text)) if shown(&text) == expected => Ok(true),
        // A list was added to a string or printed: the template takes text alone.
        (None, Err(TextError::NoImages { .. }))
            if ["\"list\"", "not shown"].iter().any(|e| row["error"].as_str().unwrap().contains(e)) =>
        {
            Ok(false)
        }
        // What the template raised itself.
        (None, Err(TextError::Refused { reason, .. }))
            if reason.starts_with(row["error"].as_str().unwrap()) =>
        {
            Ok(false)
        }
        (expected, found) => Err(format!(
            "{} {} {}: expected {expected:?} {:?}, found {found:?}",
            row["conversation"], row["given"], row["options"], row["error"]
        )),
    }
}

#[test]
fn published_templates_render_as_in_python() {
    let data = read("templates/published.json");
    // Its BOS and EOS are those of the data: `<s>` and `</s>`.
    let tokenizer = tokenizer(&golden("text/llava"));
    let (mut rendered, mut refused) = (0, 0);
    for row in data["rows"].as_array().unwrap() {
        let name = row["template"].as_str().unwrap();
        let source =
            std::fs::read_to_string(golden("templates/published").join(format!("{name}.jinja"))).unwrap();
        let template = ChatTemplate::new(&source, name, &tokenizer).unwrap();
        match agrees(&template, row, &data["conversations"], str::to_owned) {
            Ok(true) => rendered += 1,
            Ok(false) => refused += 1,
            Err(why) => panic!("{name} {why}"),
        }
    }
    assert!(rendered >= 10 && refused >= 1, "{rendered} {refused}");
}

/// The beginning of the SHA-256 of a text.
fn sha256(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Templates of published checkpoints from the folder that `OCELLI_PUBLISHED` names, against hashes of transformers' renderings
/// (`golden/templates/checkpoints.py`).
#[test]
fn templates_of_checkpoints_render_as_in_python() {
    let data = read("templates/checkpoints.json");
    let Some(folder) = std::env::var_os("OCELLI_PUBLISHED") else {
        return ocelli_tests::skip("published", "OCELLI_PUBLISHED names no folder of published checkpoints");
    };
    let tokenizer = tokenizer(&golden("text/llava"));
    let (mut rows, mut wrong) = (0, Vec::new());
    for (hash, entry) in data["templates"].as_object().unwrap() {
        let file = entry["files"][0].as_str().unwrap();
        let text =
            std::fs::read_to_string(Path::new(&folder).join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let text = match file.ends_with(".json") {
            true => {
                serde_json::from_str::<Value>(&text).unwrap()["chat_template"].as_str().unwrap().to_owned()
            }
            false => text,
        };
        assert_eq!(sha256(&text), hash[..16], "{file}");
        match ChatTemplate::new(&text, file, &tokenizer) {
            Err(error) => wrong.push(format!("{file}: {error}")),
            Ok(template) => {
                for row in entry["rows"].as_array().unwrap() {
                    rows += 1;
                    let row = json!({
                        "conversation": row[0], "given": row[1], "options": data["options"][row[2].as_u64().unwrap() as usize],
                        "text": row[3], "error": row.get(4)
                    });
                    let agrees = agrees(&template, &row, &data["conversations"], sha256);
                    wrong.extend(agrees.err().map(|why| format!("{file}: {why}")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {rows}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(rows >= 100, "{rows}");
}

#[test]
fn methods_are_those_of_python() {
    let data = read("templates/methods.json");
    let tokenizer = tokenizer(&golden("text/llava"));
    let value = |expression: &str, s: &Value| {
        let source = format!("{{{{ [{expression}] | tojson }}}}");
        let template = ChatTemplate::new(&source, "method", &tokenizer).ok()?;
        let mut options = RenderOptions::default();
        options.extra.insert("s".into(), s.clone());
        template.render(&[Message::text("user", "")], &options).ok()
    };
    let mut different = Vec::new();
    let mut compare = |expression: &str, s: &Value, expected: &Value| {
        let found = value(expression, s);
        if json!(found) != *expected {
            different.push(format!("{expression} of {s}: {expected}, found {found:?}"));
        }
    };
    for call in data["calls"].as_array().unwrap() {
        let expression = format!("s.{}", call["call"].as_str().unwrap());
        for (s, expected) in data["texts"].as_array().unwrap().iter().zip(call["values"].as_array().unwrap())
        {
            compare(&expression, s, expected);
        }
    }
    for other in data["others"].as_array().unwrap() {
        compare(other["expression"].as_str().unwrap(), &json!(""), &other["value"]);
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}
