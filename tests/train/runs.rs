//! Runs of `ocelli train sft`: what they learn, what ends them early, and how they go on.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ocelli_tests::command::{Temp, command, demo, json, ocelli};
use ocelli_tests::root;
use serde_json::Value;

/// Questions of the demo's evaluation with another column for answers, their pictures by absolute paths.
pub fn rows(temp: &Temp, name: &str, count: usize, answer: impl Fn(&Value) -> String) -> PathBuf {
    let mut number = 0;
    let seventh = |row: &Value| {
        number += 1;
        (number % 7 == 1).then(|| answer(row))
    };
    rows_of(temp, name, count, seventh)
}

/// As [`rows`], of those that `answer` gives one for.
fn rows_of(
    temp: &Temp,
    name: &str,
    count: usize,
    mut answer: impl FnMut(&Value) -> Option<String>,
) -> PathBuf {
    let eval = root().join("models/demo/eval");
    let all = std::fs::read_to_string(eval.join("eval.jsonl")).expect("the evaluation");
    let lines = all.lines().map(json).filter_map(|row| {
        let image = eval.join(row["image"].as_str().expect("a picture"));
        let text = answer(&row)?;
        Some(serde_json::json!({"image": image, "prompt": row["question"], "text": text}).to_string() + "\n")
    });
    temp.write(name, lines.take(count).collect::<String>())
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Lines of `metrics.jsonl`.
pub fn metrics(out: &Path) -> Vec<Value> {
    let lines = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
    // The last line may be half written while the run goes on.
    lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Losses of all steps.
pub fn losses(out: &Path) -> Vec<f64> {
    metrics(out).iter().map(|line| line["loss"].as_f64().expect("a loss")).collect()
}

/// Questions of the demo's evaluation that are answered by yes or no, with other answers.
pub fn yes_or_no(temp: &Temp, name: &str, count: usize, [yes, no]: [&str; 2]) -> PathBuf {
    let other = |row: &Value| match row["answer"].as_str() {
        Some("yes") => Some(yes.to_owned()),
        Some("no") => Some(no.to_owned()),
        _ => None,
    };
    rows_of(temp, name, count, other)
}

/// A few steps teach the demo model other words, and what comes out is a model that runs.
#[test]
fn the_demo_learns_other_words() {
    let temp = Temp::new();
    let french = ["oui", "non"];
    let data = yes_or_no(&temp, "rows.jsonl", 64, french);
    let held = yes_or_no(&temp, "held.jsonl", 8, french);
    let out = temp.path("out");
    let args = ["train", "sft", "--data", text(&data), "--validation", text(&held), "--out", text(&out)];
    let more = ["--steps", "30", "--batch", "8", "--rate", "5e-4", "--train", "decoder,embedding", "--json"];
    let done = ocelli(&[&args[..], &more].concat()).json();
    assert_eq!((&done["schema"], &done["steps"]), (&"ocelli.train.v1".into(), &30.into()));
    assert!(done["parameters"].as_u64() > Some(500_000), "{done}");
    let all = losses(&out);
    assert_eq!(all.len(), 30);
    let (first, last) = (all[..3].iter().sum::<f64>(), all[27..].iter().sum::<f64>());
    assert!(last < 0.5 * first, "{all:?}");
    assert!(done["validation"].as_f64().expect("a loss") < all[0], "{done}");
    let picture = root().join("models/demo/examples/01.png");
    let asked = ["run", "--model", text(&out), "--image", text(&picture), "How many objects are there?"];
    assert_eq!(ocelli(&asked).well(), "two\n");
    let before = std::fs::metadata(demo().join("model.safetensors")).expect("the demo").len();
    let after = std::fs::metadata(out.join("model.safetensors")).expect("the model").len();
    assert!(after.abs_diff(before) < 4096, "{before} and {after} bytes: types are as they were");
}

/// Killed and gone on with, a run gives the bits that it would have given.
#[test]
fn killed_runs_go_on() {
    let temp = Temp::new();
    let data = rows(&temp, "rows.jsonl", 40, |row| row["answer"].as_str().expect("an answer").to_owned());
    let (whole, cut) = (temp.path("whole"), temp.path("cut"));
    let args = |out: &Path, more: &[&str]| -> Vec<String> {
        let all =
            ["train", "sft", "--data", text(&data), "--out", text(out), "--steps", "10", "--batch", "4"];
        let rest = ["--save-every", "2", "--threads", "2", "-q"];
        all.iter().chain(&rest).chain(more).map(|arg| (*arg).to_owned()).collect()
    };
    ocelli(&args(&whole, &[])).well();
    let mut kills = 0;
    for stop in [3, 6, 8] {
        let mut child = command(&args(&cut, &["--resume"])).spawn().expect("the command starts");
        let start = Instant::now();
        while metrics(&cut).len() < stop && child.try_wait().expect("a child").is_none() {
            assert!(start.elapsed() < Duration::from_secs(120), "no step is done");
            std::thread::sleep(Duration::from_millis(1));
        }
        kills += usize::from(child.try_wait().expect("a child").is_none());
        let _ = child.kill();
        child.wait().expect("its end");
    }
    assert!(kills > 0, "every run was over before it could be killed");
    ocelli(&args(&cut, &["--resume"])).well();
    assert_eq!(losses(&cut), losses(&whole));
    let weights = |out: &Path| std::fs::read(out.join("model.safetensors")).expect("a model");
    assert!(weights(&cut) == weights(&whole), "the weights differ");
    // Anew it does not write over a run, nor go on with another one's options.
    ocelli(&args(&cut, &[])).fails(1, &["a run has written there already"]);
    ocelli(&args(&cut, &["--resume", "--seed", "5"])).fails(1, &["a run with other options or rows"]);
}

/// What cannot be used is told, and the rest is used.
#[test]
fn bad_data_and_bad_rates() {
    let temp = Temp::new();
    let good = rows(&temp, "rows.jsonl", 6, |row| row["answer"].as_str().expect("an answer").to_owned());
    let good = std::fs::read_to_string(good).expect("rows");
    let long = format!("{{\"prompt\": \"Hello\", \"text\": \"{}\"}}\n", "a b c ".repeat(200));
    let bad = "{\"prompt\": \"What?\", \"text\": \"\"}\nnonsense\n\
               {\"image\": \"absent.png\", \"prompt\": \"What?\", \"text\": \"two\"}\n";
    let data = temp.write("bad.jsonl", format!("{bad}{long}{good}"));
    let out = temp.path("out");
    let args =
        ["train", "sft", "--data", text(&data), "--out", text(&out), "--batch", "8", "--max-tokens", "100"];
    let done = ocelli(&args);
    assert_eq!(done.code, Some(3), "{done:?}");
    for what in [
        "line 1: left out: text: expected an answer",
        "line 2: left out: not JSON",
        "line 3: left out: ",
        "absent.png",
        "line 4: left out: prompt: expected at most 100 tokens",
    ] {
        assert!(done.notes.iter().any(|note| note.contains(what)), "no `{what}` in {:?}", done.notes);
    }
    assert!(out.join("model.safetensors").is_file());

    let none = temp.write("none.jsonl", bad.lines().take(2).collect::<Vec<_>>().join("\n"));
    let away = temp.path("away");
    let done = ocelli(&["train", "sft", "--data", text(&none), "--out", text(&away)]);
    done.fails(1, &["none.jsonl: no rows"]);
    let done = ocelli(&["train", "sft", "--data", text(&temp.path("absent")), "--out", text(&away)]);
    done.fails(1, &["absent: "]);
    assert!(!away.exists());

    let steep = temp.write("steep.jsonl", good);
    let args =
        ["train", "sft", "--data", text(&steep), "--out", text(&away), "--steps", "40", "--warmup", "0"];
    let done = ocelli(&[&args[..], &["--rate", "1e3", "-q"]].concat());
    done.fails(1, &["step "]);
    assert!(["not finite", "rose to"].iter().any(|why| done.stderr.contains(why)), "{done:?}");
    let usage = ocelli(&[&args[..], &["--rate", "-1"]].concat());
    usage.fails(2, &["--rate"]);
}

#[test]
fn a_dry_run_tells_and_writes_nothing() {
    let temp = Temp::new();
    let data = rows(&temp, "rows.jsonl", 9, |_| "two".to_owned());
    let out = temp.path("out");
    let args =
        ["train", "sft", "--data", text(&data), "--out", text(&out), "--train", "connector", "--dry-run"];
    let told = ocelli(&args).well();
    assert!(told.contains("parameters are trained, by 9 rows in 2 steps of 8"), "{told}");
    assert!(told.contains("memory: ") && !out.exists(), "{told}");
}
