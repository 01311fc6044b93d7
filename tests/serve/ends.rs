//! What ends early: clients that go away, limits, and the server itself.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{Reply, Server, Talkative, data, endless, example, question, with};

#[test]
fn who_goes_away_frees_pages() {
    let model = Talkative::new("gone");
    let server = Server::start(&["--model", model.path()]);
    let mut streamed = server.chat(&endless());
    (0..5).for_each(|_| drop(streamed.event().unwrap()));
    let whole = Reply::ask(
        &server.address,
        "POST",
        "/v1/chat/completions",
        &[],
        with(endless(), json!({"stream": false, "n": 2})).to_string().as_bytes(),
    );
    server.until("ocelli_running", 3.0);
    assert!(server.metric("ocelli_kv_pages_used") >= 3.0);
    assert_eq!(server.metric("ocelli_places_taken"), 3.0);
    drop(streamed);
    server.until("ocelli_running", 1.0 + 1.0);
    drop(whole);
    for metric in ["ocelli_running", "ocelli_kv_pages_used", "ocelli_places_taken"] {
        server.until(metric, 0.0);
    }
    let metrics = server.get("/metrics").text();
    assert!(metrics.contains("ocelli_ended_total{why=\"disconnect\"} 3"), "{metrics}");
}

#[test]
fn answers_that_take_too_long_end() {
    let model = Talkative::new("slow");
    let server = Server::start(&["--model", model.path(), "--timeout", "1"]);
    let error = server.chat(&with(endless(), json!({"stream": false}))).json(504);
    assert_eq!(error["error"]["code"], "timeout");
    let mut streamed = server.chat(&endless());
    let error = loop {
        let event = streamed.event().expect("an error before the end");
        if event.get("error").is_some() {
            break event;
        }
    };
    assert_eq!(error["error"]["code"], "timeout");
    server.until("ocelli_kv_pages_used", 0.0);
    assert!(server.get("/metrics").text().contains("ocelli_ended_total{why=\"timeout\"} 2"));
    // Who reads nothing holds nothing for longer.
    let body = endless().to_string();
    let silent = Reply::ask(&server.address, "POST", "/v1/chat/completions", &[], body.as_bytes());
    server.until("ocelli_places_taken", 1.0);
    server.until("ocelli_places_taken", 0.0);
    drop(silent);
}

#[test]
fn a_full_queue_refuses() {
    let model = Talkative::new("full");
    let server = Server::start(&["--model", model.path(), "--max-running", "1", "--max-queue", "1"]);
    let mut first = server.chat(&endless());
    first.event().unwrap();
    // It waits, and is told nothing yet.
    let second = Reply::ask(
        &server.address,
        "POST",
        "/v1/chat/completions",
        &[],
        with(endless(), json!({"max_tokens": 3})).to_string().as_bytes(),
    );
    server.until("ocelli_waiting", 1.0);
    let third = server.chat(&endless());
    let seconds: u64 = third.header("retry-after").expect("a time to wait").parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    let error = third.json(429);
    assert_eq!(
        (&error["error"]["code"], &error["error"]["type"]),
        (&json!("queue_full"), &json!("rate_limit_error"))
    );
    let never = server.chat(&with(endless(), json!({"n": 3}))).json(400);
    assert_eq!(never["error"]["param"], "n");
    drop(first);
    let events = Reply::read(second).events();
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    server.until("ocelli_places_taken", 0.0);
}

#[test]
fn running_answers_end_well_after_sigterm() {
    let mut server = Server::start(&[]);
    let long = json!({"ignore_eos": true, "max_tokens": 1500, "stream": true});
    let mut running =
        server.chat(&with(question(&[data(&example("01.png"))], "How many objects are there?"), long));
    running.event().unwrap();
    server.signal("-TERM");
    let until = Instant::now() + Duration::from_secs(10);
    while server.get("/health").status == 200 {
        assert!(Instant::now() < until, "it does not drain");
        std::thread::sleep(Duration::from_millis(10));
    }
    let refused = server.chat(&endless());
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.json(503)["error"]["code"], "shutting_down");
    let mut last = Value::Null;
    while let Some(event) = running.event() {
        last = event;
    }
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(server.ended(), Some(0));
}

#[test]
fn what_does_not_end_in_time_is_told() {
    let model = Talkative::new("drain");
    let mut server = Server::start(&["--model", model.path(), "--drain", "1"]);
    let mut running = server.chat(&endless());
    running.event().unwrap();
    server.signal("-INT");
    let error = loop {
        let event = running.event().expect("an error before the end");
        if event.get("error").is_some() {
            break event;
        }
    };
    assert_eq!(error["error"]["code"], "shutting_down");
    assert_eq!(server.ended(), Some(0));

    // A second signal ends it at once.
    let mut server = Server::start(&["--model", model.path()]);
    let mut running = server.chat(&endless());
    running.event().unwrap();
    server.signal("-TERM");
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.child.try_wait().unwrap().is_none());
    server.signal("-TERM");
    assert_eq!(server.ended(), Some(143));
}
