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
        let conversation = &data["conversations"][row["conversation"].as_str().unwrap()];
        let messages = conversation[row["given"].as_str().unwrap()].clone();
        let messages: Vec<Message> = serde_json::from_value(messages).unwrap();
        let what = format!("{name} {} {} {}", row["conversation"], row["given"], row["options"]);
        match (row["text"].as_str(), template.render(&messages, &options(row))) {
            (Some(expected), Ok(text)) => {
                for (ours, theirs) in text.lines().zip(expected.lines()) {
                    assert_eq!(ours, theirs, "{what}");
                }
                assert_eq!(text, expected, "{what}");
                rendered += 1;
            }
            // A list was added to a string or printed: the template takes text alone.
            (None, Err(TextError::NoImages { .. }))
                if ["\"list\"", "not shown"].iter().any(|e| row["error"].as_str().unwrap().contains(e)) =>
            {
                refused += 1;
            }
            // What the template raised itself.
            (None, Err(TextError::Refused { reason, .. }))
                if reason.starts_with(row["error"].as_str().unwrap()) =>
            {
                refused += 1;
            }
            (expected, found) => panic!("{what}: {expected:?} {:?} {found:?}", row["error"]),
        }
    }
    assert!(rendered >= 10 && refused >= 1, "{rendered} {refused}");
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
