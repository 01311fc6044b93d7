//! `ocelli quantize --calibrate`.

use std::fs;

use serde_json::{Value, json};

use crate::{Temp, example, ocelli};

/// A list of rows about example pictures.
fn list(temp: &Temp) -> String {
    let rows = [
        json!({"image": example("01.png"), "prompt": "How many objects are there?"}),
        json!({"images": [example("02.png")], "question": "Caption this image."}),
        json!({"image": example("03.png")}),
        json!({"prompt": "Which colours do you know?"}),
    ];
    let path = temp.path("rows.jsonl");
    fs::write(&path, rows.map(|row| format!("{row}\n")).concat()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn copies_are_calibrated() {
    let temp = Temp::new();
    let list = list(&temp);
    let picture = example("04.png");
    let write = |name: &str, more: &[&str]| -> Value {
        let out = temp.path(name);
        let args = ["quantize", "--out", out.to_str().unwrap(), "--format", "int4", "--json"];
        let data = ["--calibration-tokens", "8", "--calibrate", &list, picture.to_str().unwrap()];
        ocelli(&[&args[..], more, &data].concat()).json()
    };
    let nearest = write("nearest", &["--rounding", "nearest"]);
    let gptq = write("gptq", &[]);
    let awq = write("awq", &["--scaling", "awq", "--clip"]);
    let error = |of: &Value| of["output_error"].as_f64().unwrap();
    assert!(error(&gptq) < 0.9 * error(&nearest), "{gptq}\n{nearest}");
    assert!(error(&awq) < 0.9 * error(&nearest), "{awq}\n{nearest}");
    for (done, rounding) in [(&nearest, "nearest"), (&gptq, "gptq"), (&awq, "gptq")] {
        let modules = done["modules"].as_array().unwrap();
        assert_eq!(modules.len(), 36);
        let up =
            modules.iter().find(|of| of["name"].as_str().unwrap().ends_with("layers.0.mlp.up_proj")).unwrap();
        assert_eq!(up["rounding"], rounding);
        assert!(up["weight_error"].as_f64().unwrap() > 0.01 && up["output_error"].is_f64(), "{up}");
        assert_eq!(done["drift"]["rows"], 5);
        assert!(done["drift"]["top1"].as_f64().unwrap() > 0.8, "{}", done["drift"]);
    }
    assert!(awq["modules"].as_array().unwrap().iter().any(|of| of["scaling"].is_number()), "{awq}");
    let notes = gptq["notes"].to_string();
    assert!(notes.contains("1 matrices are rounded to nearest (token table and head"), "{notes}");
    // The copy is one as every other.
    let out = temp.path("awq");
    let args = ["run", "--model", out.to_str().unwrap(), "--image", picture.to_str().unwrap()];
    assert!(!ocelli(&[&args[..], &["How many objects are there?"]].concat()).well().is_empty());
    let answer = example("01.png");
    let args = ["run", "--model", out.to_str().unwrap(), "--image", answer.to_str().unwrap()];
    assert_eq!(ocelli(&[&args[..], &["How many objects are there?"]].concat()).well(), "two\n");
}

#[test]
fn what_copies_are_off_by_is_told() {
    let temp = Temp::new();
    let quantize = |name: &str, more: &[&str]| {
        let out = temp.path(name);
        ocelli(&[&["quantize", "--out", out.to_str().unwrap(), "--format", "int8"], more].concat()).well()
    };
    let text = quantize("plain", &[]);
    assert_eq!(text.lines().count(), 2 + 5, "{text}");
    assert!(text.contains("in the mean weights are off by 0."), "{text}");
    let text = quantize("all", &["--modules"]);
    assert_eq!(text.lines().count(), 2 + 35, "{text}");
    assert!(text.contains("layers.4.self_attn.o_proj (int8g32, nearest)"), "{text}");
    let picture = example("01.png");
    let text = quantize("seen", &["--calibrate", picture.to_str().unwrap(), "--calibration-tokens", "4"]);
    assert!(text.contains("drift on 4 tokens of 1 answers") && text.contains("gptq)"), "{text}");
}

#[test]
fn calibration_data_that_is_none_is_told() {
    let temp = Temp::new();
    let out = temp.path("out");
    let quantize = |more: &[&str]| {
        ocelli(&[&["quantize", "--out", out.to_str().unwrap(), "--format", "int4"], more].concat())
    };
    quantize(&["--rounding", "gptq"]).fails(2, &["--rounding gptq: expected --calibrate"]);
    quantize(&["--scaling", "awq"]).fails(2, &["--scaling awq: expected --calibrate"]);
    quantize(&["--clip"]).fails(2, &["--clip: expected --calibrate"]);
    quantize(&["--calibrate", "/nowhere/rows.jsonl"]).fails(1, &["/nowhere/rows.jsonl"]);
    quantize(&["--calibrate", "/nowhere/pictures"]).fails(1, &["/nowhere/pictures: no such file or folder"]);
    let empty = temp.path("empty.jsonl");
    fs::write(&empty, "\n").unwrap();
    quantize(&["--calibrate", empty.to_str().unwrap()]).fails(1, &["empty.jsonl: no rows"]);
    let bad = temp.path("bad.jsonl");
    fs::write(&bad, "{\"image\": \"absent.png\"}\n").unwrap();
    quantize(&["--calibrate", bad.to_str().unwrap()]).fails(1, &["row `1`", "absent.png"]);
    fs::write(&bad, "{\"caption\": \"a cat\"}\n").unwrap();
    quantize(&["--calibrate", bad.to_str().unwrap()]).fails(1, &["row `1`: expected a picture or a prompt"]);
    fs::write(&bad, "no JSON\n").unwrap();
    quantize(&["--calibrate", bad.to_str().unwrap()]).fails(1, &["bad.jsonl: line 1: not JSON"]);
    assert!(!out.exists());
    let left: Vec<_> = fs::read_dir(temp.path("")).unwrap().flatten().map(|of| of.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
    // A model that gives vectors has no answers to calibrate on.
    let (clip, picture) = (crate::golden("clip"), example("01.png"));
    let args = ["quantize", clip.to_str().unwrap(), "--out", out.to_str().unwrap(), "--format", "int8"];
    ocelli(&[&args[..], &["--calibrate", picture.to_str().unwrap()]].concat())
        .fails(1, &["expected a model that gives answers"]);
}
