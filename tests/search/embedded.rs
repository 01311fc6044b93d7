//! The dual encoder inside the binary, on scenes that its training never drew: the demo model's evaluation.

use std::path::PathBuf;

use ocelli_tests::command::{Temp, json, ocelli};
use ocelli_tests::root;
use serde_json::Value;

use crate::{args, results};

fn eval() -> PathBuf {
    root().join("models/demo/eval")
}

/// Pictures with captions, all of these different.
fn captions() -> Vec<(String, String)> {
    let all = std::fs::read_to_string(eval().join("eval.jsonl")).unwrap();
    let mut captions: Vec<(String, String)> = Vec::new();
    for row in all.lines().map(json).filter(|row| row["task"] == "caption") {
        let text = |field: &str| row[field].as_str().unwrap().to_owned();
        if captions.iter().all(|(_, caption)| *caption != text("answer")) {
            captions.push((text("image"), text("answer")));
        }
    }
    captions
}

/// Of a hundred pictures and their captions, nine in ten have their own nearest.
#[test]
fn captions_find_their_pictures() {
    let mut line = args(&[&"embed", &"-q"]);
    let captions = &captions()[..100];
    line.extend(captions.iter().map(|(picture, _)| eval().join(picture).into_os_string()));
    line.extend(captions.iter().flat_map(|(_, caption)| args(&[&"--text", caption])));
    let text = ocelli(&line).well();
    let vector = |line: &str| -> Vec<f64> {
        let line: Value = json(line);
        line["vector"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    };
    let vectors: Vec<Vec<f64>> = text.lines().map(vector).collect();
    let (pictures, texts) = vectors.split_at(100);
    assert_eq!(texts.len(), 100);
    let hits = |from: &[Vec<f64>], to: &[Vec<f64>]| {
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let best = |one: &Vec<f64>| {
            (0..to.len()).max_by(|&a, &b| product(one, &to[a]).total_cmp(&product(one, &to[b])))
        };
        from.iter().enumerate().filter(|(own, one)| best(one) == Some(*own)).count()
    };
    let (of_pictures, of_texts) = (hits(pictures, texts), hits(texts, pictures));
    println!("captions of pictures: {of_pictures} of 100, pictures of captions: {of_texts}");
    assert!(of_pictures >= 90, "{of_pictures} of 100 pictures have their own caption nearest");
    assert!(of_texts >= 85, "{of_texts} of 100 captions have their own picture nearest");
}

/// Without --model, and told so: an index is made, renewed and asked, and labels are told apart.
#[test]
fn a_fresh_machine_finds_what_is_described() {
    let temp = Temp::new();
    let (folder, idx) = (temp.path("pictures"), temp.path("idx"));
    std::fs::create_dir(&folder).unwrap();
    let captions = &captions()[100..116];
    for (picture, _) in captions {
        std::fs::copy(eval().join(picture), folder.join(picture)).unwrap();
    }
    let made = ocelli(&args(&[&"index", &folder, &"--out", &idx]));
    let told = made.notes.iter().any(|note| note.contains("the demo dual encoder"));
    assert!(made.code == Some(0) && told, "{made:?}");
    let again = ocelli(&args(&[&"index", &folder, &"--out", &idx, &"--json"])).json();
    assert_eq!((&again["model"], &again["family"]), (&"demo".into(), &"siglip".into()));
    assert_eq!((&again["kind"], &again["unchanged"]), (&"dual_encoder".into(), &16.into()));
    let mut first = 0;
    for (picture, caption) in &captions[..4] {
        let value = ocelli(&args(&[&"search", &idx, &caption, &"-k", &"3", &"--json"])).json();
        first += usize::from(results(&value)[0].0 == *picture);
    }
    assert!(first >= 3, "{first} of 4 pictures are found first");

    let one = root().join("models/demo/examples/01.png");
    let done = ocelli(&args(&[&"classify", &one, &"--labels", &"red circle,blue square", &"--json"])).json();
    assert_eq!(done["model"], "demo");
    assert_eq!(done["pictures"][0]["labels"].as_array().map(Vec::len), Some(2));
}
