//! `ocelli run --messages`: conversations as JSON, and variables of chat templates.

use serde_json::{Value, json};

use crate::{Temp, example, golden, ocelli, with_stdin};

const QUESTION: &str = "How many objects are there?";

fn part(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn picture(address: &str) -> Value {
    json!({"type": "image_url", "image_url": {"url": address}})
}

/// Base64, written here anew.
fn base64(bytes: &[u8]) -> String {
    let digits: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
    let of = |chunk: &[u8]| {
        let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(*chunk.get(i).unwrap_or(&0)));
        let digit =
            |i: usize| if i <= chunk.len() { digits[(bits >> (18 - 6 * i)) as usize & 63] } else { '=' };
        [digit(0), digit(1), digit(2), digit(3)]
    };
    bytes.chunks(3).flat_map(of).collect()
}

#[test]
fn a_conversation_is_asked_as_arguments_are() {
    let dir = Temp::new();
    let bytes = std::fs::read(example("01.png")).unwrap();
    dir.write("01.png", &bytes);
    let plain = ocelli(&["run", "--image", dir.path("01.png").to_str().unwrap(), "--json", QUESTION]).json();
    assert_eq!(plain["reasoning"], Value::Null);
    // Paths count from the file's folder on.
    let data = format!("data:image/png;base64,{}", base64(&bytes));
    for address in ["01.png", &data, &format!("file://{}", dir.path("01.png").display())] {
        let chat = json!([{"role": "user", "content": [picture(address), part(QUESTION)]}]);
        let file = dir.write("chat.json", chat.to_string());
        let found = ocelli(&["run", "--messages", file.to_str().unwrap(), "--json"]).json();
        for key in ["text", "token_ids", "prompt_tokens"] {
            assert_eq!(found[key], plain[key], "{address}");
        }
    }
    let chat =
        json!({"messages": [{"role": "user", "content": [picture(&data), part(QUESTION)]}]}).to_string();
    assert_eq!(with_stdin(&["run", "--messages", "-"], chat.as_bytes()).well(), "two\n");
    // A prompt behind the messages is the next one; pictures keep their order.
    let turns = json!([
        {"role": "user", "content": [picture("01.png"), part(QUESTION)]}, {"role": "assistant", "content": "two"}]);
    let file = dir.write("chat.json", turns.to_string());
    let file = file.to_str().unwrap();
    let other = example("02.png");
    let other = other.to_str().unwrap();
    let args = ["run", "--messages", file, "--max-tokens", "4", "--json"];
    let found = ocelli(&[&args[..], &["--image", other, QUESTION]].concat()).json();
    assert!(found["prompt_tokens"].as_u64() > plain["prompt_tokens"].as_u64());
    ocelli(&["run", "--messages", file]).fails(2, &["--messages", "assistant"]);
    ocelli(&["run", "--messages", file, "--image", other]).fails(2, &["--image", "prompt"]);
}

#[test]
fn conversations_that_cannot_be() {
    let dir = Temp::new();
    let user = |content: Value| json!([{"role": "user", "content": content}]).to_string();
    for (code, text, parts) in [
        (1, "{".to_owned(), &["chat.json", "not JSON"][..]),
        (1, user(json!([{"type": "video_url"}])), &["chat.json", "messages[0].content[0].type", "video_url"]),
        (1, user(json!([picture("https://example.org/a.png")])), &["image_url", "https://example.org/a.png"]),
        (1, user(json!([picture("absent.png")])), &["absent.png"]),
        (1, user(json!([picture("data:image/png;base64,AAAA")])), &["data:image/png"]),
        (2, user(json!("what is <image>?")), &["<image>"]),
        (2, user(json!([part("<image>")])), &["<image>"]),
    ] {
        let file = dir.write("chat.json", text);
        ocelli(&["run", "--messages", file.to_str().unwrap()]).fails(code, parts);
    }
    ocelli(&["run", "--messages", "absent.json"]).fails(1, &["--messages", "absent.json"]);
    ocelli(&["run", "--messages", "x", "--system", "y"]).fails(2, &["--system", "--messages"]);
}

#[test]
fn variables_of_templates() {
    let model = golden("qwen3_5");
    let model = model.to_str().unwrap();
    let args = ["run", "--model", model, "--max-tokens", "3", "--ignore-eos", "--json"];
    let tokens = |more: &[&str]| {
        let found = ocelli(&[&args[..], more, &["What?"]].concat()).json();
        (found["prompt_tokens"].as_u64().unwrap(), found["reasoning"].clone(), found["text"].clone())
    };
    let on = tokens(&["--chat-template-arg", "enable_thinking=true"]);
    let off = tokens(&["--chat-template-arg", "enable_thinking=false"]);
    // Thoughts begin in the prompt, or are shut there.
    assert_ne!(on.0, off.0);
    assert!(on.1.is_string() && off.1.is_null(), "{on:?} {off:?}");
    assert!(on.2 == "" && off.2 != "", "{on:?} {off:?}");

    let dir = Temp::new();
    let chat = json!({"messages": [{"role": "user", "content": "What?"}], "chat_template_kwargs": {"enable_thinking": false}});
    let file = dir.write("chat.json", chat.to_string());
    let found = ocelli(&[&args[..], &["--messages", file.to_str().unwrap()]].concat()).json();
    assert_eq!(found["prompt_tokens"], off.0);

    let shown = [
        "run",
        "--model",
        model,
        "--max-tokens",
        "3",
        "--chat-template-arg",
        "enable_thinking=true",
        "What?",
    ];
    let hidden = ocelli(&shown);
    assert!(hidden.notes.iter().any(|note| note.contains("still thinking")), "{hidden:?}");
    let shown = ocelli(&[&shown[..], &["--show-thinking"]].concat());
    assert_eq!((&*hidden.stderr, &*hidden.stdout, &*shown.stdout), ("", "\n", "\n"));
    assert!(shown.stderr.contains(on.1.as_str().unwrap()), "{shown:?}");

    let unread = ocelli(&[&args[..], &["--chat-template-arg", "enable_thoughts=1", "What?"]].concat());
    assert!(
        unread.code == Some(0) && unread.stderr.contains("does not read `enable_thoughts`"),
        "{unread:?}"
    );
    ocelli(&["run", "--chat-template-arg", "x", "What?"]).fails(2, &["--chat-template-arg", "NAME=VALUE"]);
    ocelli(&["run", "--chat-template-arg", "messages=[]", "What?"]).fails(2, &["messages"]);
}
