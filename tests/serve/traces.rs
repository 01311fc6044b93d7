//! Spans of requests, as a collector gets them.

use ocelli_tests::collector::{Collector, Span};

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
