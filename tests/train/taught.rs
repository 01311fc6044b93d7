//! Learning from a teacher, and answers that are held against their texts.

use std::path::{Path, PathBuf};

use ocelli_tests::command::{Temp, demo, ocelli};
use ocelli_tests::root;
use serde_json::Value;

use super::runs::{losses, metrics, rows, text};

/// A tiny model.
fn tiny(name: &str) -> PathBuf {
    root().join("tests/golden/train").join(name)
}

fn answers(temp: &Temp, count: usize) -> PathBuf {
    rows(temp, "rows.jsonl", count, |row: &Value| row["answer"].as_str().expect("an answer").to_owned())
}

fn distill(data: &Path, out: &Path, more: &[&str]) -> ocelli_tests::command::Done {
    let student = tiny("smolvlm_tied");
    let args = ["train", "distill", "--model", text(&student), "--data", text(data), "--out", text(out)];
    ocelli(&[&args[..], &["--batch", "4", "-q"], more].concat())
}

/// A model that is its own teacher has nothing to learn from it.
#[test]
fn a_teacher_that_is_the_student_teaches_nothing() {
    let temp = Temp::new();
    let (data, out, model) = (answers(&temp, 4), temp.path("out"), tiny("smolvlm_tied"));
    let more = ["--teacher", text(&model), "--hard", "0", "--steps", "1", "--rate", "1e-3"];
    distill(&data, &out, &more).well();
    let first = &metrics(&out)[0];
    // Both run the same kernels on the same numbers.
    assert_eq!((&first["loss"], &first["norm"]), (&0.0.into(), &0.0.into()), "{first}");
}

/// A student comes nearer to its teacher, by the model itself as by what was stored of it.
#[test]
fn students_learn_from_models_and_files() {
    let temp = Temp::new();
    let (data, teacher) = (answers(&temp, 8), tiny("smolvlm"));
    let (here, stored, read) = (temp.path("here"), temp.path("stored"), temp.path("read"));
    let logits = temp.path("logits.safetensors");
    let steps = ["--steps", "30", "--rate", "1e-2", "--hard", "0.25"];
    let with = |out: &Path, more: &[&str]| {
        distill(&data, out, &[&steps[..], more].concat()).well();
        losses(out)
    };
    let by_model = with(&here, &["--teacher", text(&teacher), "--validation", text(&data)]);
    // Its teacher is a random model, which eight numbers a token cannot follow far.
    let fell = |losses: &[f64]| losses[25..].iter().sum::<f64>() / 5.0 < 0.8 * losses[0];
    assert!(fell(&by_model), "{by_model:?}");
    let checked = metrics(&here)[29]["validation"].as_f64().expect("a loss");
    assert!(checked > 0.0, "{checked}");
    let by_stored = with(&stored, &["--teacher", text(&teacher), "--store-logits", text(&logits)]);
    let by_file = with(&read, &["--teacher-logits", text(&logits)]);
    assert_eq!(by_stored, by_file);
    // Rows stand in other passes where they are stored: sums may be rounded otherwise, and thirty steps carry that on.
    for (a, b) in by_model.iter().zip(&by_file) {
        assert!((a - b).abs() <= 1e-3 * a, "{by_model:?} and {by_file:?}");
    }
    // The likeliest tokens alone are nearly as good.
    let (few, top) = (temp.path("few.safetensors"), temp.path("top"));
    let more = ["--teacher", text(&teacher), "--store-logits", text(&few), "--top-k", "50"];
    let by_few = with(&top, &more);
    let size = |path: &Path| std::fs::metadata(path).expect("a file").len();
    assert!(fell(&by_few) && by_few != by_file, "{by_few:?}");
    assert!(!temp.path("few.safetensors.part").exists() && size(&few) < 2 * size(&logits));

    // Logits of other rows are refused.
    let other = rows(&temp, "other.jsonl", 8, |_| "something else".to_owned());
    let out = temp.path("other");
    let done = distill(&other, &out, &["--teacher-logits", text(&logits), "--steps", "1"]);
    done.fails(1, &["they were stored for other data"]);
    let usage = distill(&data, &temp.path("flip"), &["--teacher-logits", text(&logits), "--flip"]);
    usage.fails(2, &["--flip: stored logits are of pictures as they are"]);
}

#[test]
fn teachers_that_do_not_fit_are_told() {
    let temp = Temp::new();
    let (data, out) = (answers(&temp, 4), temp.path("out"));
    let done = distill(&data, &out, &["--teacher", text(&demo())]);
    done.fails(1, &["teacher and student are to have one vocabulary", "100"]);
    assert!(!out.exists());
    let done = distill(&data, &out, &["--teacher", text(&tiny("smolvlm")), "--features"]);
    done.fails(1, &["features of a picture are [4, 8] of the student and [4, 16] of the teacher"]);
    distill(&data, &out, &[]).fails(2, &["--teacher"]);
    let model =
        temp.write("model.safetensors", std::fs::read(demo().join("model.safetensors")).expect("weights"));
    distill(&data, &out, &["--teacher-logits", text(&model)]).fails(1, &["expected a file of logits"]);
}

/// Features of a tower that is spoiled come back to those of the teacher.
#[test]
fn towers_learn_features() {
    let temp = Temp::new();
    let (data, out, student) = (answers(&temp, 8), temp.path("out"), temp.path("student"));
    // A student of the teacher's shape: the teacher after a few steps of its own.
    let teacher = tiny("smolvlm_tied");
    let sft = ["train", "sft", "--model", text(&teacher), "--data", text(&data), "--out", text(&student)];
    ocelli(&[&sft[..], &["--steps", "10", "--rate", "1e-2", "--warmup", "0", "-q"]].concat()).well();
    let args = ["train", "distill", "--model", text(&student), "--teacher", text(&teacher), "--features"];
    let more = ["--data", text(&data), "--out", text(&out), "--steps", "30", "--rate", "3e-3", "-q"];
    ocelli(&[&args[..], &more].concat()).well();
    let all = losses(&out);
    assert!(all[0] > 0.0 && all[29] < 0.5 * all[0], "{all:?}");
}

/// The demo answers its own evaluation exactly, and a page shows how it went.
#[test]
fn answers_are_held_against_texts() {
    let temp = Temp::new();
    let right = answers(&temp, 10);
    // The first of the answers that it knows, and others that it does not.
    let wrong = rows(&temp, "wrong.jsonl", 10, |_| "nonsense".to_owned());
    let (out, page) = (temp.path("out"), temp.path("report.html"));
    let exact = |held: &Path, out: &Path, more: &[&str]| {
        let args = ["train", "sft", "--data", text(&right), "--out", text(out), "--validation", text(held)];
        let rest = ["--exact-match", "--steps", "1", "--batch", "2", "--rate", "1e-9", "--json"];
        let done = ocelli(&[&args[..], &rest, more].concat()).json();
        assert_eq!(metrics(out)[0]["exact"], done["exact"]);
        done["exact"].as_f64().expect("a share")
    };
    assert!(exact(&right, &out, &["--report", text(&page)]) >= 0.9);
    assert_eq!(exact(&wrong, &temp.path("wrong"), &[]), 0.0);
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains("Loss by step") && page.contains("are answered exactly"), "{page}");
    assert!(!page.replace("http://www.w3.org/2000/svg", "").contains("http"), "it asks for nothing");
}
