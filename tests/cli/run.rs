//! `ocelli run`.

use std::process::Stdio;

use crate::{Temp, command, demo, ended, example, golden, json, ocelli, read_some, with_stdin};

const QUESTION: &str = "How many objects are there?";

fn picture() -> String {
    example("01.png").to_str().unwrap().to_owned()
}

#[test]
fn answers_as_the_examples_say() {
    let examples = json(&std::fs::read_to_string(example("examples.json")).unwrap());
    let first = &examples[0];
    assert_eq!(first["image"], "01.png");
    for pair in first["pairs"].as_array().unwrap() {
        let answer = ocelli(&["run", "--image", &picture(), pair["question"].as_str().unwrap()]).well();
        assert_eq!(answer, format!("{}\n", pair["answer"].as_str().unwrap()), "{}", pair["question"]);
    }
    let from_stdin = with_stdin(&["run", "--image", &picture(), "-"], format!("{QUESTION}\n").as_bytes());
    assert_eq!(from_stdin.well(), "two\n");
}

#[test]
fn one_object_with_everything() {
    let value = ocelli(&["run", "--image", &picture(), "--json", "--threads", "2", QUESTION]).json();
    assert_eq!(value["text"], "two");
    assert_eq!(value["finish_reason"], "stop");
    assert_eq!(value["backend"], "cpu");
    assert_eq!(value["dtype"], "f32");
    assert_eq!(value["model"], "demo");
    assert_eq!(value["threads"], 2);
    if let Ok(level) = std::env::var("OCELLI_ISA") {
        assert_eq!(value["isa"], level.as_str());
    }
    assert!(!value["token_ids"].as_array().unwrap().is_empty());
    assert!(value["prompt_tokens"].as_u64().unwrap() > 10);
    let stages = ["load", "decode_image", "resize", "tower", "connector", "prefill", "decode", "total"];
    for stage in stages {
        assert!(value["timings"][format!("{stage}_ms")].as_f64().unwrap() >= 0.0, "{stage}: {value}");
    }
    assert!(value["timings"]["total_ms"].as_f64() > value["timings"]["prefill_ms"].as_f64());
    if cfg!(target_os = "linux") {
        assert!(value["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
    }
}

/// Guesses, and kernels that do not depend on the batch, give the same answer; what was guessed is told.
#[test]
fn guesses_and_invariance_change_no_answer() {
    let ask = |more: &[&str]| {
        let long = ["--ignore-eos", "--max-tokens", "60", "--json", QUESTION];
        ocelli(&[&["run", "--image", &picture()][..], more, &long].concat()).json()
    };
    let plain = ask(&[]);
    let guessed = ask(&["--speculate", "6", "--batch-invariant"]);
    assert_eq!(plain["token_ids"], ask(&["--batch-invariant"])["token_ids"]);
    assert_eq!(plain["token_ids"], guessed["token_ids"]);
    let count = |value: &serde_json::Value, name: &str| value["timings"][name].as_u64().unwrap();
    assert_eq!((count(&plain, "guessed_tokens"), count(&plain, "accepted_tokens")), (0, 0));
    assert!(count(&guessed, "guessed_tokens") >= count(&guessed, "accepted_tokens"));
    // After its end the demo model repeats itself.
    assert!(count(&guessed, "accepted_tokens") > 5, "{}", guessed["timings"]);
    assert_eq!(count(&guessed, "decode_tokens"), 59);
    let refused = ocelli(&["run", "--image", &picture(), "--speculate", "65", QUESTION]);
    refused.fails(2, &["speculate: expected 0 to 64, found 65"]);
}

#[test]
fn types_of_activations() {
    for dtype in ["f32", "bf16"] {
        let value = ocelli(&["run", "--image", &picture(), "--dtype", dtype, "--json", QUESTION]).json();
        assert_eq!((&value["text"], &value["dtype"]), (&"two".into(), &dtype.into()));
    }
}

#[test]
fn places_are_drawn() {
    let temp = Temp::new();
    let to = temp.path("drawn.png");
    let (model, to) = (golden("florence2"), to.to_str().unwrap());
    let run = |image: &str, task: &str, to: &str| {
        let model = model.to_str().unwrap();
        ocelli(&[
            "run",
            "--model",
            model,
            "--image",
            image,
            "--max-tokens",
            "20",
            "--json",
            "--draw",
            to,
            task,
        ])
    };
    let value = run(&picture(), "<OD>", to).json();
    assert_eq!(value["regions"]["task"], "<OD>");
    let (given, drawn) = (std::fs::read(picture()).unwrap(), std::fs::read(to).unwrap());
    // Width and height of a PNG.
    assert_eq!((&drawn[..8], &drawn[16..24]), (&given[..8], &given[16..24]));
    // What cannot be drawn is refused before the model answers.
    run(&picture(), "<CAPTION>", to).fails(1, &["--draw", "name no places"]);
    let nowhere = temp.path("none/drawn.png");
    run(&picture(), "<OD>", nowhere.to_str().unwrap()).fails(1, &["--draw", "none", "no such folder"]);
}

#[test]
fn where_answers_end() {
    let question = "Describe the picture.";
    let value = ocelli(&["run", "--image", &picture(), "--max-tokens", "3", "--json", question]).json();
    assert_eq!(value["finish_reason"], "length");
    assert_eq!(value["token_ids"].as_array().unwrap().len(), 3);
    let value = ocelli(&["run", "--image", &picture(), "--stop", " cross", "--json", question]).json();
    assert_eq!((&value["text"], &value["finish_reason"]), (&"a large orange".into(), &"stop".into()));
}

#[test]
fn equal_seeds_give_equal_answers() {
    let answer = |seed: &str| {
        let args =
            ["run", "--temperature", "3", "--seed", seed, "--max-tokens", "24", "--ignore-eos", "Hello"];
        ocelli(&args).well()
    };
    assert_eq!(answer("7"), answer("7"));
    assert_ne!(answer("7"), answer("8"));
}

#[test]
fn several_pictures_and_none() {
    assert!(!ocelli(&["run", "--max-tokens", "4", QUESTION]).well().is_empty());
    let (first, second) = (picture(), example("02.png").to_str().unwrap().to_owned());
    let one = ocelli(&["run", "--image", &first, "--max-tokens", "4", "--json", QUESTION]).json();
    let both =
        ocelli(&["run", "--image", &first, "--image", &second, "--max-tokens", "4", "--json", QUESTION])
            .json();
    assert!(both["prompt_tokens"].as_u64() > one["prompt_tokens"].as_u64());
}

#[test]
fn the_demo_model_says_what_it_is() {
    let picture = picture();
    for args in [&["run", "--image", &picture, QUESTION][..], &["run", "Hello, who are you?"]] {
        let done = ocelli(args);
        let first = done.notes.first().expect("a note");
        assert!(first.contains("demo model") && first.contains("--model"), "{done:?}");
        // No silent empty line.
        let silent = done.stdout.trim().is_empty();
        assert_eq!(done.notes.len(), 1 + usize::from(silent), "{done:?}");
        assert!(!silent || done.notes[1].contains("no text"), "{done:?}");
        let quiet = ocelli(&[args, &["--quiet"]].concat());
        assert_eq!((quiet.notes.len(), &quiet.stdout), (0, &done.stdout));
        // One object on stdout is for programs: `json` looks for notes.
        ocelli(&[args, &["--json"]].concat()).json();
    }
    let model = demo();
    let done = ocelli(&["run", "--model", model.to_str().unwrap(), "--image", &picture, QUESTION]);
    assert_eq!((done.notes.len(), &*done.stdout), (0, "two\n"), "a model that was asked for");
}

#[test]
fn answers_without_text_say_so() {
    let model = Temp::copy_of(&demo());
    // Whatever comes first ends the answer.
    let first = ocelli(&["run", "--image", &picture(), "--max-tokens", "1", "--json", QUESTION]).json();
    let id = first["token_ids"][0].to_string();
    let args = ["run", "--model", model.0.to_str().unwrap(), "--image", &picture(), "--stop-token", &id];
    let done = ocelli(&[&args[..], &[QUESTION]].concat());
    assert_eq!((done.code, &*done.stdout, done.notes.len()), (Some(0), "\n", 1), "{done:?}");
    assert!(done.notes[0].contains("no text"), "{done:?}");
}

#[test]
fn prompts_that_cannot_be() {
    for args in [&["run", "a <image> b"][..], &["run", "--image", &picture(), "<image>"]] {
        ocelli(args).fails(2, &["<image>"]);
    }
    ocelli(&["run", "--system", "<image>", "Hello"]).fails(2, &["<image>"]);
    let long = "word ".repeat(5000);
    with_stdin(&["run", "-"], long.as_bytes()).fails(1, &["prompt", "2047"]);
    with_stdin(&["run", "-"], b"caf\xe9").fails(1, &["standard input"]);
    with_stdin(&["run", "-"], b"\n").fails(2, &["empty"]);
}

#[test]
fn readers_that_go_away_end_it_quietly() {
    for args in [
        &["run", "--ignore-eos", "--temperature", "1", "Hello"][..],
        &["completions", "bash"],
        &["man"],
        &["run", "--help"],
        &["inspect"],
        &["kernels", "list"],
    ] {
        let mut child = command(args).spawn().unwrap();
        drop(child.stdout.take());
        let done = ended(child);
        assert_eq!((done.code, &*done.stderr), (Some(0), ""), "{args:?}");
    }
    let mut child = command(&["run", "--ignore-eos", "--temperature", "1", "Hello"]).spawn().unwrap();
    read_some(child.stdout.as_mut().unwrap(), 1);
    drop(child.stdout.take());
    let done = ended(child);
    assert_eq!((done.code, &*done.stderr), (Some(0), ""));
}

#[test]
fn errors_survive_a_closed_stderr() {
    let mut child = command(&["run", "--nothing"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(ended(child).code, Some(2));
}

#[test]
fn a_directory_runs_as_the_embedded_model_does() {
    let model = Temp::copy_of(&demo());
    let args = ["run", "--model", model.0.to_str().unwrap(), "--image", &picture(), QUESTION];
    assert_eq!(ocelli(&args).well(), "two\n");
}

/// What a model's files have left over is told, and refused where that is asked for.
#[test]
fn leftovers_are_told_or_refused() {
    let model = crate::Temp::copy_of(&crate::golden("smolvlm"));
    model.edit("config.json", |config| config["text_config"]["sliding_factor"] = 4.into());
    let dir = model.0.to_str().unwrap();
    let done = crate::ocelli(&["run", "--model", dir, "--max-tokens", "2", "What?"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stderr.contains("text_config.sliding_factor"), "{done:?}");
    crate::ocelli(&["run", "--model", dir, "--strict", "--max-tokens", "2", "What?"])
        .fails(1, &["config.json", "nothing here reads", "text_config.sliding_factor"]);
    let clean = crate::golden("smolvlm");
    crate::ocelli(&["run", "--model", clean.to_str().unwrap(), "--strict", "--max-tokens", "2", "What?"])
        .well();
}
