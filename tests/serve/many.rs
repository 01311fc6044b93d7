//! A thousand clients at once.

use std::collections::HashMap;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{Server, data, example, question, with};

const CLIENTS: usize = 1000;
/// Places of the server: the others are refused.
const PLACES: usize = 900;

/// What became of a client: its status, its text, and the times between its tokens.
struct Outcome {
    status: u16,
    text: String,
    whole: bool,
    gaps: Vec<Duration>,
}

fn ask(server: &Server, body: &Value) -> Outcome {
    let mut reply = server.chat(body);
    let (status, mut text, mut gaps, mut whole) = (reply.status, String::new(), Vec::new(), false);
    if status == 200 {
        let mut last = None;
        while let Some(event) = reply.event() {
            let choice = &event["choices"][0];
            whole |= choice["finish_reason"] == "stop";
            let Some(piece) = choice["delta"]["content"].as_str().filter(|piece| !piece.is_empty()) else {
                continue;
            };
            text.push_str(piece);
            let now = Instant::now();
            gaps.extend(last.replace(now).map(|before| now - before));
        }
    } else {
        assert_eq!(reply.json(status)["error"]["code"], "queue_full");
    }
    Outcome { status, text, whole, gaps }
}

/// The most memory that a process held, in MiB.
fn peak(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) >> 10
}

#[test]
fn a_thousand_streams_are_answered_or_refused() {
    // SAFETY: zeros are a valid value of the struct, which is written to and read.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max.min(8192);
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
    let queue = (PLACES - 64).to_string();
    let server = Server::start(&["--max-running", "64", "--max-queue", &queue, "--timeout", "300"]);
    let examples = std::fs::read_to_string(example("examples.json")).unwrap();
    let examples: Value = serde_json::from_str(&examples).unwrap();
    let questions: Vec<(Value, String)> = examples
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| {
            let picture = data(&example(row["image"].as_str().unwrap()));
            let asked = move |pair: &Value| {
                let body = question(std::slice::from_ref(&picture), pair["question"].as_str().unwrap());
                (with(body, json!({"stream": true})), pair["answer"].as_str().unwrap().to_owned())
            };
            row["pairs"].as_array().unwrap().iter().map(asked).collect::<Vec<_>>()
        })
        .collect();
    assert!(questions.len() > 10);

    let (start, ready) = (Instant::now(), Barrier::new(CLIENTS));
    let outcomes: Vec<(usize, Outcome)> = std::thread::scope(|scope| {
        let client = |number: usize| {
            let (server, questions, ready) = (&server, &questions, &ready);
            let work = move || {
                let number = number % questions.len();
                ready.wait();
                (number, ask(server, &questions[number].0))
            };
            std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, work).expect("a thread")
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    });
    let took = start.elapsed();

    let mut by_status: HashMap<u16, usize> = HashMap::new();
    let mut gaps: Vec<Duration> = Vec::new();
    for (number, outcome) in &outcomes {
        *by_status.entry(outcome.status).or_default() += 1;
        if outcome.status == 200 {
            let (body, expected) = &questions[*number];
            assert!(
                outcome.whole && outcome.text == *expected,
                "{}: {expected:?}, found {:?}",
                body["messages"],
                outcome.text
            );
            gaps.extend(&outcome.gaps);
        }
    }
    let (answered, refused) = (by_status[&200], by_status.get(&429).copied().unwrap_or(0));
    assert_eq!(answered + refused, CLIENTS, "{by_status:?}");
    assert!(answered >= PLACES, "{by_status:?}");
    gaps.sort();
    let at = |share: f64| gaps[((gaps.len() - 1) as f64 * share) as usize];
    println!(
        "{answered} answered, {refused} refused in {took:.1?}; between tokens: median {:.1?}, p99 {:.1?}; {} MiB at most",
        at(0.5),
        at(0.99),
        peak(&server)
    );
    assert!(peak(&server) < 2048, "{} MiB", peak(&server));
    for metric in ["ocelli_running", "ocelli_waiting", "ocelli_kv_pages_used", "ocelli_places_taken"] {
        server.until(metric, 0.0);
    }
}
