//! Texts that are learnt whole, what is hidden, and pictures that are changed before.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ocelli_engine::weights::TensorFile;
use ocelli_tests::command::{Temp, command, demo, json, ocelli};
use ocelli_tests::root;
use serde_json::Value;

use super::runs::{losses, metrics, rows, text};

/// A tiny model.
fn tiny(name: &str) -> PathBuf {
    root().join("tests/golden/train").join(name)
}

/// Rows with pictures and texts, without prompts.
fn captions(temp: &Temp, count: usize) -> PathBuf {
    let eval = root().join("models/demo/eval");
    let all = std::fs::read_to_string(eval.join("eval.jsonl")).expect("the evaluation");
    let line = |line: &str| {
        let row = json(line);
        let image = eval.join(row["image"].as_str().expect("a picture"));
        let caption = format!("{} {}", row["question"].as_str().unwrap(), row["answer"].as_str().unwrap());
        serde_json::json!({"image": image, "text": caption}).to_string() + "\n"
    };
    temp.write("captions.jsonl", all.lines().step_by(7).take(count).map(line).collect::<String>())
}

fn run(task: &str, data: &Path, out: &Path, more: &[&str]) -> Value {
    let args = ["train", task, "--data", text(data), "--out", text(out), "--json"];
    ocelli(&[&args[..], more].concat()).json()
}

fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len() as f64
}

/// From nothing a model begins at what guessing costs, and learns.
#[test]
fn texts_are_learnt_from_nothing() {
    let temp = Temp::new();
    let (data, out) = (captions(&temp, 16), temp.path("out"));
    let config = tiny("smolvlm").join("config.json");
    let more = ["--config", text(&config), "--steps", "30", "--rate", "1e-2", "--validation-share", "0.25"];
    let done = run("pretrain", &data, &out, &more);
    assert_eq!((&done["rows"], &done["steps"]), (&12.into(), &30.into()));
    let all = losses(&out);
    // Logits of fresh weights are small: each token has about the same chance among 100.
    assert!((all[0] - 100f64.ln()).abs() < 0.1, "{all:?}");
    assert!(mean(&all[25..]) < 0.7 * all[0], "{all:?}");
    assert!(done["validation"].as_f64().expect("a loss") < 0.9 * all[0], "{done}");
    // What comes out is a model.
    let asked = ["run", "--model", text(&out), "--max-tokens", "3", "Hello"];
    assert_eq!(ocelli(&asked).code, Some(0));
    // All rows have as many tokens in each epoch, whatever the seed: the text, its end, and not its picture.
    let other = temp.path("other");
    run("pretrain", &data, &other, &["--config", text(&config), "--epochs", "1", "--batch", "16"]);
    let learnt = |out: &Path| metrics(out)[0]["learnt"].as_u64().expect("a number");
    assert!(learnt(&other) > 16 * 10, "{}", learnt(&other));
}

/// Long texts without pictures become several sequences, which lose nothing but what each begins with.
#[test]
fn long_texts_are_cut() {
    let temp = Temp::new();
    let data = temp.write("long.jsonl", format!("{{\"text\": \"{}\"}}\n", "a red circle ".repeat(40)));
    let counts = |most: &str| {
        let out = temp.path(most);
        run(
            "pretrain",
            &data,
            &out,
            &["--model", text(&tiny("smolvlm")), "--steps", "1", "--batch", "1", "--max-tokens", most],
        );
        let first = &metrics(&out)[0];
        (first["tokens"].as_u64().expect("a number"), first["learnt"].as_u64().expect("a number"))
    };
    let (whole, learnt) = counts("256");
    assert_eq!(learnt, whole - whole.div_ceil(256));
    assert_eq!(counts("32").1, whole - whole.div_ceil(32));
}

#[test]
fn hidden_tokens_are_learnt() {
    let temp = Temp::new();
    let (data, out) = (captions(&temp, 8), temp.path("out"));
    let model = tiny("smolvlm");
    let args = ["train", "masked", "--data", text(&data), "--out", text(&out), "--batch", "8", "--json"];
    let more = ["--model", text(&model), "--steps", "40", "--rate", "1e-2", "--share", "0.3"];
    let done = ocelli(&[&args[..], &more].concat());
    assert!(done.notes.iter().any(|note| note.contains("no mask token")), "{done:?}");
    let all = losses(&out);
    assert!(mean(&all[35..]) < 0.8 * mean(&all[..5]), "{all:?}");
    let learnt: Vec<u64> = metrics(&out).iter().map(|line| line["learnt"].as_u64().unwrap()).collect();
    let tokens = metrics(&out)[0]["tokens"].as_u64().unwrap();
    assert!(
        learnt.iter().all(|&learnt| learnt == learnt.min(tokens / 2) && learnt == learnt.max(8)),
        "{learnt:?}"
    );
    let done = ocelli(&[&args[..], &["--model", text(&model), "--mask-token", "<nothing>"]].concat());
    done.fails(1, &[]);
}

