//! Answers of a given form, in `ocelli run` and `ocelli batch`.

use serde_json::Value;

use crate::{Temp, example, json, ocelli};

const QUESTION: &str = "How many objects are there?";
const SCHEMA: &str = r#"{"type": "object", "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 20}},
    "required": ["count"], "additionalProperties": false}"#;

fn run(args: &[&str]) -> crate::Done {
    let picture = example("01.png");
    ocelli(&[&["run", "--image", picture.to_str().unwrap()], args, &[QUESTION]].concat())
}

#[test]
fn a_schema_a_regex_a_grammar_and_choices() {
    let temp = Temp::new();
    let schema = temp.write("count.json", SCHEMA);
    let schema = schema.to_str().unwrap();
    let answer = run(&["--schema", schema]).well();
    let count = json(&answer)["count"].as_u64().unwrap();
    assert_eq!(answer, format!("{{\"count\": {count}}}\n"));
    let value = run(&["--schema", schema, "--json", "--temperature", "1.2", "--seed", "5"]).json();
    assert!(json(value["text"].as_str().unwrap())["count"].as_u64().unwrap() <= 20, "{value}");
    assert_eq!(value["finish_reason"], "stop");
    assert_eq!(run(&["--choices", "zero,one,two,three"]).well(), "two\n");
    assert!(["one\n", "three\n"].contains(&&*run(&["--choices", "one,three"]).well()));
    let number = run(&["--regex", "[0-9]{4}"]).well();
    assert!(number.trim().len() == 4 && number.trim().bytes().all(|byte| byte.is_ascii_digit()), "{number}");
    let grammar = temp.write("two.lark", "start: WORD \",\" WORD\nWORD: \"blue\" | \"red\"\n");
    let words = run(&["--grammar", grammar.to_str().unwrap()]).well();
    let words: Vec<&str> = words.trim().split(',').collect();
    assert!(words.len() == 2 && words.iter().all(|word| ["blue", "red"].contains(word)), "{words:?}");
}

#[test]
fn what_is_no_form_is_an_error_of_use() {
    let temp = Temp::new();
    let file = |name: &str, text: &str| temp.write(name, text).to_str().unwrap().to_owned();
    run(&["--schema", &file("a.json", r#"{"type": "count"}"#)]).fails(2, &["--schema", "count"]);
    run(&["--schema", &file("b.json", "{")]).fails(2, &["--schema", "b.json", "not JSON"]);
    run(&["--schema", "/no/such.json"]).fails(2, &["--schema", "/no/such.json"]);
    run(&["--regex", "a("]).fails(2, &["--regex"]);
    run(&["--grammar", &file("a.lark", "start: thing\n")]).fails(2, &["--grammar", "thing"]);
    run(&["--choices", "a,,b"]).fails(2, &["--choices", "empty"]);
    run(&["--regex", "a", "--ignore-eos"]).fails(2, &["ignore_eos"]);
}

#[test]
fn rows_of_a_batch() {
    let temp = Temp::new();
    let (schema, out) = (temp.write("count.json", SCHEMA), temp.path("out.jsonl"));
    let mut args = vec!["batch".to_owned(), "--prompt".into(), QUESTION.into()];
    args.extend(["01.png", "02.png", "03.png"].map(|name| example(name).to_str().unwrap().to_owned()));
    args.extend([
        "--schema".into(),
        schema.to_str().unwrap().into(),
        "--out".into(),
        out.to_str().unwrap().into(),
    ]);
    let done = ocelli(&args);
    assert_eq!(done.code, Some(0), "{done:?}");
    let rows = std::fs::read_to_string(&out).unwrap();
    assert_eq!(rows.lines().count(), 3, "{rows}");
    for row in rows.lines() {
        let row: Value = json(row);
        assert!(json(row["text"].as_str().unwrap())["count"].as_u64().unwrap() <= 20, "{row}");
    }
}
