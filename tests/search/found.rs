//! What is found, and its scores.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;

use ocelli_tests::command::{Temp, demo, json, ocelli};
use serde_json::Value;

use crate::{args, counts, drawn, index, like, results, siglip};

/// Vectors of `ocelli embed`, by the name of the picture, or the text.
fn embed(model: &Path, what: &[&dyn AsRef<OsStr>]) -> HashMap<String, Vec<f32>> {
    let line = [args(&[&"embed", &"--backend", &"cpu", &"--model", &model]), args(what)].concat();
    let text = ocelli(&line).well();
    let line = |line: &str| {
        let line: Value = json(line);
        let name = line["picture"].as_str().map(|path| path.rsplit('/').next().unwrap().to_owned());
        let vector = line["vector"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32);
        (name.unwrap_or_else(|| line["text"].as_str().unwrap().to_owned()), vector.collect())
    };
    text.lines().map(line).collect()
}

/// The product in f64, in order.
fn product(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// The same pictures in the same order, with the same scores: what the test reads of a number in JSON is at most one last bit away.
#[track_caller]
fn same(found: &[(String, f64)], expected: &[(String, f64)]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.0, expected.0);
        assert!((found.1 - expected.1).abs() <= f64::EPSILON, "{found:?} {expected:?}");
    }
}

#[test]
fn a_thousand_pictures_by_a_dual_encoder() {
    let temp = Temp::new();
    let (folder, idx, model) = (temp.path("drawn"), temp.path("idx"), siglip());
    drawn::folder(&folder, 1000);
    let made = index(&folder, &idx, &model);
    assert_eq!(counts(&made), [1000, 0, 0, 0, 0, 0, 1000], "{made}");
    assert_eq!((&made["pictures"], &made["kind"]), (&1000.into(), &"dual_encoder".into()));
    // Each picture finds itself first; scores are f64 products of the vectors that `embed` gives.
    let vectors = embed(&model, &[&folder]);
    assert_eq!(vectors.len(), 1000);
    for number in [0, 17, 999] {
        let name = format!("{number:04}.png");
        let picture = folder.join(&name);
        let query = &embed(&model, &[&picture])[&name];
        let found = like(&idx, &picture, 1000);
        assert_eq!((found.len(), &found[0].0), (1000, &name));
        assert!((found[0].1 - 1.0).abs() < 1e-6, "{found:?}");
        let mut expected: Vec<(String, f64)> =
            vectors.iter().map(|(name, vector)| (name.clone(), product(vector, query))).collect();
        expected.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        same(&found, &expected);
        same(&like(&idx, &picture, 7), &expected[..7]);
    }
    // A text is asked the same way.
    let text = "a photo of a flower";
    let query = &embed(&model, &[&"--text", &text])[text];
    let value = ocelli(&args(&[&"search", &idx, &text, &"--json", &"--backend", &"cpu"])).json();
    assert_eq!((&value["text"], &value["pictures"]), (&text.into(), &1000.into()));
    let found = results(&value);
    assert_eq!(found.len(), 10, "the default of -k");
    for (name, score) in &found {
        assert!((score - product(&vectors[name], query)).abs() <= f64::EPSILON, "{name} {score}");
    }
    let best = vectors.values().map(|vector| product(vector, query)).fold(f64::MIN, f64::max);
    assert!((found[0].1 - best).abs() <= f64::EPSILON, "{best} {:?}", found[0]);
    // As lines, with fewer digits.
    let lines = ocelli(&args(&[&"search", &idx, &text, &"-k", &"2", &"--backend", &"cpu"])).well();
    let expected: String = found[..2].iter().map(|(name, score)| format!("{score:.4}  {name}\n")).collect();
    assert_eq!(lines, expected);
}

#[test]
fn bounds_of_k() {
    let temp = Temp::new();
    let (folder, idx) = (temp.path("drawn"), temp.path("idx"));
    drawn::folder(&folder, 5);
    index(&folder, &idx, &siglip());
    for (k, count) in [(1, 1), (5, 5), (6, 5), (1_000_000, 5)] {
        assert_eq!(like(&idx, &folder.join("0003.png"), k).len(), count);
    }
    for k in ["0", "-1", "x", "1.5"] {
        ocelli(&args(&[&"search", &idx, &"x", &"-k", &k])).fails(2, &["-k", "1 or more"]);
    }
}

#[test]
fn towers_of_models_that_give_answers() {
    let temp = Temp::new();
    let (folder, idx) = (temp.path("drawn"), temp.path("idx"));
    drawn::folder(&folder, 60);
    let made = index(&folder, &idx, &demo());
    assert_eq!(
        (&made["kind"], &made["family"], &made["new"]),
        (&"pooled_tower".into(), &"smolvlm".into(), &60.into())
    );
    let vectors = embed(&demo(), &[&folder]);
    for number in [3, 59] {
        let name = format!("{number:04}.png");
        let found = like(&idx, &folder.join(&name), 60);
        assert_eq!((found.len(), &found[0].0), (60, &name));
        let query = &embed(&demo(), &[&folder.join(&name)])[&name];
        for (name, score) in found {
            assert!((score - product(&vectors[&name], query)).abs() <= f64::EPSILON, "{name} {score}");
        }
    }
    // What the vectors are is said, and texts are refused with the reason.
    let done =
        ocelli(&args(&[&"embed", &"--backend", &"cpu", &"--model", &demo(), &folder.join("0000.png")]));
    assert!(
        done.notes.iter().any(|note| note.contains("pooled tower features of a smolvlm model")),
        "{done:?}"
    );
    assert_eq!(json(&done.well())["kind"], "pooled_tower");
    ocelli(&args(&[&"search", &idx, &"a red circle"]))
        .fails(2, &["pooled tower features", "smolvlm", "--image"]);
    ocelli(&args(&[&"embed", &"--backend", &"cpu", &"--model", &demo(), &"--text", &"x"]))
        .fails(1, &["text", "pooled tower features"]);
}

#[test]
fn a_page_that_needs_nothing_else() {
    let temp = Temp::new();
    let (folder, idx, page) = (temp.path("drawn"), temp.path("idx"), temp.path("page.html"));
    drawn::folder(&folder, 4);
    drawn::draw(&folder.join("a<b>&\"c\".png"), 9);
    index(&folder, &idx, &siglip());
    std::fs::remove_file(folder.join("0002.png")).unwrap();
    ocelli(&args(&[
        &"search",
        &idx,
        &"--image",
        &folder.join("0001.png"),
        &"--html",
        &page,
        &"--backend",
        &"cpu",
    ]))
    .well();
    let text = std::fs::read_to_string(&page).unwrap();
    // The query and all but the one that is gone.
    assert_eq!(text.matches("src=\"data:image/jpeg;base64,").count(), 5, "{text}");
    assert_eq!(text.matches("cannot be read now").count(), 1);
    assert_eq!(text.matches("<li>").count(), 5);
    assert!(text.contains("a&lt;b&gt;&amp;&quot;c&quot;.png") && !text.contains("a<b>"));
    for outside in ["http:", "https:", "url(", "<script", "@import"] {
        assert!(!text.contains(outside), "{outside}");
    }
    assert!(text.contains("default-src 'none'") && text.contains("prefers-color-scheme: dark"));
    ocelli(&args(&[&"search", &idx, &"<i>", &"--html", &page, &"--backend", &"cpu"])).well();
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.contains("&lt;i&gt;") && !text.contains("<i>"));
    ocelli(&args(&[&"search", &idx, &"x", &"--html", &temp.path("no/such/page.html"), &"--backend", &"cpu"]))
        .fails(1, &["--html", "such"]);
}
