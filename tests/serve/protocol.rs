//! What is answered where all is well.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ocelli_engine::weights::TensorFile;
use ocelli_tests::root;
use serde_json::{Value, json};

use crate::http::{Reply, Server, data, example, question, with};

fn pictures(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| data(&example(name))).collect()
}

fn content(reply: &Value) -> &str {
    reply["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn chats() {
    let server = Server::start(&["--media-root", root().join("models/demo").to_str().unwrap()]);
    let asked = question(&pictures(&["01.png"]), "How many objects are there?");
    let reply = server.chat(&asked).json(200);
    assert_eq!(content(&reply), "two");
    assert_eq!(reply["object"], "chat.completion");
    assert_eq!(reply["model"], "demo");
    let choice = &reply["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["role"]), (&json!("stop"), &json!("assistant")));
    let usage = &reply["usage"];
    let (prompt, answer) =
        (usage["prompt_tokens"].as_u64().unwrap(), usage["completion_tokens"].as_u64().unwrap());
    assert!(prompt > 36 && answer > 1 && usage["total_tokens"] == prompt + answer, "{usage}");
    assert!(reply["timings"]["first_token_ms"].as_f64().unwrap() > 0.0, "{reply}");

    // Files below the root, by path and by address.
    let file = format!("file://{}", example("01.png").display());
    for address in ["examples/01.png", &*file] {
        let asked = question(&[address.to_owned()], "How many objects are there?");
        assert_eq!(content(&server.chat(&asked).json(200)), "two", "{address}");
    }

    // The same in pieces.
    let streamed = with(asked.clone(), json!({"stream": true, "stream_options": {"include_usage": true}}));
    let events = server.chat(&streamed).events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let text: String =
        events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "two");
    let [.., end, last] = &events[..] else { panic!("{events:?}") };
    assert_eq!(end["choices"][0]["finish_reason"], "stop");
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), usage));
    assert!(events.iter().all(|event| event["id"] == events[0]["id"]));
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk"));

    // Several answers, each drawn by a seed of its own; the same request gives the same ones.
    let several = with(
        asked.clone(),
        json!({"n": 3, "temperature": 2.0, "seed": -7, "ignore_eos": true, "max_tokens": 12}),
    );
    let reply = server.chat(&several).json(200);
    let texts = |reply: &Value| -> Vec<String> {
        reply["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|choice| choice["message"]["content"].to_string())
            .collect()
    };
    assert_eq!((texts(&reply).len(), &reply["usage"]["completion_tokens"]), (3, &json!(36)));
    assert_eq!(reply["usage"]["prompt_tokens"], usage["prompt_tokens"]);
    assert!(texts(&reply)[0] != texts(&reply)[1], "{reply}");
    assert_eq!(texts(&server.chat(&several).json(200)), texts(&reply));
    let streamed = server.chat(&with(several, json!({"stream": true}))).events();
    let of = |number: u64| -> String {
        let of = |choice: &&Value| choice["index"] == number;
        let choices = streamed.iter().filter_map(|event| event["choices"].get(0)).filter(of);
        choices.filter_map(|choice| choice["delta"]["content"].as_str()).collect()
    };
    assert_eq!((0..3).map(|number| json!(of(number)).to_string()).collect::<Vec<_>>(), texts(&reply));

    // Limits and stop texts.
    let caption = question(&pictures(&["01.png"]), "Describe the picture.");
    let whole = server.chat(&caption).json(200);
    assert_eq!(content(&whole), "a large orange cross to the left of a large green ring");
    let cut = server.chat(&with(caption.clone(), json!({"stop": [" to the"]}))).json(200);
    assert_eq!(
        (content(&cut), &cut["choices"][0]["finish_reason"]),
        ("a large orange cross", &json!("stop"))
    );
    let short =
        server.chat(&with(caption.clone(), json!({"max_completion_tokens": 2, "max_tokens": 50}))).json(200);
    assert_eq!(
        (&short["usage"]["completion_tokens"], &short["choices"][0]["finish_reason"]),
        (&json!(2), &json!("length"))
    );

    // What changes nothing is taken.
    let harmless = json!({"user": "me", "metadata": {}, "logprobs": false, "response_format": {"type": "text"}, "logit_bias": {},
        "frequency_penalty": 0, "tools": [], "tool_choice": "auto", "n": null, "store": true});
    assert_eq!(content(&server.chat(&with(asked, harmless)).json(200)), "two");
}

