//! `ocelli verify`: what is right passes, and what is slightly wrong does not.

use std::path::Path;

use serde_json::Value;

use crate::{Done, Temp, golden, json, ocelli};

fn verify(model: &Path, reference: &Path, more: &[&str]) -> Done {
    let paths = [model.to_str().unwrap(), reference.to_str().unwrap()];
    ocelli(&[&["verify", "--model", paths[0], "--reference", paths[1]], more].concat())
}

/// Exit code and report; nothing may be on stderr.
fn report(done: &Done) -> Value {
    assert_eq!(done.stderr, "");
    json(&done.stdout)
}

/// A copy of a golden directory whose pictures are found where the original's are.
fn copy(family: &str) -> Temp {
    let copy = Temp::copy_of(&golden(family));
    let images = copy.path("images");
    std::fs::create_dir(&images).unwrap();
    for entry in std::fs::read_dir(golden("images")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, images.join(path.file_name().unwrap())).unwrap();
    }
    copy
}

#[test]
fn golden_models_pass() {
    for family in ["smolvlm", "idefics3"] {
        let dir = golden(family);
        let text = verify(&dir, &dir, &[]).well();
        assert!(text.contains("cases passed") && !text.contains("FAILED"), "{text}");
        let value = verify(&dir, &dir, &["--json"]).json();
        assert_eq!(
            (&value["pass"], &value["backend"], &value["dtype"]),
            (&true.into(), &"cpu".into(), &"f32".into())
        );
        assert!(value["schema"].is_string() && value["model"].as_str().unwrap().contains(family));
        let cases = value["cases"].as_array().unwrap();
        assert!(!cases.is_empty());
        for (number, case) in cases.iter().enumerate() {
            assert!(case["name"].is_string() && case["pass"] == true, "{case}");
            let names: Vec<&str> = case["stages"]
                .as_array()
                .unwrap()
                .iter()
                .map(|stage| stage["name"].as_str().unwrap())
                .collect();
            for name in ["token_ids", "text_layer_last", "logits_last8"] {
                assert!(names.contains(&name), "{name}: {case}");
            }
            assert!(number > 0 || names.contains(&"text_layer_first"), "{case}");
            if names.contains(&"pixels") {
                assert!(names.contains(&"vision_last_hidden") && names.contains(&"image_features"), "{case}");
            }
            for stage in case["stages"].as_array().unwrap() {
                assert!(
                    stage["max_abs"].as_f64().unwrap() <= stage["tolerance"].as_f64().unwrap(),
                    "{stage}"
                );
                assert_eq!(stage["pass"], true);
            }
            assert!(!case["greedy"]["expected"].as_array().unwrap().is_empty());
            assert_eq!(case["greedy"]["expected"], case["greedy"]["got"]);
        }
        assert!(cases.iter().any(|case| case["stages"][0]["name"] == "pixels"));
    }
}

#[test]
fn a_changed_token_fails() {
    let reference = copy("smolvlm");
    reference.edit("inputs.json", |inputs| {
        let last = inputs["cases"][0]["greedy_ids"].as_array_mut().unwrap().last_mut().unwrap();
        *last = (last.as_u64().unwrap() ^ 1).into();
    });
    let done = verify(&golden("smolvlm"), &reference.0, &["--json"]);
    assert_eq!(done.code, Some(1));
    let value = report(&done);
    assert_eq!((&value["pass"], &value["cases"][0]["pass"]), (&false.into(), &false.into()));
    assert!(value["cases"].as_array().unwrap().iter().skip(1).all(|case| case["pass"] == true));
    let text = verify(&golden("smolvlm"), &reference.0, &[]);
    assert_eq!(text.code, Some(1));
    assert!(text.stdout.contains("diverges first at greedy"), "{}", text.stdout);
}

#[test]
fn a_changed_prompt_token_fails() {
    let reference = copy("smolvlm");
    reference.edit("inputs.json", |inputs| inputs["cases"][0]["input_ids"][1] = 56.into());
    let done = verify(&golden("smolvlm"), &reference.0, &["--json"]);
    assert_eq!(done.code, Some(1));
    assert_eq!(report(&done)["cases"][0]["stages"][1]["pass"], false);
}

/// Multiplies the f32 values of a tensor of a safetensors file.
fn scale(file: &Path, suffix: &str, factor: f32) {
    let mut bytes = std::fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let (_, tensor) =
        header.as_object().unwrap().iter().find(|(name, _)| name.ends_with(suffix)).expect(suffix);
    assert_eq!(tensor["dtype"], "F32");
    let offset = |i: usize| 8 + length + tensor["data_offsets"][i].as_u64().unwrap() as usize;
    for value in bytes[offset(0)..offset(1)].chunks_exact_mut(4) {
        let scaled = f32::from_le_bytes([value[0], value[1], value[2], value[3]]) * factor;
        value.copy_from_slice(&scaled.to_le_bytes());
    }
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn a_scaled_norm_fails() {
    for (suffix, first) in [
        ("text_model.layers.1.post_attention_layernorm.weight", "text_layer_last"),
        ("vision_model.encoder.layers.0.layer_norm1.weight", "vision_last_hidden"),
    ] {
        let model = Temp::copy_of(&golden("smolvlm"));
        scale(&model.path("model.safetensors"), suffix, 1.01);
        let done = verify(&model.0, &golden("smolvlm"), &["--json"]);
        assert_eq!(done.code, Some(1));
        let value = report(&done);
        let case =
            value["cases"].as_array().unwrap().iter().find(|case| case["stages"][0]["name"] == "pixels");
        let stages = case.unwrap()["stages"].as_array().unwrap();
        assert_eq!(stages.iter().find(|stage| stage["pass"] == false).unwrap()["name"], first);
    }
}

#[test]
fn references_that_are_none() {
    let temp = Temp::new();
    verify(&golden("smolvlm"), &temp.path("absent"), &[]).fails(1, &["inputs.json"]);
    verify(&golden("smolvlm"), &temp.0, &[]).fails(1, &["inputs.json"]);
    temp.write("inputs.json", "{\"cases\": []}");
    verify(&golden("smolvlm"), &temp.0, &[]).fails(1, &["golden.safetensors"]);
    verify(&temp.0, &golden("smolvlm"), &[]).fails(1, &["config.json"]);
    // Pictures are looked for beside the folder too, so it lies in one of our own.
    let outer = Temp::new();
    let reference = outer.path("reference");
    std::fs::create_dir(&reference).unwrap();
    for name in ["inputs.json", "golden.safetensors"] {
        std::fs::copy(golden("smolvlm").join(name), reference.join(name)).unwrap();
    }
    verify(&golden("smolvlm"), &reference, &[]).fails(1, &[".png"]);
}
