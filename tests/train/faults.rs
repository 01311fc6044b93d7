//! What goes wrong while a model is trained: nothing is lost, and what it was is told.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use ocelli_tests::command::{Temp, command, ocelli};
use ocelli_tests::root;

use super::runs::{losses, rows, text};

/// Steps that are too long end the run; step, rows and parameter are named.
#[test]
fn a_rate_beyond_all_measure_is_told() {
    let temp = Temp::new();
    let data = rows(&temp, "rows.jsonl", 6, |row| row["answer"].as_str().expect("an answer").to_owned());
    let out = temp.path("out");
    let args = ["train", "sft", "--data", text(&data), "--out", text(&out), "--steps", "40", "--batch", "3"];
    let done = ocelli(&[&args[..], &["--warmup", "0", "--rate", "1e3", "--save-every", "1", "-q"]].concat());
    done.fails(1, &["step ", ", lines ", "`", "a smaller learning rate may help"]);
    let lines: Vec<usize> = (1..=6).filter(|line| done.stderr.contains(&line.to_string())).collect();
    assert!(lines.len() >= 3, "{done:?}");
    assert!(done.stderr.contains("not finite") || done.stderr.contains("rose to"), "{done:?}");
    // The steps before are kept.
    assert!(!losses(&out).is_empty() && out.join("checkpoint/training.bin").is_file());
    assert!(!out.join("model.safetensors").exists(), "no model comes of it");
}

/// A disk that is full when a checkpoint is written: the one before stays, and the run goes on from there where there is room.
#[test]
fn a_full_disk_loses_nothing() {
    let temp = Temp::new();
    let data = rows(&temp, "rows.jsonl", 6, |row| row["answer"].as_str().expect("an answer").to_owned());
    let model = root().join("tests/golden/train/smolvlm");
    let run = |out: &Path| {
        let args = ["train", "sft", "--model", text(&model), "--data", text(&data), "--out", text(out)];
        let rest = ["--steps", "4", "--batch", "3", "--save-every", "1", "--resume", "-q"];
        command(&[&args[..], &rest].concat())
    };
    let whole = temp.path("whole");
    assert!(run(&whole).status().expect("its end").success());
    let checkpoint = std::fs::metadata(whole.join("checkpoint/training.bin")).expect("a checkpoint").len();
    // Room for one checkpoint and half of a second, in a file system that nobody else sees.
    let (small, copy) = (temp.path("small"), temp.path("copy"));
    std::fs::create_dir_all(&small).expect("a folder");
    let out = small.join("out");
    let inner = run(&out);
    let script = "mount -t tmpfs -o size=\"$1\" none \"$2\" || exit 99\n\
                  to=\"$3\"; shift 3\n\"$@\"; code=$?\ncp -r \"$OUT\" \"$to\" && exit $code";
    let mut outer = Command::new("unshare");
    outer.args([
        "-rm",
        "sh",
        "-c",
        script,
        "sh",
        &(checkpoint * 3 / 2).to_string(),
        text(&small),
        text(&copy),
    ]);
    outer.arg(inner.get_program()).args(inner.get_args()).env("OUT", &out);
    let done = outer.output();
    let told = done
        .as_ref()
        .map_or_else(ToString::to_string, |done| String::from_utf8_lossy(&done.stderr).into_owned());
    let Some(done) = done.ok().filter(|_| told.contains("error: ")) else {
        println!("skipped: no file system of its own can be mounted here: {told}");
        return;
    };
    assert_eq!(done.status.code(), Some(1), "{told}");
    assert!(told.contains("No space left on device") && told.contains("checkpoint"), "{told}");
    assert!(!copy.join("checkpoint.new").exists(), "what was half written is gone");
    assert!(copy.join("checkpoint/training.bin").is_file(), "the first checkpoint is there");
    // With room it goes on, to the same end.
    assert!(run(&copy).status().expect("its end").success());
    assert_eq!(losses(&copy), losses(&whole));
    let weights = |out: &Path| std::fs::read(out.join("model.safetensors")).expect("a model");
    assert!(weights(&copy) == weights(&whole));
}

/// Rows without what they are to have are told by line and left out.
#[test]
fn rows_of_each_task_are_told() {
    let temp = Temp::new();
    let model = root().join("tests/golden/train/smolvlm");
    let good = root().join("models/demo/eval/000.png");
    let row =
        |image: &str, words: &str| serde_json::json!({"image": image, "text": words}).to_string() + "\n";
    let long = "a red circle ".repeat(200);
    let lines = [
        row("absent.png", "a circle"),
        row(text(&good), " "),
        row(text(&good), &long),
        row(text(&good), "a circle"),
    ];
    let data = temp.write("rows.jsonl", lines.concat());
    let none = temp.write("none.jsonl", "{\"text\": \"a circle\"}\n");
    for (task, more, bad, why) in [
        ("pretrain", &[][..], 3, "prompt: expected at most"),
        ("masked", &["--mask-token", "<|endoftext|>"][..], 3, "prompt: expected at most"),
        ("masked", &["--what", "patches"][..], 1, "absent.png"),
    ] {
        let out = temp.path(&[&[task], more].concat().join(" ").replace(['<', '|', '>'], ""));
        let args = ["train", task, "--model", text(&model), "--data", text(&data), "--out", text(&out)];
        let done = ocelli(&[&args[..], more, &["--steps", "1", "--batch", "4"]].concat());
        assert_eq!(done.code, Some(3), "{done:?}");
        // A row that comes again is told again.
        let told: BTreeSet<&String> = done.notes.iter().filter(|note| note.contains("left out: ")).collect();
        assert_eq!(told.len(), bad, "{done:?}");
        assert!(told.iter().any(|note| note.contains(why)), "{done:?}");
        let empty = told.iter().any(|note| note.contains("line 2: left out: text: expected an answer"));
        // Hidden patches need no text.
        assert_eq!(empty, bad == 3, "{done:?}");
    }
    let out = temp.path("none");
    let args = ["train", "masked", "--what", "patches", "--model", text(&model), "--data", text(&none)];
    let done = ocelli(&[&args[..], &["--out", text(&out), "--steps", "1"]].concat());
    done.fails(1, &["none of its rows can be used"]);
    assert!(done.notes[0].contains("expected a picture, found none"), "{done:?}");
}