#[test]
fn texts_tokens_and_models() {
    let server = Server::start(&["--name", "org/name"]);
    let models = server.get("/v1/models").json(200);
    assert_eq!((&models["data"][0]["id"], &models["object"]), (&json!("org/name"), &json!("list")));
    assert_eq!(models["data"][0]["details"]["family"], "smolvlm");
    assert_eq!(models["data"][0]["max_model_len"], 2048);
    assert_eq!(server.get("/v1/models/org/name").json(200), models["data"][0]);
    assert_eq!(server.get("/health").json(200), json!({"status": "ok"}));

    let tokens = server.post("/tokenize", &json!({"prompt": "How many?"})).json(200);
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    let chat =
        server.post("/tokenize", &json!({"messages": [{"role": "user", "content": "How many?"}]})).json(200);
    assert!(chat["count"].as_u64() > tokens["count"].as_u64(), "{chat}");

    let asked = json!({"prompt": "How many", "temperature": 0, "max_tokens": 4, "ignore_eos": true});
    let one = server.post("/v1/completions", &asked).json(200);
    assert_eq!((&one["object"], &one["usage"]["completion_tokens"]), (&json!("text_completion"), &json!(4)));
    let both = with(asked, json!({"prompt": ["How many", "What"], "n": 2, "echo": true}));
    let reply = server.post("/v1/completions", &both).json(200);
    let texts: Vec<&str> =
        reply["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 4);
    assert_eq!(texts[0], format!("How many{}", one["choices"][0]["text"].as_str().unwrap()));
    assert!(texts[0] == texts[1] && texts[2] == texts[3] && texts[2].starts_with("What"), "{texts:?}");
    let events = server.post("/v1/completions", &with(both, json!({"stream": true}))).events();
    let of = |number: u64| -> String {
        let of = |choice: &&Value| choice["index"] == number;
        let choices = events.iter().filter_map(|event| event["choices"].get(0)).filter(of);
        choices.filter_map(|choice| choice["text"].as_str()).collect()
    };
    assert_eq!((0..4).map(of).collect::<Vec<_>>(), texts);

    server.until("ocelli_places_taken", 0.0);
    let metrics = server.get("/metrics").text();
    for line in [
        "ocelli_requests_total{path=\"/v1/completions\",status=\"200\"} 3",
        "ocelli_places_taken 0",
        "ocelli_kv_pages_used 0",
        "ocelli_answer_seconds_count 9",
        "# TYPE ocelli_token_gap_seconds histogram",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
}

#[test]
fn page() {
    let server = Server::start(&[]);
    let index = server.get("/");
    assert_eq!(index.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(index.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    let index = index.text();
    for name in ["style.css", "app.js"] {
        assert!(index.contains(name));
        let file = server.get(&format!("/{name}"));
        let text = (file.status, file.text());
        assert!(text.0 == 200 && text.1.len() > 1000, "{name}");
        assert!(!text.1.contains("http://") && !text.1.contains("https://"), "{name} asks others");
    }
    assert!(!index.contains("http://") && !index.contains("https://"));
}

#[test]
fn vectors() {
    let golden = root().join("tests/golden");
    let server = Server::start(&["--model", golden.join("clip").to_str().unwrap()]);
    let file = TensorFile::open(&golden.join("clip/golden.safetensors")).unwrap();
    let rows = |key: &str, rows: usize| -> Vec<Vec<f32>> {
        let values = file.floats(&format!("both.{key}")).unwrap();
        values.chunks_exact(values.len() / rows).map(<[f32]>::to_vec).collect()
    };
    let expected = [rows("image_embeds", 2), rows("text_embeds", 3)].concat();
    let picture = |name: &str| data(&golden.join("images").join(name));
    let input = json!([
        {"type": "image_url", "image_url": {"url": picture("flower_c107-0-533-427_64x64.png")}},
        {"image": picture("china_131x87.png")},
        "a photo of a flower",
        {"type": "text", "text": "An old temple in the mountains."},
        "two cats & a dog, 12 birds",
    ]);
    let reply = server.post("/v1/embeddings", &json!({"input": input, "model": "clip"})).json(200);
    assert_eq!((&reply["object"], &reply["data"][4]["index"]), (&json!("list"), &json!(4)));
    let got: Vec<Vec<f32>> = reply["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect())
        .collect();
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(&expected) {
        let norm = expected.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
        let cosine = got.iter().zip(expected).map(|(a, b)| f64::from(a * b)).sum::<f64>() / norm;
        assert!(cosine > 0.9999, "{cosine}");
    }
    assert!(reply["usage"]["prompt_tokens"].as_u64().unwrap() > 10);
    let asked = json!({"input": "a photo of a flower", "encoding_format": "base64"});
    let reply = server.post("/v1/embeddings", &asked).json(200);
    let bytes = BASE64_STANDARD.decode(reply["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let floats: Vec<f32> =
        bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    let alone = server.post("/v1/embeddings", &json!({"input": "a photo of a flower"})).json(200);
    let alone = alone["data"][0]["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32);
    assert_eq!(floats, alone.collect::<Vec<f32>>());
    for (asked, param) in [
        (json!({"input": []}), "input"),
        (json!({"input": [[1, 2]]}), "input[0]"),
        (json!({"input": "x", "dimensions": 3}), "dimensions"),
        (json!({}), "input"),
        (json!({"input": "x", "encoding_format": "hex"}), "encoding_format"),
        (json!({"input": ["x", {"image": "data:image/png;base64,AAAA"}]}), "input[1]"),
    ] {
        assert_eq!(server.post("/v1/embeddings", &asked).json(400)["error"]["param"], param);
    }
    let chat = server.chat(&json!({"messages": [{"role": "user", "content": "x"}]})).json(400);
    assert!(chat["error"]["message"].as_str().unwrap().contains("gives vectors"), "{chat}");
}

#[test]
fn pages_of_others_and_keys() {
    let server =
        Server::start(&["--api-key", "first", "--api-key", "second", "--cors", "https://app.example"]);
    let ask = |headers: &[(&str, &str)]| server.send("GET", "/v1/models", headers, b"");
    let wrong: [&[(&str, &str)]; 4] = [
        &[],
        &[("authorization", "Bearer third")],
        &[("authorization", "Bearer firs")],
        &[("authorization", "first")],
    ];
    for headers in wrong {
        let reply = ask(headers);
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        assert_eq!(reply.json(401)["error"]["code"], "invalid_api_key");
    }
    for key in ["Bearer first", "Bearer second"] {
        assert_eq!(ask(&[("authorization", key)]).status, 200);
    }
    assert_eq!(server.get("/metrics").status, 401);
    assert_eq!(
        (server.get("/health").status, server.get("/").status, server.get("/app.js").status),
        (200, 200, 200)
    );
    let key = ("authorization", "Bearer first");
    let allowed = ask(&[key, ("origin", "https://app.example")]);
    assert_eq!(
        (allowed.status, allowed.header("access-control-allow-origin")),
        (200, Some("https://app.example"))
    );
    let preflight = server.send("OPTIONS", "/v1/chat/completions", &[("origin", "https://app.example")], b"");
    assert_eq!(preflight.status, 204);
    assert_eq!(ask(&[key, ("origin", "https://evil.example")]).status, 403);
    // With keys, any name may lead here.
    assert_eq!(ask(&[key, ("host", "box.example")]).status, 200);
    drop(server);

    let server = Server::start(&[]);
    let ask = |headers: &[(&str, &str)]| -> Reply { server.send("GET", "/v1/models", headers, b"") };
    let own = format!("http://{}", server.address);
    let same = ask(&[("origin", &own)]);
    assert_eq!((same.status, same.header("access-control-allow-origin")), (200, None));
    assert_eq!(ask(&[("origin", "https://app.example")]).status, 403);
    assert_eq!(ask(&[("host", "evil.example")]).status, 403);
}
