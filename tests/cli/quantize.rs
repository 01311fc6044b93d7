//! `ocelli quantize`.

use std::fs;

use serde_json::Value;

use crate::{Temp, example, golden, ocelli};

fn parts(report: &Value, name: &str) -> Value {
    let parts = report["parts"].as_array().unwrap();
    parts.iter().find(|part| part["name"] == name).unwrap()["formats"].clone()
}

#[test]
fn quantized_models_answer() {
    for (format, group, decoder) in [("int8", "64", "int8g64"), ("int4", "32", "int4g32")] {
        let temp = Temp::new();
        let out = temp.path(format);
        let out = out.to_str().unwrap();
        let args = ["quantize", "--out", out, "--format", format, "--group", group, "--json"];
        let done = ocelli(&args).json();
        assert_eq!((&done["schema"], &done["model"]), (&"ocelli.quantize.v1".into(), &"demo".into()));
        assert!(done["bytes_after"].as_u64() < done["bytes_before"].as_u64());
        assert!(!done["formats"].as_object().unwrap().is_empty());

        let report = ocelli(&["inspect", out, "--json"]).json();
        let formats = parts(&report, "decoder");
        let stored: Vec<&str> = formats.as_object().unwrap().keys().map(String::as_str).collect();
        assert!(stored.len() == 1 && stored[0].starts_with(decoder), "{stored:?}");
        let outer = parts(&report, "embedding and head");
        let quantized = outer.as_object().unwrap().keys().all(|format| format.starts_with("int8"));
        assert_eq!(quantized, format == "int4", "{outer}");
        assert_eq!(parts(&report, "tower").as_object().unwrap().keys().next().unwrap(), "bf16");
        assert!(report["quantization"].as_str().unwrap().contains("compressed-tensors"));

        let picture = example("01.png");
        for more in [&[][..], &["--fast-int8"]] {
            let args = ["run", "--model", out, "--image", picture.to_str().unwrap()];
            let question = ["How many objects are there?"];
            assert_eq!(ocelli(&[&args[..], more, &question].concat()).well(), "two\n");
        }
    }
}

/// Other formats and layouts: the same answer, and each matrix with how it is published and what multiplies it.
#[test]
fn other_layouts_answer_and_are_listed() {
    for (format, layout, stored, source) in [
        ("nf4", "bitsandbytes", "nf4g64.f32", "bitsandbytes NF4 and FP4"),
        ("fp8", "compressed-tensors", "fp8row", "FP8 (E4M3)"),
        ("nvfp4", "compressed-tensors", "fp4g16.e4m3", "NVFP4"),
        ("mxfp4", "mlx", "fp4g32.e8m0", "MXFP4, MXFP8 or NVFP4 of MLX"),
        ("int4", "mlx", "int4g32zo", "affine groups of MLX"),
    ] {
        let temp = Temp::new();
        let out = temp.path(format);
        let out = out.to_str().unwrap();
        ocelli(&["quantize", "--out", out, "--format", format, "--layout", layout]).well();
        let report = ocelli(&["inspect", out, "--json"]).json();
        let modules = report["modules"].as_array().unwrap();
        let up =
            modules.iter().find(|module| module["name"].as_str().unwrap().ends_with("layers.0.mlp.up_proj"));
        let up = up.unwrap();
        assert!(up["format"].as_str().unwrap().starts_with(stored), "{up}");
        assert_eq!((&up["source"], &up["kernels"][0]), (&source.into(), &"gemv-codes-f32".into()), "{up}");
        let text = ocelli(&["inspect", out, "--modules"]).well();
        assert!(text.contains("mlp.up_proj") && text.contains(source) && text.contains(stored), "{text}");
        let picture = example("01.png");
        let args =
            ["run", "--model", out, "--image", picture.to_str().unwrap(), "How many objects are there?"];
        assert_eq!(ocelli(&args).well(), "two\n", "{format} {layout}");
    }
    let out = Temp::new();
    let out = out.path("out");
    let args = ["quantize", "--out", out.to_str().unwrap(), "--format", "nf4", "--layout", "mlx"];
    ocelli(&args).fails(2, &["nf4: not a format of MLX's layout"]);
}

