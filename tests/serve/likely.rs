//! Log probabilities, calls of tools, drawings, and how the model runs.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ocelli_tests::root;
use serde_json::{Value, json};

use crate::http::{Server, Talkative, data, example, question, with};

fn asked(more: Value) -> Value {
    let asked = question(&[data(&example("01.png"))], "How many objects are there?");
    with(with(asked, json!({"temperature": 0, "logprobs": true})), more)
}

/// Checks the entries of a list of tokens as far as each can be by itself; gives the texts.
fn entries(list: &Value, top: usize) -> Vec<String> {
    let list = list.as_array().unwrap_or_else(|| panic!("{list}"));
    let each = list.iter().map(|entry| {
        let named: Vec<f64> = entry["top_logprobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|of| of["logprob"].as_f64().unwrap())
            .collect();
        assert_eq!(named.len(), top, "{entry}");
        assert!(named.windows(2).all(|pair| pair[0] >= pair[1]), "{entry}");
        let sum: f64 = named.iter().map(|logprob| logprob.exp()).sum();
        assert!(sum < 1.0 + 1e-5 && (top == 0 || sum > 0.1), "{entry}");
        let bytes: Vec<u8> =
            entry["bytes"].as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8).collect();
        assert_eq!(String::from_utf8_lossy(&bytes), entry["token"].as_str().unwrap());
        entry["token"].as_str().unwrap().to_owned()
    });
    each.collect()
}

#[test]
fn how_likely_tokens_are() {
    // What is reused of a prompt that was read before then changes no digit.
    let server = Server::start(&["--batch-invariant"]);
    let whole = server.chat(&asked(json!({"top_logprobs": 5}))).json(200);
    let choice = &whole["choices"][0];
    let list = &choice["logprobs"]["content"];
    let words = entries(list, 5);
    assert_eq!(words.concat().trim_start(), choice["message"]["content"].as_str().unwrap());
    for entry in list.as_array().unwrap() {
        // The greedy answer takes the likeliest.
        assert_eq!(
            (&entry["token"], &entry["logprob"]),
            (&entry["top_logprobs"][0]["token"], &entry["top_logprobs"][0]["logprob"])
        );
    }
    // The same in pieces, and without others.
    let events = server.chat(&asked(json!({"top_logprobs": 5, "stream": true}))).events();
    let pieces: Vec<Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array().cloned())
        .flatten()
        .collect();
    assert_eq!(json!(pieces), *list);
    let alone = server.chat(&asked(json!({}))).json(200);
    assert_eq!(entries(&alone["choices"][0]["logprobs"]["content"], 0), words);
    // They are of the model, whatever is done with them: here the answer is forced, and drawn.
    let forced =
        json!({"top_logprobs": 5, "guided_choice": ["two"], "temperature": 1.7, "top_k": 3, "seed": 1});
    let forced = server.chat(&asked(forced)).json(200);
    let (first, other) = (&list[0], &forced["choices"][0]["logprobs"]["content"][0]);
    if first["token"] == other["token"] {
        assert_eq!(first["logprob"], other["logprob"]);
    }
    assert_eq!(first["top_logprobs"][0]["token"], other["top_logprobs"][0]["token"]);

    let prompt = "two large red";
    let text = json!({"prompt": prompt, "max_tokens": 5, "temperature": 0, "logprobs": 2});
    let reply = server.post("/v1/completions", &text).json(200);
    let (choice, of) = (&reply["choices"][0], &reply["choices"][0]["logprobs"]);
    let tokens: Vec<&str> =
        of["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(tokens.concat().trim_start(), choice["text"].as_str().unwrap().trim_start());
    assert!(!tokens.is_empty(), "{reply}");
    let mut offset = 0;
    for (number, token) in tokens.iter().enumerate() {
        assert_eq!(of["text_offset"][number], offset);
        offset += token.chars().count();
        assert_eq!(of["top_logprobs"][number][*token], of["token_logprobs"][number], "{of}");
    }
    let events = server.post("/v1/completions", &with(text, json!({"stream": true}))).events();
    let streamed: Vec<Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["text_offset"].as_array().cloned())
        .flatten()
        .collect();
    assert_eq!(json!(streamed), of["text_offset"]);
}

/// A copy of the demo model whose template teaches calls as Qwen's and Hermes' do.
fn caller(template: &str) -> Talkative {
    let model = Talkative::new(&format!("calls-{}", template.len()));
    let path = model.0.join("chat_template.jinja");
    let own = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{template}{own}")).unwrap();
    model
}

