//! Errors are in OpenAI's shape and name the field.

use serde_json::{Value, json};

use crate::http::{Server, data, example, question, with};

#[test]
fn what_is_wrong_is_named() {
    let limits =
        ["--max-images", "2", "--max-pixels", "200000", "--max-body", "200000", "--kv-tokens", "1024"];
    let server = Server::start(&limits);
    let hello = json!({"messages": [{"role": "user", "content": "Hello"}]});
    let more = |more: Value| with(hello.clone(), more);
    let picture = data(&example("01.png"));
    let about = |addresses: &[&str]| {
        question(&addresses.iter().map(|&address| address.to_owned()).collect::<Vec<_>>(), "What is it?")
    };
    // Whole groups of base64.
    let broken = picture[..picture.find(',').unwrap() + 1 + 400].to_owned();
    let long = "one two three ".repeat(400);
    for (body, param, code, words) in [
        (json!({}), "messages", "", "found nothing"),
        (json!({"messages": "Hello"}), "messages", "", "a list"),
        (json!({"messages": []}), "messages", "", "at least one"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role", "", "a text"),
        (more(json!({"temperature": "warm"})), "temperature", "", "a number"),
        (more(json!({"temperature": -1})), "temperature", "", "0 or above"),
        (more(json!({"top_p": 0})), "top_p", "", "above 0"),
        (more(json!({"max_tokens": 0})), "max_tokens", "", "1 or more"),
        (more(json!({"max_tokens": 1.5})), "max_tokens", "", "whole number"),
        (more(json!({"n": 0})), "n", "", "1 to"),
        (more(json!({"stop": 3})), "stop", "", "a text or a list"),
        (more(json!({"stop": [""]})), "stop", "", "at least one byte"),
        (more(json!({"stream": "yes"})), "stream", "", "true or false"),
        (more(json!({"seed": "x"})), "seed", "", "whole number"),
        (more(json!({"top_logprobs": 3})), "top_logprobs", "", "`logprobs`"),
        (more(json!({"logprobs": true, "top_logprobs": 21})), "top_logprobs", "", "at most 20"),
        (more(json!({"logprobs": 2})), "logprobs", "", "true or false"),
        (more(json!({"response_format": {"type": "yaml"}})), "response_format.type", "", "`json_object`"),
        (
            more(
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "count"}}}}),
            ),
            "response_format.json_schema.schema",
            "",
            "count",
        ),
        (more(json!({"guided_regex": "("})), "guided_regex", "", "unclosed"),
        (more(json!({"guided_choice": []})), "guided_choice", "", "found 0"),
        (more(json!({"structured_outputs": {"grammar": "start: A"}})), "structured_outputs.grammar", "", "A"),
        (more(json!({"guided_regex": "a", "ignore_eos": true})), "ignore_eos", "", "guided_regex"),
        (
            more(json!({"tools": [{"type": "function", "function": {"name": "f"}}]})),
            "tools",
            "unsupported_parameter",
            "template",
        ),
        (
            more(json!({"presence_penalty": 0.5})),
            "presence_penalty",
            "unsupported_parameter",
            "not supported",
        ),
        (more(json!({"frobnicate": 1})), "frobnicate", "unsupported_parameter", "no such field"),
        (more(json!({"reasoning_effort": "low"})), "reasoning_effort", "unsupported_parameter", "template"),
        (
            more(json!({"chat_template_kwargs": {"no_such": 1}})),
            "chat_template_kwargs.no_such",
            "unsupported_parameter",
            "template",
        ),
        (about(&[&broken]), "messages[0].content[0]", "invalid_image", "decode"),
        (about(&["data:image/png;base64,AAAA"]), "messages[0].content[0]", "invalid_image", "not a PNG"),
        (about(&["data:image/png,x"]), "messages[0].content[0]", "invalid_image", "not base64"),
        (about(&[&picture, "/etc/passwd"]), "messages[0].content[1]", "image_not_allowed", "--media-root"),
        (
            about(&["http://127.0.0.1/x.png"]),
            "messages[0].content[0]",
            "image_not_fetched",
            "--allow-remote-images",
        ),
        (about(&[&*picture; 3]), "messages[0].content[2]", "too_many_images", "at most 2"),
        (about(&[&*picture; 2]), "messages[0].content[1]", "too_many_pixels", "200000"),
        (
            json!({"messages": [{"role": "user", "content": long}]}),
            "messages",
            "context_length_exceeded",
            "1023",
        ),
        (
            json!({"messages": [{"role": "user", "content": "a <image> b"}]}),
            "messages[0].content",
            "",
            "<image>",
        ),
    ] {
        let error = server.chat(&body).json(400);
        let error = &error["error"];
        let message = error["message"].as_str().unwrap();
        assert_eq!(error["param"], param, "{error}");
        assert_eq!(error["code"].as_str().unwrap_or_default(), code, "{error}");
        assert_eq!(error["type"], "invalid_request_error", "{error}");
        assert!(message.contains(words), "{error}");
    }
    // The same where the answer would have been a stream.
    let streamed = with(about(&[&broken]), json!({"stream": true}));
    assert_eq!(server.chat(&streamed).json(400)["error"]["code"], "invalid_image");

    let error = server.chat(&more(json!({"model": "other"}))).json(404);
    assert_eq!(
        (&error["error"]["param"], &error["error"]["code"]),
        (&json!("model"), &json!("model_not_found"))
    );
    let not_json = server.send("POST", "/v1/chat/completions", &[], b"{").json(400);
    assert!(not_json["error"]["message"].as_str().unwrap().contains("not JSON"), "{not_json}");
    assert_eq!(server.get("/v1/nothing").json(404)["error"]["type"], "invalid_request_error");
    assert_eq!(server.get("/v1/chat/completions").json(405)["error"]["type"], "invalid_request_error");
    let large = json!({"messages": [{"role": "user", "content": "x".repeat(300_000)}]});
    assert_eq!(server.chat(&large).json(413)["error"]["code"], "body_too_large");
    let vectors = server.post("/v1/embeddings", &json!({"input": "x"})).json(400);
    assert!(vectors["error"]["message"].as_str().unwrap().contains("gives answers"), "{vectors}");
    let completion = server.post("/v1/completions", &json!({"prompt": "x", "suffix": "y"})).json(400);
    assert_eq!(completion["error"]["param"], "suffix");
    // It goes on.
    assert_eq!(server.chat(&hello).status, 200);
    server.until("ocelli_places_taken", 0.0);
}

