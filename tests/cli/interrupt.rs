//! Ctrl-C and other signals.
#![cfg(unix)]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Temp, command, demo, ended, json, read_some};

fn send(signal: &str, child: &Child) {
    let done = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(done.success());
}

pub fn interrupt(child: &Child) {
    send("-INT", child);
}

/// The demo model, allowed to go on for so long that it cannot end by itself meanwhile.
fn talkative() -> Temp {
    let model = Temp::copy_of(&demo());
    model.edit("config.json", |config| config["text_config"]["max_position_embeddings"] = 100_000.into());
    model
}

fn talk(model: &Temp, more: &[&str]) -> Command {
    let path = model.0.to_str().unwrap();
    let args = ["run", "--model", path, "--ignore-eos", "--temperature", "1", "--max-tokens", "99000"];
    command(&[&args[..], more, &["Hello"]].concat())
}

#[test]
fn text_so_far_is_kept() {
    let model = talkative();
    let mut child = talk(&model, &[]).spawn().unwrap();
    let first = read_some(child.stdout.as_mut().unwrap(), 20);
    interrupt(&child);
    let start = Instant::now();
    let done = ended(child);
    assert_eq!((first.len(), done.code, &*done.stderr), (20, Some(130), ""), "{done:?}");
    assert!(done.stdout.ends_with('\n'));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn json_is_whole() {
    let model = talkative();
    let child = talk(&model, &["--json"]).spawn().unwrap();
    // Long enough to be generating, on any machine that is not overloaded; else it ends without an object.
    std::thread::sleep(Duration::from_secs(2));
    interrupt(&child);
    let done = ended(child);
    assert_eq!((done.code, &*done.stderr), (Some(130), ""), "{done:?}");
    if !done.stdout.is_empty() {
        assert_eq!(json(&done.stdout)["finish_reason"], "cancelled");
    }
}

#[test]
fn before_the_answer_it_ends_at_once() {
    let child = command(&["run", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    interrupt(&child);
    let start = Instant::now();
    let done = ended_while_open(child);
    assert_eq!((done.code, &*done.stderr, &*done.stdout), (Some(130), "", ""));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

/// As `ended`, but stdin stays open until then: `wait_with_output` would close it first.
fn ended_while_open(mut child: Child) -> crate::Done {
    let stdin = child.stdin.take();
    let done = ended(child);
    drop(stdin);
    done
}

#[test]
fn each_signal_has_its_exit_code() {
    let model = talkative();
    for (signal, code) in [("-TERM", 143), ("-INT", 130), ("-HUP", 129)] {
        // At once.
        let child = command(&["run", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        send(signal, &child);
        let done = ended_while_open(child);
        assert_eq!((done.code, &*done.stderr, &*done.stdout), (Some(code), "", ""), "{signal}");
        // With text to keep.
        let mut child = talk(&model, &[]).spawn().unwrap();
        read_some(child.stdout.as_mut().unwrap(), 20);
        send(signal, &child);
        let done = ended(child);
        assert_eq!((done.code, &*done.stderr), (Some(code), ""), "{signal}: {done:?}");
        assert!(done.stdout.ends_with('\n'), "{signal}");
    }
}

#[test]
fn nohup_stays_in_force() {
    let own = command(&["run", "-"]);
    let mut child = Command::new("nohup");
    child.arg(own.get_program()).args(own.get_args()).stdin(Stdio::piped());
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    send("-HUP", &child);
    std::thread::sleep(Duration::from_millis(200));
    send("-TERM", &child);
    assert_eq!(ended_while_open(child).code, Some(143));
}
