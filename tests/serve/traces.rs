//! Spans of requests, as a collector gets them.

use ocelli_tests::collector::{Came, Collector, Span};

use crate::http::{Server, data, example, question};

#[test]
fn a_trace_of_each_request() {
    let collector = Collector::start("200 OK");
    let server = Server::start(&["--otlp", &collector.url]);
    let asked = question(&[data(&example("01.png"))], "How many objects are there?");
    (0..2).for_each(|_| drop(server.chat(&asked).json(200)));
    server.get("/health");
    let came = collector.wait(|came| came.named("request").len() == 3);
    let mut chats: Vec<&Span> = came
        .named("request")
        .into_iter()
        .filter(|span| span.attributes["path"] == "/v1/chat/completions")
        .collect();
    assert_eq!(chats.len(), 2);
    chats.sort_by_key(|chat| chat.start);
    for (number, chat) in chats.into_iter().enumerate() {
        assert!(chat.parent.is_empty());
        let within = |parent: &Span, name: &str| -> Vec<Span> {
            came.named(name).into_iter().filter(|span| span.parent == parent.id).cloned().collect()
        };
        let one = |parent: &Span, name: &str| {
            let all = within(parent, name);
            assert_eq!(all.len(), 1, "{name}: {came:?}");
            assert!(parent.start <= all[0].start && all[0].end <= parent.end, "{name}");
            all[0].clone()
        };
        for name in ["decode_image", "resize"] {
            one(chat, name);
        }
        let answer = one(&one(chat, "answers"), "answer");
        for name in ["wait", "prefill", "decode"] {
            one(&answer, name);
        }
        // The second one finds what the tower made of the first one's picture.
        let encodes = within(&answer, "encode");
        assert_eq!(encodes.len(), usize::from(number == 0));
        encodes.iter().for_each(|encode| drop(one(encode, "tower")));
    }
}

/// The span of a request is a child of the one that its headers name; headers that are not as they have to be are as none.
#[test]
fn requests_are_children_of_their_callers() {
    let collector = Collector::start("200 OK");
    let server = Server::start(&["--otlp", &collector.url]);
    let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let (sampled, dropped) = (format!("00-{trace}-{span}-01"), format!("00-{trace}-{span}-00"));
    let late = format!("42-{trace}-{span}-01-more");
    let upper = sampled.to_uppercase();
    let state = [("traceparent", &*sampled), ("tracestate", "congo=t61"), ("Tracestate", "rojo=1, , x@y=2")];
    let cases: [(&str, &[(&str, &str)]); 7] = [
        ("whole", &state),
        ("late", &[("TraceParent", &late)]),
        ("state", &[("traceparent", &sampled), ("tracestate", "congo")]),
        ("none", &[]),
        ("upper", &[("traceparent", &upper), ("tracestate", "congo=1")]),
        ("twice", &[("traceparent", &sampled), ("traceparent", &sampled)]),
        ("dropped", &[("traceparent", &dropped)]),
    ];
    let body = question(&[], "Hello").to_string();
    for (name, headers) in cases {
        let reply = server.send("POST", "/v1/chat/completions", headers, body.as_bytes());
        assert!(reply.json(200)["choices"].is_array(), "{name}");
    }
    server.get("/health");
    let done = |came: &Came| came.named("request").iter().any(|span| span.attributes["path"] == "/health");
    let came = collector.wait(|came| done(came) && came.named("request").len() > 6);
    let mut chats = came.named("request");
    chats.retain(|request| request.attributes["path"] == "/v1/chat/completions");
    chats.sort_by_key(|chat| chat.start);
    let of = |hex: &str| -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    };
    // What the caller does not record is not sent.
    assert_eq!(chats.len(), cases.len() - 1, "{came:?}");
    for ((name, _), chat) in cases.iter().zip(&chats) {
        let found = (chat.trace == of(trace), chat.parent == of(span), &*chat.state);
        let expected = match *name {
            "whole" => (true, true, "congo=t61,rojo=1,x@y=2"),
            "late" | "state" => (true, true, ""),
            _ => (false, false, ""),
        };
        assert_eq!(found, expected, "{name}: {chat:?}");
        assert_eq!(chat.parent.is_empty(), !expected.1, "{name}");
        // What is done for it is within.
        let answers = came.named("answers").into_iter().find(|answers| answers.parent == chat.id);
        assert_eq!(answers.expect(name).trace, chat.trace, "{name}");
    }
}