#[test]
fn everything_with_zero_points() {
    let temp = Temp::new();
    let (out, model) = (temp.path("out"), golden("smolvlm"));
    let args = ["quantize", model.to_str().unwrap(), "--out", out.to_str().unwrap(), "--format", "int8"];
    let more = ["--asymmetric", "--scales", "f16", "--include", "tower,connector", "--include", "head"];
    let text = ocelli(&[&args[..], &more].concat()).well();
    assert!(text.contains("instead of") && text.contains("int8"), "{text}");
    let report = ocelli(&["inspect", out.to_str().unwrap(), "--json"]).json();
    for name in ["tower", "connector", "decoder", "embedding and head"] {
        assert!(parts(&report, name).to_string().contains("int8"), "{name}: {report}");
    }
}

/// Experts in tensors of all of them: listed one by one before they are quantized and after, and the copy answers.
#[test]
fn experts_of_one_tensor() {
    let (temp, model) = (Temp::new(), golden("qwen3_vl_moe"));
    let (out, model) = (temp.path("out"), model.to_str().unwrap());
    let out = out.to_str().unwrap();
    let of_experts = |model: &str, format: &str| {
        let report = ocelli(&["inspect", model, "--json"]).json();
        let modules = report["modules"].as_array().unwrap().clone();
        let is = |module: &&Value| module["name"].as_str().unwrap().contains(".mlp.experts.");
        let found: Vec<String> =
            modules.iter().filter(is).map(|of| of["format"].as_str().unwrap().to_owned()).collect();
        assert!(found.iter().all(|found| found == format), "{found:?}");
        found.len()
    };
    let before = of_experts(model, "bf16");
    let text = ocelli(&["inspect", model, "--modules"]).well();
    assert!(text.contains("layers.*.mlp.experts.*.up_proj"), "{text}");
    let args = ["quantize", model, "--out", out, "--format", "int8", "--group", "0", "--json"];
    let done = ocelli(&args).json();
    let listed = done["modules"].as_array().unwrap();
    let named = |of: &&Value| of["name"].as_str().unwrap().ends_with("experts.5.down_proj");
    assert!(listed.iter().filter(named).count() > 0 && done["notes"] == Value::Array(Vec::new()), "{done}");
    assert_eq!(before, of_experts(out, "int8row"));
    assert!(before > 10 && before.is_multiple_of(3), "{before}");
    let text = ocelli(&["inspect", out, "--modules"]).well();
    assert!(text.contains("compressed-tensors pack-quantized integers"), "{text}");
    ocelli(&["run", "--model", out, "--max-tokens", "4", "What is there to see in it?"]).well();
    // Rows of 40 weights are no whole groups: the layer's experts stay, and that is told.
    let again = temp.path("again");
    let args = ["quantize", model, "--out", again.to_str().unwrap(), "--format", "mxfp4"];
    let done = ocelli(&args);
    let notes = done.notes.concat();
    assert!(notes.contains("stay as they are: rows of 40 weights") && notes.contains("mxfp4"), "{notes}");
    done.well();
}

#[test]
fn the_model_may_come_with_its_flag() {
    let (temp, model) = (Temp::new(), golden("smolvlm"));
    let model = model.to_str().unwrap();
    let written = |out: &str, which: &[&str]| {
        let out = temp.path(out);
        let args = ["--out", out.to_str().unwrap(), "--format", "int8", "--json"];
        let done = ocelli(&[&["quantize"], which, &args].concat()).json();
        assert_eq!(done["model"], model);
        fs::read(out.join("model.safetensors")).unwrap()
    };
    assert!(written("bare", &[model]) == written("named", &["--model", model]));
}

#[test]
fn destinations() {
    let temp = Temp::new();
    let quantize =
        |out: &str, more: &[&str]| ocelli(&[&["quantize", "--out", out, "--format", "int8"], more].concat());
    let out = temp.path("out");
    let out = out.to_str().unwrap();
    quantize(out, &[]).well();
    quantize(out, &[]).fails(1, &["already exists"]);
    quantize(out, &["--force"]).well();
    let precious = temp.path("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("letter.txt"), "Dear").unwrap();
    quantize(precious.to_str().unwrap(), &["--force"]).fails(1, &["precious"]);
    assert!(precious.join("letter.txt").is_file());
    quantize(temp.path("odd").to_str().unwrap(), &["--group", "48"]).fails(2, &["group", "48"]);
    let again = temp.path("again");
    ocelli(&["quantize", out, "--out", again.to_str().unwrap(), "--format", "int4"])
        .fails(1, &["already quantized"]);
    assert!(!again.exists());
    ocelli(&["quantize", "/nowhere/model", "--out", out, "--format", "int4"]).fails(1, &["/nowhere/model"]);
}