const HERMES: &str = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}<tool_call>{\"name\": ...}</tool_call>\n{% endif %}";

fn tools() -> Value {
    let of = |name: &str, properties: Value, required: Value| {
        json!({"type": "function", "function": {"name": name, "description": "It counts.", "parameters": {
            "type": "object", "properties": properties, "required": required, "additionalProperties": false}}})
    };
    json!([
        of(
            "count",
            json!({"shape": {"enum": ["ring", "star"]}, "least": {"type": "integer", "minimum": 0, "maximum": 9}}),
            json!(["shape", "least"])
        ),
        of("stop", json!({}), json!([])),
    ])
}

#[test]
fn tools_are_called() {
    let model = caller(HERMES);
    let server = Server::start(&["--model", model.path()]);
    let asked = |more: Value| {
        let messages = json!([{"role": "user", "content": "Count the rings."}]);
        with(json!({"messages": messages, "tools": tools(), "max_tokens": 200, "seed": 2}), more)
    };
    let check = |call: &Value| {
        assert_eq!(call["type"], "function");
        assert!(call["id"].as_str().unwrap().starts_with("call_"), "{call}");
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        match call["function"]["name"].as_str().unwrap() {
            "count" => {
                assert!(["ring", "star"].contains(&arguments["shape"].as_str().unwrap()), "{call}");
                assert!(arguments["least"].as_u64().unwrap() < 10, "{call}");
            }
            name => assert_eq!((name, &arguments), ("stop", &json!({}))),
        }
    };
    let named = json!({"type": "function", "function": {"name": "count"}});
    for choice in [json!("required"), named] {
        let reply = server.chat(&asked(json!({"tool_choice": choice}))).json(200);
        let one = &reply["choices"][0];
        if one["finish_reason"] == "length" {
            panic!("{reply}");
        }
        assert_eq!((&one["finish_reason"], &one["message"]["content"]), (&json!("tool_calls"), &Value::Null));
        let calls = one["message"]["tool_calls"].as_array().unwrap();
        calls.iter().for_each(check);
        assert!(choice == "required" || calls[0]["function"]["name"] == "count", "{reply}");
        let events = server.chat(&asked(json!({"tool_choice": choice, "stream": true}))).events();
        let streamed: Vec<&Value> =
            events.iter().filter_map(|event| event["choices"][0]["delta"]["tool_calls"].get(0)).collect();
        let functions =
            |calls: &[Value]| calls.iter().map(|call| call["function"].clone()).collect::<Vec<_>>();
        let streamed: Vec<Value> = streamed.into_iter().cloned().collect();
        assert_eq!(functions(&streamed), functions(calls));
        assert!(streamed.iter().enumerate().all(|(number, call)| call["index"] == number), "{streamed:?}");
    }
    // Who need not call may speak, and hears of what was called.
    let reply = server.chat(&asked(json!({"temperature": 0, "max_tokens": 5}))).json(200);
    assert!(reply["choices"][0]["message"].get("tool_calls").is_none(), "{reply}");
    let history = json!({"messages": [
        {"role": "user", "content": "Count."},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function",
            "function": {"name": "stop", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "two"}], "max_tokens": 3});
    assert_eq!(server.chat(&asked(history)).status, 200);
    for (more, param) in [
        (json!({"tool_choice": "any"}), "tool_choice"),
        (json!({"tool_choice": {"type": "function", "function": {"name": "other"}}}), "tool_choice"),
        (json!({"tools": [{"type": "web"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function", "function": {}}]}), "tools[0].function.name"),
        (json!({"tools": null, "tool_choice": "required"}), "tool_choice"),
        (json!({"guided_regex": "a"}), "guided_regex"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
    ] {
        assert_eq!(server.chat(&asked(more)).json(400)["error"]["param"], param);
    }
    // Forms of calls that are not read are refused by their name.
    let model = caller(&HERMES.replace("{\"name\": ...}", "<function=f></function>"));
    let server = Server::start(&["--model", model.path()]);
    let error = server.chat(&asked(json!({}))).json(400);
    assert!(error["error"]["message"].as_str().unwrap().contains("XML"), "{error}");
}

#[test]
fn models_that_draw() {
    let model = root().join("tests/golden/janus");
    let server = Server::start(&["--model", model.to_str().unwrap()]);
    let draw = |more: Value| {
        server.post("/v1/images/generations", &with(json!({"prompt": "a red ring", "seed": 3}), more))
    };
    let reply = draw(json!({"n": 2, "response_format": "b64_json"})).json(200);
    let size = reply["size"].as_str().unwrap().to_owned();
    let pictures: Vec<Vec<u8>> = reply["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| BASE64_STANDARD.decode(one["b64_json"].as_str().unwrap()).unwrap())
        .collect();
    assert_eq!(pictures.len(), 2);
    for png in &pictures {
        assert!(png.starts_with(b"\x89PNG"));
        let side = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
        assert_eq!(format!("{}x{}", side(16), side(20)), size);
    }
    assert_ne!(pictures[0], pictures[1]);
    // The first one is the same alone.
    let alone = draw(json!({"size": size})).json(200);
    assert_eq!(alone["data"][0], reply["data"][0]);
    for (more, param) in [
        (json!({"size": "1x1"}), "size"),
        (json!({"n": 0}), "n"),
        (json!({"prompt": null}), "prompt"),
        (json!({"response_format": "url"}), "response_format"),
        (json!({"guidance": 0}), "guidance"),
        (json!({"quality": "hd"}), "quality"),
    ] {
        assert_eq!(draw(more).json(400)["error"]["param"], param);
    }
    // It still answers.
    let chat = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3});
    assert_eq!(server.chat(&chat).status, 200);
    let other = Server::start(&[]).post("/v1/images/generations", &json!({"prompt": "x"})).json(400);
    assert!(other["error"]["message"].as_str().unwrap().contains("do not draw"), "{other}");
}

#[test]
fn how_the_model_runs() {
    let server = Server::start(&["--api-key", "secret"]);
    assert_eq!(server.get("/plan").status, 401);
    let plan = server.send("GET", "/plan", &[("authorization", "Bearer secret")], b"").json(200);
    assert_eq!((&plan["schema"], &plan["family"]), (&json!("ocelli.inspect.v1"), &json!("smolvlm")));
    assert!(plan["plan"]["memory"]["total"].as_u64().unwrap() > 1 << 20, "{plan}");
    let steps = plan["plan"]["phases"][0]["steps"].as_array().unwrap();
    assert!(steps.iter().all(|step| step["variant"].is_string()), "{plan}");
}