#[test]
fn hosts_that_are_not_listed_are_not_asked() {
    // A host on this machine that sends a picture, and one that sends elsewhere.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let picture = std::fs::read(example("01.png")).unwrap();
    std::thread::spawn(move || {
        use std::io::{BufRead, BufReader, Write};
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            let mut header = String::new();
            while stream.read_line(&mut header).unwrap_or(0) > 2 {
                header.clear();
            }
            let stream = stream.get_mut();
            let _ = if line.contains("/picture") {
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", picture.len())
                    .and_then(|()| stream.write_all(&picture))
            } else if line.contains("/near") {
                write!(stream, "HTTP/1.1 302 Found\r\nlocation: /picture\r\ncontent-length: 0\r\n\r\n")
            } else {
                write!(
                    stream,
                    "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.2:{port}/picture\r\ncontent-length: 0\r\n\r\n"
                )
            };
        }
    });
    let ask = |server: &Server, host: &str, path: &str| {
        let asked = question(&[format!("http://{host}:{port}{path}")], "How many objects are there?");
        let reply = server.chat(&asked);
        (reply.status, reply.text())
    };
    let refused = |(status, text): (u16, String), words: &str| {
        assert!(
            status == 400 && text.contains("image_not_fetched") && text.contains(words),
            "{status} {text}"
        );
    };
    let any = Server::start(&["--allow-remote-images", "*"]);
    refused(ask(&any, "127.0.0.1", "/picture"), "may fetch nothing");
    refused(ask(&any, "localhost", "/picture"), "not of the public internet");
    drop(any);
    let named = Server::start(&["--allow-remote-images", "localhost"]);
    refused(ask(&named, "localhost", "/picture"), "not of the public internet");
    drop(named);
    let listed = Server::start(&["--allow-remote-images", "localhost,127.0.0.1"]);
    for path in ["/picture", "/near"] {
        let (status, text) = ask(&listed, "localhost", path);
        assert!(status == 200 && text.contains("\"two\""), "{status} {text}");
    }
    refused(ask(&listed, "127.0.0.1", "/far"), "may fetch nothing from `127.0.0.2`");
    refused(ask(&listed, "127.0.0.3", "/picture"), "may fetch nothing");
}
