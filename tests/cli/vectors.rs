//! `ocelli embed` and `ocelli classify`.

use std::path::PathBuf;

use ocelli_engine::weights::TensorFile;
use serde_json::Value;

use crate::{Done, Temp, demo, example, golden, json, ocelli};

const FAMILIES: [&str; 3] = ["clip", "siglip", "siglip2"];
const PHOTO: &str = "flower_c107-0-533-427_64x64.png";
const WIDE: &str = "china_131x87.png";
const TEXTS: [&str; 3] =
    ["a photo of a flower", "An old temple in the mountains.", "two cats & a dog, 12 birds"];

fn picture(name: &str) -> String {
    golden("images").join(name).to_str().unwrap().to_owned()
}

fn model(family: &str) -> String {
    golden(family).to_str().unwrap().to_owned()
}

/// A tensor of the reference's case `both`, in rows.
fn reference(family: &str, key: &str, rows: usize) -> Vec<Vec<f32>> {
    let file = TensorFile::open(&golden(family).join("golden.safetensors")).unwrap();
    let values = file.floats(&format!("both.{key}")).unwrap();
    values.chunks_exact(values.len() / rows).map(<[f32]>::to_vec).collect()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(json).collect()
}

fn vector(line: &Value) -> Vec<f32> {
    line["vector"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

/// The cosine of two vectors of unit length.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    assert!((product(a, a).sqrt() - 1.0).abs() < 1e-5, "of unit length: {a:?}");
    product(a, b)
}

#[test]
fn vectors_are_those_of_the_reference() {
    for family in FAMILIES {
        let (model, photo, wide) = (model(family), picture(PHOTO), picture(WIDE));
        let expected = [reference(family, "image_embeds", 2), reference(family, "text_embeds", 3)].concat();
        let args = [
            "embed", "--model", &model, &photo, &wide, "--text", TEXTS[0], "--text", TEXTS[1], "--text",
            TEXTS[2],
        ];
        let got = lines(&ocelli(&args).well());
        assert_eq!(got.len(), 5);
        assert_eq!((&got[0]["picture"], &got[4]["text"]), (&photo.as_str().into(), &TEXTS[2].into()));
        for (line, expected) in got.iter().zip(&expected) {
            let cosine = cosine(&vector(line), expected);
            assert!(cosine >= 0.99999, "{family}: {cosine}");
        }
        // The same as one array, and whatever the batch is.
        let temp = Temp::new();
        let out = temp.path("vectors.npy");
        let more = ["--batch", "1", "--format", "npy", "--out", out.to_str().unwrap()];
        assert_eq!(ocelli(&[&args[..], &more].concat()).well(), "");
        let (shape, values) = npy(&out);
        assert_eq!(shape, format!("(5, {})", expected[0].len()));
        for (row, line) in values.chunks_exact(expected[0].len()).zip(&got) {
            assert!(cosine(row, &vector(line)) > 0.999_999);
        }
        assert_eq!(std::fs::read_dir(&temp.0).unwrap().count(), 1, "nothing but the file");
    }
}

/// Shape and values of a NumPy file.
fn npy(path: &PathBuf) -> (String, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00"));
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let head = std::str::from_utf8(&bytes[10..end]).unwrap();
    assert!(head.contains("'<f4'") && head.contains("'fortran_order': False"), "{head}");
    let shape = &head[head.find('(').unwrap()..=head.find(')').unwrap()];
    let values = bytes[end..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    (shape.to_owned(), values.collect())
}

#[test]
fn folders_are_read_in_order_and_what_is_broken_stops_nothing() {
    let temp = Temp::new();
    std::fs::create_dir(temp.path("b")).unwrap();
    for (to, from) in [("c.png", PHOTO), ("b/z.PNG", WIDE)] {
        std::fs::copy(golden("images").join(from), temp.path(to)).unwrap();
    }
    temp.write("a.jpg", "no picture");
    temp.write("notes.txt", "no picture either");
    let dir = temp.0.to_str().unwrap();
    let model = model("clip");
    let base = ["embed", "--model", &model, dir, "--text", "x"];
    let done = ocelli(&base);
    assert_eq!(done.code, Some(1), "{done:?}");
    let got = lines(&done.stdout);
    let names: Vec<&str> =
        got.iter().filter_map(|line| line["picture"].as_str()?.strip_prefix(dir)).collect();
    assert_eq!(names, ["/a.jpg", "/b/z.PNG", "/c.png"]);
    assert_eq!(got.len(), 4);
    assert!(got[0]["error"].as_str().unwrap().contains("a.jpg") && got[0]["vector"].is_null());
    assert!(got[1..].iter().all(|line| vector(line).len() == 48), "{done:?}");
    let errors: Vec<&str> = done.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 2, "{done:?}");
    assert!(errors[0].contains("a.jpg") && errors[1].contains("1 of 3 pictures"), "{done:?}");
    // Rows stay where they are.
    let out = temp.path("vectors.npy");
    let done = ocelli(&[&base[..], &["--format", "npy", "--out", out.to_str().unwrap()]].concat());
    assert_eq!((done.code, &*done.stdout), (Some(1), ""));
    let (shape, values) = npy(&out);
    assert_eq!(shape, "(4, 48)");
    assert!(values[..48].iter().all(|value| value.is_nan()) && values[48..].iter().all(|v| v.is_finite()));

    let empty = Temp::new();
    ocelli(&["embed", "--model", &model, empty.0.to_str().unwrap()]).fails(1, &["no picture in this folder"]);
    let nowhere = temp.path("no/such/file");
    ocelli(&["embed", "--model", &model, "--text", "x", "--out", nowhere.to_str().unwrap()])
        .fails(1, &["such"]);
}

#[test]
fn labels_of_pictures() {
    for family in FAMILIES {
        let (model, photo, wide) = (model(family), picture(PHOTO), picture(WIDE));
        let labels = TEXTS[..2].join(",");
        let base = ["classify", "--model", &model, "--labels", &labels, "--template", "{}", &photo, &wide];
        let value = ocelli(&[&base[..], &["--json"]].concat()).json();
        assert_eq!(value["schema"], "ocelli.classify.v1");
        let logits = reference(family, "logits_per_image", 2);
        for (picture, logits) in value["pictures"].as_array().unwrap().iter().zip(&logits) {
            let got = picture["labels"].as_array().unwrap();
            let of = |label: &str| got.iter().find(|entry| entry["label"] == label).unwrap();
            let exp: Vec<f64> = logits[..2].iter().map(|&logit| f64::from(logit).exp()).collect();
            for (place, label) in TEXTS[..2].iter().enumerate() {
                let expected = match family {
                    "clip" => exp[place] / (exp[0] + exp[1]),
                    _ => exp[place] / (1.0 + exp[place]),
                };
                let probability = of(label)["probability"].as_f64().unwrap();
                assert!((probability - expected).abs() < 1e-5, "{family} {label}: {probability} {expected}");
                let logit = of(label)["logit"].as_f64().unwrap();
                assert!((logit - f64::from(logits[place])).abs() < 1e-4, "{family} {label}: {logit}");
            }
            assert!(got[0]["logit"].as_f64() >= got[1]["logit"].as_f64(), "{value}");
        }
        let text = ocelli(&base).well();
        let first = value["pictures"][0]["labels"][0]["label"].as_str().unwrap();
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!((rows.len(), rows[0], rows[3]), (6, &*photo, &*wide), "{text}");
        assert!(rows[1].contains(first) && rows[1].contains('%'), "{text}");
    }
    // A label takes its place in the template.
    let (model, photo) = (model("clip"), picture(PHOTO));
    let logit = |args: &[&str]| {
        let value = ocelli(&[&["classify", "--model", &model, "--json", &photo], args].concat()).json();
        value["pictures"][0]["labels"][0]["logit"].as_f64().unwrap()
    };
    let whole = logit(&["--labels", "a photo of a flower", "--template", "{}"]);
    assert_eq!(whole, logit(&["--labels", " flower ", "--template", "a photo of a {}"]));
    assert_eq!(logit(&["--labels", "cat"]), logit(&["--labels", "a photo of a cat.", "--template", "{}"]));
}

#[test]
fn models_of_the_other_kind_are_told() {
    let told = |done: &Done, parts: &[&str], hint: &str| {
        done.fails(1, parts);
        assert!(done.stderr.contains(hint), "{done:?}");
    };
    let (clip, siglip, demo) = (model("clip"), model("siglip2"), demo());
    let photo = picture(PHOTO);
    for model in [&clip, &siglip] {
        let run = ocelli(&["run", "--model", model, "--image", &photo, "What is it?"]);
        told(&run, &["gives answers", "gives vectors"], "hint: `ocelli embed` and `ocelli classify`");
        told(&ocelli(&["bench", "model", "--model", model]), &["gives vectors"], "`ocelli embed`");
    }
    let demo = demo.to_str().unwrap();
    let photo = example("01.png");
    let photo = photo.to_str().unwrap();
    let classify = ocelli(&["classify", "--model", demo, "--labels", "a", photo]);
    told(&classify, &["gives vectors", "smolvlm", "gives answers"], "hint: `ocelli run`");
}

#[test]
fn plans_and_copies_of_dual_encoders() {
    for family in FAMILIES {
        let value = ocelli(&["inspect", &model(family), "--json"]).json();
        assert_eq!((&value["refused"], &value["unused"]), (&Value::Array(vec![]), &Value::Array(vec![])));
        let sum: u64 =
            value["parts"].as_array().unwrap().iter().map(|part| part["bytes"].as_u64().unwrap()).sum();
        assert_eq!(value["tensors"]["bytes"], sum, "every byte of the file belongs to one part: {value}");
        let names: Vec<_> =
            value["plan"]["phases"].as_array().unwrap().iter().map(|phase| &phase["name"]).collect();
        assert_eq!(names, ["vision", "text"]);
        let text = ocelli(&["inspect", &model(family)]).well();
        assert!(text.contains("text tower") && text.contains("vectors of one picture"), "{text}");
    }
    // A copy with text layers of 8 bits gives nearly the same vectors.
    let temp = Temp::new();
    let copy = temp.path("copy");
    let (model, copy) = (model("siglip"), copy.to_str().unwrap());
    ocelli(&["quantize", &model, "--out", copy, "--format", "int8"]).well();
    let of =
        |model: &str| vector(&lines(&ocelli(&["embed", "--model", model, "--text", TEXTS[0]]).well())[0]);
    let (exact, rounded) = (of(&model), of(copy));
    let cosine = cosine(&exact, &rounded);
    assert!(cosine > 0.995 && exact != rounded, "{cosine}");
}
