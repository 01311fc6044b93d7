use std::path::Path;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::text::{ChatTemplate, Message, RenderOptions, TextError, Tokenizer};
use serde_json::Value;

use crate::{demo_dir, golden_dirs, tokenizer};

fn cases(dir: &Path) -> Vec<Value> {
    let inputs: Value = serde_json::from_slice(&std::fs::read(dir.join("inputs.json")).unwrap()).unwrap();
    inputs["cases"].as_array().unwrap().clone()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn template(dir: &Path) -> ChatTemplate {
    ChatTemplate::load(&ModelFiles::dir(dir), &tokenizer(dir)).unwrap().unwrap()
}

#[test]
fn templates_render_the_reference_prompts() {
    let mut rendered = 0;
    for dir in golden_dirs() {
        let template = template(&dir);
        assert!(template.accepts_images(), "{}", dir.display());
        for case in
            cases(&dir).iter().filter(|case| case["messages"].is_array() && case["name"] != "generate")
        {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let images: usize = messages.iter().map(Message::images).sum();
            assert_eq!(images, case["images"].as_array().unwrap().len());
            let prompt = template.render(&messages, &RenderOptions::default()).unwrap();
            assert_eq!(prompt, case["prompt"].as_str().unwrap(), "{} {}", dir.display(), case["name"]);
            rendered += 1;
        }
    }
    assert!(rendered >= 40, "{rendered}");
}

#[test]
fn prompts_without_images_have_the_reference_ids() {
    let mut checked = 0;
    for dir in golden_dirs() {
        let tokenizer = tokenizer(&dir);
        for case in cases(&dir).iter().filter(|case| case["name"] == "text") {
            let prompt = case["prompt"].as_str().unwrap();
            let expected = ids(&case["input_ids"]);
            if dir.ends_with("janus") {
                // Its processor puts a system prompt in front.
                assert!(expected.ends_with(&tokenizer.encode_plain(prompt).unwrap()), "{}", dir.display());
            } else {
                assert_eq!(tokenizer.encode(prompt).unwrap(), expected, "{}", dir.display());
            }
            checked += 1;
        }
    }
    assert_eq!(checked, golden_dirs().len());
}

/// Decoding and encoding the ids of an expanded prompt is the identity: image tokens, newlines between rows of tiles
/// and the text around them are cut as the reference cuts them.
#[test]
fn expanded_prompts_have_the_reference_ids() {
    for model in ["smolvlm", "idefics3", "text/qwen3_vl", "text/internvl", "text/pixtral", "text/mllama"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(model);
        let tokenizer = tokenizer(&dir);
        for case in cases(&dir) {
            let ids = ids(&case["input_ids"]);
            let prompt = tokenizer.decode(&ids, false).unwrap();
            assert_eq!(tokenizer.encode(&prompt).unwrap(), ids, "{model} {}", case["name"]);
        }
    }
}

#[test]
fn greedy_text_is_decoded_and_streamed() {
    let mut checked = 0;
    for dir in golden_dirs() {
        let tokenizer = tokenizer(&dir);
        for case in cases(&dir).iter().filter(|case| case["greedy_text"].is_string()) {
            let ids = ids(&case["greedy_ids"]);
            let expected = case["greedy_text"].as_str().unwrap();
            let name = format!("{} {}", dir.display(), case["name"]);
            let plain = tokenizer.decode(&ids, false).unwrap();
            let shown = tokenizer.decode(&ids, true).unwrap();
            assert!(plain == expected || shown == expected, "{name}: {plain:?} {shown:?} {expected:?}");
            for (skip, whole) in [(false, plain), (true, shown)] {
                let mut stream = tokenizer.detokenizer(skip);
                let mut text = stream.push_all(&ids).unwrap();
                text += &stream.finish().unwrap();
                assert_eq!(text, whole, "{name}");
            }
            checked += 1;
        }
    }
    assert!(checked >= 40, "{checked}");
}

#[test]
fn special_tokens_and_eos() {
    let smolvlm = tokenizer(&Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/smolvlm"));
    assert_eq!(smolvlm.eos_ids(), [495]);
    assert_eq!(smolvlm.vocab_size(), 533);
    assert_eq!(smolvlm.named_id("image_token"), Some(494));
    assert_eq!(smolvlm.named_token("global_image_token"), Some("<global-img>"));
    assert_eq!(smolvlm.token_to_id("<row_1_col_1>"), Some(497));
    assert!(smolvlm.is_special(494) && !smolvlm.is_special(55));
    assert_eq!(smolvlm.id_to_token(494).as_deref(), Some("<image>"));
    // A padding row of the embedding, past the vocabulary, has no text.
    assert_eq!(smolvlm.decode(&[33, 533, 16], false).unwrap(), "?.");

    // A template's BOS is not doubled; text without one gets the tokenizer's own.
    let idefics3 = tokenizer(&Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/idefics3"));
    assert_eq!(idefics3.eos_ids(), [494]);
    assert_eq!(idefics3.encode("User").unwrap(), [493, 52, 442]);
    assert_eq!(idefics3.encode("<|begin_of_text|>User").unwrap(), [493, 52, 442]);
    assert_eq!(idefics3.encode_plain("User").unwrap(), [52, 442]);
}

#[test]
fn demo_model() {
    let dir = demo_dir();
    let tokenizer = tokenizer(&dir);
    assert_eq!(tokenizer.eos_ids(), [474]);
    let prompt = template(&dir)
        .render(&[Message::user(1, "How many objects are there?")], &RenderOptions::default())
        .unwrap();
    assert_eq!(prompt, "<|im_start|>User:<image>How many objects are there?<end_of_utterance>\nAssistant:");
    let ids = tokenizer.encode(&prompt).unwrap();
    assert_eq!((ids[0], ids.iter().filter(|&&id| id == 473).count()), (1, 1));
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), prompt);
    let no_specials = tokenizer.decode(&ids, true).unwrap();
    assert_eq!(no_specials, "User:How many objects are there?\nAssistant:");
}

/// A model's files with some replaced, built into the test as the demo model is built into the binary.
fn variant(changes: Vec<(&'static str, String)>) -> ModelFiles {
    let dir = demo_dir();
    let mut files: Vec<(&'static str, &'static [u8])> = Vec::new();
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"] {
        if !changes.iter().any(|(changed, _)| *changed == name) {
            files.push((name, std::fs::read(dir.join(name)).unwrap().leak()));
        }
    }
    for (name, content) in changes {
        files.push((name, content.into_bytes().leak()));
    }
    ModelFiles::Embedded { label: "demo", files: files.leak() }
}

fn load_error(changes: Vec<(&'static str, String)>) -> String {
    Tokenizer::load(&variant(changes)).unwrap_err().to_string()
}

#[test]
fn files_around_the_tokenizer() {
    // Embedded bytes load like a directory.
    assert_eq!(Tokenizer::load(&variant(vec![])).unwrap().eos_ids(), [474]);

    // Declared tokens that tokenizer.json lacks are added, in both forms, when the ids fit.
    let added = r#"{"eos_token": {"content": "<new>"}, "added_tokens_decoder": {"512": {"content": "<new>", "special": true}}}"#;
    let files = variant(vec![
        ("tokenizer_config.json", added.into()),
        ("added_tokens.json", r#"{"<more>": 513}"#.into()),
        ("generation_config.json", r#"{"eos_token_id": [474, 2]}"#.into()),
    ]);
    let tokenizer = Tokenizer::load(&files).unwrap();
    assert_eq!(tokenizer.encode("a<new><more>").unwrap()[1..], [512, 513]);
    assert_eq!(tokenizer.eos_ids(), [2, 474, 512]);
    assert!(tokenizer.is_special(512) && !tokenizer.is_special(513));
    let e = load_error(vec![("added_tokens.json", r#"{"<more>": 600}"#.into())]);
    assert_eq!(e, "demo:added_tokens.json: token \"<more>\": expected id 600, found 512 in tokenizer.json");

    // special_tokens_map.json marks ordinary tokens special; a token without an id stays text.
    let map = r#"{"additional_special_tokens": ["A", "<absent>"], "pad_token": "B"}"#;
    let tokenizer = Tokenizer::load(&variant(vec![("special_tokens_map.json", map.into())])).unwrap();
    let id = tokenizer.token_to_id("A").unwrap();
    assert!(tokenizer.is_special(id) && tokenizer.token_to_id("<absent>").is_none());

    // Without eos in generation_config.json, config.json decides, also nested.
    let none = || ("generation_config.json", "{}".to_owned());
    let config = r#"{"text_config": {"eos_token_id": 7}}"#;
    let files = variant(vec![none(), ("config.json", config.into())]);
    assert_eq!(Tokenizer::load(&files).unwrap().eos_ids(), [7, 474]);
    assert_eq!(Tokenizer::load(&variant(vec![none()])).unwrap().eos_ids(), [474]);
    let e = load_error(vec![("generation_config.json", r#"{"eos_token_id": "x"}"#.into())]);
    assert_eq!(e, "demo:generation_config.json: eos_token_id: expected an id or a list of ids, found \"x\"");
}

#[test]
fn broken_files_are_named() {
    let e = load_error(vec![("tokenizer.json", "{\"version\": 1}".into())]);
    assert!(e.starts_with("demo:tokenizer.json: "), "{e}");
    let e = load_error(vec![("tokenizer_config.json", "[".into())]);
    assert!(e.starts_with("demo:tokenizer_config.json: invalid JSON: "), "{e}");
    let e = Tokenizer::load(&ModelFiles::dir("/nonexistent")).unwrap_err();
    assert!(matches!(e, TextError::File(_)));
    assert_eq!(e.to_string(), "/nonexistent/tokenizer.json: no such file");
}

#[test]
fn templates_raise_their_own_errors() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/text/gemma3");
    let turns = [Message::text("user", "a"), Message::text("user", "b")];
    let e = template(&dir).render(&turns, &RenderOptions::default()).unwrap_err().to_string();
    let reason = "Conversation roles must alternate user/assistant/user/assistant/... (line 15)";
    assert!(e.ends_with(&format!("chat_template.jinja: chat template: {reason}")), "{e}");
}

/// Templates in published models' styles, rendered by transformers (`golden/text/templates.py`).
#[test]
fn templates_render_as_in_python() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/text");
    let data: Value = serde_json::from_slice(&std::fs::read(dir.join("templates.json")).unwrap()).unwrap();
    // Its BOS and EOS are those of the data: `<s>` and `</s>`.
    let tokenizer = tokenizer(&dir.join("llava"));
    let mut rendered = 0;
    for row in data["rows"].as_array().unwrap() {
        let name = row["template"].as_str().unwrap();
        let source = data["templates"][name].as_str().unwrap();
        let template = ChatTemplate::new(source, name, &tokenizer).unwrap();
        let conversation = data["conversations"][row["messages"].as_str().unwrap()].clone();
        let messages: Vec<Message> = serde_json::from_value(conversation).unwrap();
        let mut options = RenderOptions {
            add_generation_prompt: row["add_generation_prompt"].as_bool().unwrap(),
            ..RenderOptions::default()
        };
        if row["tools"].as_bool().unwrap() {
            options.extra.insert("tools".into(), data["tools"].clone());
        }
        let text = match template.render(&messages, &options) {
            Err(TextError::NoImages { .. }) if row["messages"] == "parts" => continue,
            result => result.unwrap_or_else(|e| panic!("{e}")),
        };
        let expected = row["text"].as_str().unwrap();
        for (ours, theirs) in text.lines().zip(expected.lines()) {
            assert_eq!(ours, theirs, "{name} {}", row["messages"]);
        }
        assert_eq!(text, expected, "{name} {}", row["messages"]);
        rendered += 1;
    }
    assert!(rendered > 50, "{rendered}");
}
