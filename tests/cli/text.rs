//! Chat templates, stop texts and tokens as they are met on the command line.

use serde_json::Value;

use crate::{Temp, example, golden, ocelli};

fn picture() -> String {
    example("01.png").to_str().unwrap().to_owned()
}

/// A copy of a small random model whose template is changed.
fn with_template(change: impl FnOnce(String) -> String) -> Temp {
    let model = Temp::copy_of(&golden("smolvlm"));
    let template = std::fs::read_to_string(model.path("chat_template.jinja")).unwrap();
    model.write("chat_template.jinja", change(template));
    model
}

/// A few tokens with `arguments`.
fn run(model: &Temp, arguments: &[&str]) -> crate::Done {
    let model = model.0.to_str().unwrap();
    let mut all = vec!["run", "--model", model, "--ignore-eos", "--max-tokens", "4", "--json"];
    all.extend(arguments);
    ocelli(&all)
}

fn answer(value: &Value) -> (&Value, &Value) {
    (&value["prompt_tokens"], &value["token_ids"])
}

#[test]
fn line_breaks_of_the_template_do_not_count() {
    let picture = picture();
    let question = ["--image", picture.as_str(), "What?"];
    let expected = run(&with_template(|template| template), &question).json();
    let changed = run(&with_template(|template| template.replace('\n', "\r\n") + "\r\n"), &question).json();
    assert_eq!(answer(&changed), answer(&expected));
}

#[test]
fn a_template_may_want_a_system_message() {
    let picky = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}";
    let (plain, picky) = (with_template(|t| t), with_template(|t| picky.to_owned() + &t));
    let picture = picture();
    let question = ["--system", "Be brief.", "--image", picture.as_str(), "What?"];
    assert_eq!(answer(&run(&picky, &question).json()), answer(&run(&plain, &question).json()));
    let refused = run(&picky, &question[2..]);
    refused.fails(1, &["chat_template.jinja: chat template: system first (line 1)"]);
    assert!(refused.stderr.contains("with or without a system message"), "{refused:?}");
    let method = with_template(|t| "{% set x = '5'.zfill(3) %}".to_owned() + &t);
    assert_eq!(answer(&run(&method, &question).json()), answer(&run(&plain, &question).json()));
    let method = with_template(|t| "{% set x = '5'.nosuch() %}".to_owned() + &t);
    run(&method, &question).fails(1, &["string has no method named nosuch (line 1)"]);
}

#[test]
fn text_alone_has_a_hint() {
    let text = with_template(|_| "{% for m in messages %}{{ m.role + m.content }}{% endfor %}".into());
    let done = run(&text, &["--image", &picture(), "What?"]);
    done.fails(1, &["takes text alone, found a message with an image"]);
    assert!(done.stderr.contains("looked for one that takes pictures in chat_template.json"), "{done:?}");
    run(&text, &["--system", "S", "What?"]).json();
}

/// The prompt has the system message itself, as transformers has where it is given as a string.
#[test]
fn system_messages_are_printed_as_text() {
    let iterate = "{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}";
    let template = |system: &str| {
        format!(
            "{{% for m in messages %}}{{% if m.role == 'system' %}}{system}{{% else %}}{iterate}{{% endif %}}{{% endfor %}}"
        )
    };
    let as_it_is = with_template(|_| template("{{ m.content }}"));
    let of_parts = with_template(|_| template(iterate));
    let picture = picture();
    for question in
        [&["--system", "S", "What?"][..], &["--system", "S", "--image", picture.as_str(), "What?"]]
    {
        assert_eq!(answer(&run(&as_it_is, question).json()), answer(&run(&of_parts, question).json()));
    }
}

#[test]
fn a_stop_text_can_be_a_token() {
    let model = Temp::copy_of(&golden("smolvlm"));
    // The model is random: whatever special token it comes to first.
    let all = ["--temperature", "1", "--seed", "7", "--max-tokens", "100", "What?"];
    let ids = run_long(&model, &all).json()["token_ids"].clone();
    let ids: Vec<u64> = ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    let tokenizer: Value = crate::json(&std::fs::read_to_string(model.path("tokenizer.json")).unwrap());
    let special = |id: u64| {
        let added = tokenizer["added_tokens"].as_array().unwrap();
        added.iter().find(|token| token["id"] == id && token["special"] == true)
    };
    let (place, token) = ids.iter().enumerate().find_map(|(i, &id)| Some((i, special(id)?))).unwrap();
    let text = token["content"].as_str().unwrap();
    let by_id = ids[place].to_string();
    for (option, value) in [("--stop", text), ("--stop-token", &*by_id)] {
        let stopped = run_long(&model, &[&[option, value], &all[..]].concat()).json();
        assert_eq!(stopped["finish_reason"], "stop", "{option}");
        assert_eq!(stopped["token_ids"].as_array().unwrap().len(), place + 1, "{option}");
    }
    let warned = run_long(&model, &[&["--stop", &format!("a{text}")], &all[..]].concat());
    assert!(warned.stderr.contains(&format!("holds {text}")), "{warned:?}");
}

fn run_long(model: &Temp, arguments: &[&str]) -> crate::Done {
    let mut all = vec!["run", "--model", model.0.to_str().unwrap(), "--ignore-eos", "--json"];
    all.extend(arguments);
    ocelli(&all)
}
