//! Runs of `ocelli train contrastive`.

use std::path::{Path, PathBuf};

use ocelli_tests::command::{Temp, json, ocelli};
use ocelli_tests::root;
use serde_json::Value;

/// What the captions of the demo's evaluation begin with, their pictures by absolute paths.
fn rows(temp: &Temp, name: &str, first: usize, count: usize) -> PathBuf {
    let eval = root().join("models/demo/eval");
    let all = std::fs::read_to_string(eval.join("eval.jsonl")).expect("the evaluation");
    let captions = all.lines().map(json).filter(|row| row["task"] == "caption");
    let lines = captions.skip(first).take(count).map(|row| {
        let image = eval.join(row["image"].as_str().expect("a picture"));
        // The tiny models take few tokens.
        let words: Vec<&str> =
            row["answer"].as_str().expect("a caption").split(' ').skip(2).take(2).collect();
        serde_json::json!({"image": image, "text": words.join(" ")}).to_string() + "\n"
    });
    temp.write(name, lines.collect::<String>())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn tiny(name: &str) -> PathBuf {
    root().join("tests/golden/train").join(name)
}

fn metrics(out: &Path) -> Vec<Value> {
    let lines = std::fs::read_to_string(out.join("metrics.jsonl")).expect("metrics");
    lines.lines().map(json).collect()
}

/// From fresh weights and from given ones, in one pass a step and in several: the loss falls, and what comes out gives vectors.
#[test]
fn dual_encoders_learn() {
    let temp = Temp::new();
    let (data, held) = (rows(&temp, "rows.jsonl", 0, 24), rows(&temp, "held.jsonl", 24, 6));
    for (name, from, chunk) in [
        ("clip", "--model", "8"),
        ("siglip", "--config", "8"),
        ("clip", "--config", "3"),
        ("siglip", "--model", "3"),
    ] {
        let (model, out) = (tiny(name), temp.path(&format!("{name}{from}")));
        let model = if from == "--config" { model.join("config.json") } else { model };
        let args = ["train", "contrastive", from, text(&model), "--data", text(&data), "--out", text(&out)];
        let more = [
            "--validation",
            text(&held),
            "--steps",
            "24",
            "--batch",
            "8",
            "--rate",
            "5e-3",
            "--chunk",
            chunk,
        ];
        let done = ocelli(&[&args[..], &more, &["--json"]].concat()).json();
        assert_eq!((&done["schema"], &done["steps"]), (&"ocelli.train.v1".into(), &24.into()));
        for side in ["texts", "pictures"] {
            let share = done["recall"][side].as_f64().expect("a recall");
            assert!((0.0..=1.0).contains(&share), "{done}");
        }
        let all: Vec<f64> = metrics(&out).iter().map(|line| line["loss"].as_f64().expect("a loss")).collect();
        let (first, last) = (all[..4].iter().sum::<f64>(), all[20..].iter().sum::<f64>());
        assert!(last < first, "{name} {from}: {all:?}");
        let line = ocelli(&["embed", "--model", text(&out), "--text", "a red circle"]).well();
        assert!(json(&line)["vector"].as_array().is_some_and(|vector| vector.len() >= 10), "{line}");
    }
}

/// A run that is made again has the same bits, and does not write over the first.
#[test]
fn runs_of_pairs_are_repeatable() {
    let temp = Temp::new();
    let data = rows(&temp, "rows.jsonl", 0, 12);
    let model = tiny("siglip");
    let run = |out: &Path, more: &[&str]| {
        let args = ["train", "contrastive", text(&model), "--data", text(&data), "--out", text(out)];
        ocelli(&[&args[..], &["--batch", "6", "--steps", "6", "-q"], more].concat())
    };
    let (one, other) = (temp.path("one"), temp.path("other"));
    run(&one, &[]).well();
    run(&other, &["--resume"]).well();
    let weights = |out: &Path| std::fs::read(out.join("model.safetensors")).expect("a model");
    assert!(weights(&one) == weights(&other), "the weights differ");
    run(&one, &[]).fails(1, &["a run has written there already"]);
    // How many go through the model at once is part of what a run is told.
    run(&one, &["--resume", "--chunk", "3"]).fails(1, &["a run with other options or rows"]);
}

#[test]
fn bad_pairs_are_told() {
    let temp = Temp::new();
    let good = std::fs::read_to_string(rows(&temp, "rows.jsonl", 0, 4)).expect("rows");
    let bad = "{\"image\": \"absent.png\", \"text\": \"a ring\"}\n{\"image\": \"a.png\"}\n";
    let (data, out, model) =
        (temp.write("bad.jsonl", format!("{bad}{good}")), temp.path("out"), tiny("clip"));
    let args = ["train", "contrastive", "--model", text(&model), "--data", text(&data), "--out", text(&out)];
    let done = ocelli(&[&args[..], &["--batch", "5"]].concat());
    assert_eq!(done.code, Some(3), "{done:?}");
    for what in ["line 1: left out: ", "absent.png", "line 2: left out: no field `text`"] {
        assert!(done.notes.iter().any(|note| note.contains(what)), "no `{what}` in {:?}", done.notes);
    }
    let away = temp.path("away");
    let args = ["train", "contrastive", "--data", text(&data), "--out", text(&away), "--dry-run"];
    let config = ["--config", text(&data)];
    ocelli(&[&args[..], &config].concat()).fails(2, &["--config: expected a file config.json"]);
    let freeze = ["--model", text(&model), "--train", "texts,scale", "--freeze", "text_model.encoder"];
    let told = ocelli(&[&args[..], &freeze].concat());
    assert!(told.stdout.contains("parameters are trained, by 5 rows"), "{told:?}");
    let none = ["--model", text(&model), "--freeze", "text_,vision_,visual_,logit_"];
    ocelli(&[&args[..], &none].concat()).fails(1, &["no parameter is chosen"]);
    // A model that gives answers has no such pairs.
    let demo = root().join("models/demo/model");
    ocelli(&[&args[..], &["--model", text(&demo)]].concat()).fails(1, &["vectors"]);
    assert!(!away.exists());
}