/// A head learns pixels of hidden patches, or the features that a teacher has of them; the model itself stays one of its kind.
#[test]
fn hidden_patches_are_learnt() {
    let temp = Temp::new();
    let data = captions(&temp, 8);
    for (name, teacher, n) in [("pixels", None, 48), ("features", Some("smolvlm"), 12)] {
        let (model, out) = (tiny("smolvlm_tied"), temp.path(name));
        let teacher = teacher.map(tiny);
        let mut more = vec!["--model", text(&model), "--what", "patches", "--predict", name];
        more.extend(["--steps", "40", "--rate", "1e-2", "--batch", "8", "--validation", text(&data)]);
        if let Some(teacher) = &teacher {
            more.extend(["--teacher", text(teacher)]);
        }
        let args = ["train", "masked", "--data", text(&data), "--out", text(&out), "--json"];
        let done = ocelli(&[&args[..], &more].concat()).json();
        let all = losses(&out);
        assert!(mean(&all[35..]) < 0.9 * mean(&all[..3]), "{name}: {all:?}");
        assert!(done["validation"].as_f64().expect("a loss") < mean(&all[..3]), "{done}");
        // Half of 16 patches of 8 pictures.
        assert_eq!(metrics(&out)[0]["learnt"], 64);
        let head = TensorFile::open(&out.join("checkpoint/masked_head.safetensors")).expect("a head");
        assert_eq!(head.info("masked_head.weight").expect("a matrix").shape, [n, 8]);
        let (before, after) = (model.join("model.safetensors"), out.join("model.safetensors"));
        let (before, after) = (TensorFile::open(&before).unwrap(), TensorFile::open(&after).unwrap());
        assert!(before.names().eq(after.names()), "{:?}", after.names().collect::<Vec<_>>());
        for name in before.names() {
            let same = before.bytes(name).unwrap() == after.bytes(name).unwrap();
            assert_eq!(same, !name.contains("vision_model"), "{name}");
        }
    }
    let args = ["train", "masked", "--what", "patches", "--predict", "features", "--data", text(&data)];
    let out = temp.path("none");
    let usage = ocelli(&[&args[..], &["--model", text(&tiny("smolvlm")), "--out", text(&out)]].concat());
    usage.fails(2, &["expected --teacher"]);
    let teacher = demo();
    let other = ["--model", text(&tiny("smolvlm")), "--out", text(&out), "--teacher", text(&teacher)]
        .map(str::to_owned);
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).chain(other).collect();
    ocelli(&args).fails(1, &["teacher and student are to see pictures in the same patches"]);
}

/// What is drawn for pictures and tokens follows from the seed: a run that is gone on with gives the same bits.
#[test]
fn what_is_drawn_is_drawn_again() {
    let temp = Temp::new();
    let data = captions(&temp, 8);
    let model = tiny("smolvlm");
    let args = |out: &Path, steps: &str, more: &[&str]| -> Vec<String> {
        let all = ["train", "masked", "--model", text(&model), "--data", text(&data), "--out", text(out)];
        let drawn = ["--crop", "0.5", "--flip", "--colour", "0.3", "--mask-token", "<|endoftext|>"];
        let rest = ["--batch", "4", "--schedule", "constant", "--warmup", "0", "-q", "--steps", steps];
        all.iter().chain(&drawn).chain(&rest).chain(more).map(|arg| (*arg).to_owned()).collect()
    };
    let (whole, again, plain) = (temp.path("whole"), temp.path("again"), temp.path("plain"));
    ocelli(&args(&whole, "6", &[])).well();
    ocelli(&args(&again, "6", &[])).well();
    assert_eq!(losses(&whole), losses(&again));
    let weights = |out: &Path| std::fs::read(out.join("model.safetensors")).expect("a model");
    assert!(weights(&whole) == weights(&again));
    // Killed between two steps, and gone on with.
    let (long, cut) = (temp.path("long"), temp.path("cut"));
    ocelli(&args(&long, "60", &[])).well();
    let mut child = command(&args(&cut, "60", &["--save-every", "1"])).spawn().expect("the command starts");
    let start = Instant::now();
    while metrics(&cut).len() < 5 && child.try_wait().expect("a child").is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "no step is done");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(child.try_wait().expect("a child").is_none(), "it was over before it could be killed");
    child.kill().expect("its end");
    child.wait().expect("its end");
    ocelli(&args(&cut, "60", &["--save-every", "1", "--resume"])).well();
    assert_eq!(losses(&cut), losses(&long));
    assert!(weights(&cut) == weights(&long));
    ocelli(&args(&plain, "6", &["--seed", "1"])).well();
    assert_ne!(losses(&whole), losses(&plain));
    let data = rows(&temp, "answers.jsonl", 4, |_| "two".to_owned());
    let out = temp.path("sft");
    let first = |out: &Path, more: &[&str]| {
        let args = ["train", "sft", "--model", text(&model), "--data", text(&data), "--out", text(out)];
        let rest = ["--steps", "1", "--batch", "4", "-q"];
        ocelli(&[&args[..], &rest, more].concat()).well();
        losses(out)[0]
    };
    let (as_it_is, changed) = (first(&out, &[]), first(&temp.path("changed"), &["--crop", "0.3"]));
    assert_ne!(as_it_is, changed);
}
