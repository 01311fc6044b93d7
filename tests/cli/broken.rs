//! Pictures and models that cannot be used.

use std::fs;
use std::path::Path;

use crate::{Temp, demo, example, golden, ocelli};

fn run_image(path: &Path) -> crate::Done {
    ocelli(&["run", "--image", path.to_str().unwrap(), "--max-tokens", "4", "How many objects are there?"])
}

fn run_model(path: &Path) -> crate::Done {
    ocelli(&["run", "--model", path.to_str().unwrap(), "--max-tokens", "4", "Hello"])
}

/// A PNG with this size in its header and no pixels.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let crc = |bytes: &[u8]| {
        !bytes.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(
                crc ^ u32::from(byte),
                |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
            )
        })
    };
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let sizes = [width.to_be_bytes(), height.to_be_bytes()].concat();
    for (kind, data) in
        [(b"IHDR", [&sizes[..], &[8, 2, 0, 0, 0]].concat()), (b"IDAT", vec![]), (b"IEND", vec![])]
    {
        let body = [&kind[..], &data].concat();
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(&body);
        png.extend(crc(&body).to_be_bytes());
    }
    png
}

#[test]
fn pictures() {
    let temp = Temp::new();
    run_image(&temp.path("absent.png")).fails(1, &["absent.png"]);
    run_image(&temp.0).fails(1, &[temp.0.to_str().unwrap()]);
    run_image(&temp.write("text.png", "It was a dark and stormy night."))
        .fails(1, &["text.png", "not a PNG"]);
    run_image(&temp.write("empty.png", "")).fails(1, &["empty.png"]);
    run_image(&temp.write("huge.png", png_header(30_000, 30_000)))
        .fails(1, &["huge.png", "30000 x 30000", "limit"]);
    run_image(&temp.write("wide.png", png_header(u32::MAX, u32::MAX))).fails(1, &["wide.png"]);
    run_image(&temp.write("none.png", png_header(0, 5))).fails(1, &["none.png"]);
    let whole = fs::read(example("01.png")).unwrap();
    for length in [1, 8, 30, whole.len() / 2] {
        run_image(&temp.write("cut.png", &whole[..length])).fails(1, &["cut.png"]);
    }
}

#[test]
fn one_pixel_is_a_picture() {
    let temp = Temp::new();
    let bmp = temp.write("dot.bmp", {
        let mut bytes = b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
        bytes.extend([1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 24, 0]);
        bytes.extend([0; 24]);
        bytes.extend([255, 0, 0, 0]);
        bytes
    });
    assert!(!run_image(&bmp).well().is_empty());
}

#[test]
fn absent_models() {
    let temp = Temp::new();
    run_model(&temp.path("absent")).fails(1, &["absent"]);
    run_model(&temp.write("file", "text")).fails(1, &["file"]);
    run_model(&temp.0).fails(1, &["config.json"]);
    run_model(Path::new("no-such-owner/no-such-model")).fails(1, &["no-such-owner/no-such-model"]);
    run_model(Path::new("nonsense name")).fails(1, &["nonsense name"]);
}

#[test]
fn truncated_weights() {
    let model = Temp::copy_of(&demo());
    let whole = fs::read(model.path("model.safetensors")).unwrap();
    for length in [0, 4, 8, 100, 10_000, whole.len() / 2, whole.len() - 1] {
        model.write("model.safetensors", &whole[..length]);
        run_model(&model.0).fails(1, &["model.safetensors"]);
        ocelli(&["inspect", model.0.to_str().unwrap()]).fails(1, &["model.safetensors"]);
    }
    fs::remove_file(model.path("model.safetensors")).unwrap();
    run_model(&model.0).fails(1, &["model.safetensors"]);
}

#[test]
fn broken_configurations() {
    for (text, part) in [
        ("", "invalid JSON"),
        ("{", "invalid JSON"),
        ("[]", "config.json"),
        ("{\"model_type\": 7}", "config.json"),
        ("{\"model_type\": \"nobodys\"}", "nobodys"),
        ("{\"model_type\": \"smolvlm\"}", "vision_config"),
    ] {
        let model = Temp::copy_of(&demo());
        model.write("config.json", text);
        run_model(&model.0).fails(1, &["config.json", part]);
    }
    let edits: [(&str, serde_json::Value, &str); 8] = [
        ("/text_config/hidden_size", 100.into(), "100"),
        ("/text_config/num_attention_heads", 0.into(), "num_attention_heads"),
        ("/text_config/num_hidden_layers", 9.into(), "layers.5"),
        ("/text_config/hidden_act", "relu".into(), "relu"),
        ("/text_config/rope_parameters/rope_type", "spiral".into(), "spiral"),
        ("/vision_config/patch_size", 0.into(), "patch_size"),
        ("/vision_config/image_size", 0.into(), "image_size"),
        ("/scale_factor", 0.into(), "scale_factor"),
    ];
    for (pointer, value, part) in edits {
        let model = Temp::copy_of(&demo());
        model.edit("config.json", |config| *config.pointer_mut(pointer).expect(pointer) = value);
        run_model(&model.0).fails(1, &[part]);
    }
}

#[test]
fn other_broken_files() {
    for (name, text) in [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "not JSON"),
        ("chat_template.jinja", "{% if %}"),
        ("chat_template.jinja", "{{ raise_exception('no such turn') }}"),
        ("processor_config.json", "{"),
    ] {
        let model = Temp::copy_of(&demo());
        model.write(name, text);
        run_model(&model.0).fails(1, &[]);
    }
    let model = Temp::copy_of(&demo());
    fs::remove_file(model.path("tokenizer.json")).unwrap();
    run_model(&model.0).fails(1, &["tokenizer.json"]);
    assert!(golden("smolvlm").is_dir());
}

/// Sizes of 0 in a tower that takes pictures of any size.
#[test]
fn towers_of_no_size() {
    for field in
        ["patch_size", "num_heads", "hidden_size", "spatial_merge_size", "window_size", "temporal_patch_size"]
    {
        let model = Temp::copy_of(&crate::golden("qwen2_5_vl"));
        model.edit("config.json", |config| config["vision_config"][field] = 0.into());
        run_model(&model.0).fails(1, &["config.json", "vision_config."]);
    }
}

#[test]
fn weights_of_another_kind() {
    let model = Temp::copy_of(&demo());
    fs::remove_file(model.0.join("model.safetensors")).unwrap();
    let done = run_model(&model.0);
    assert!(done.stderr.contains("hint: a model is a directory with"), "{done:?}");
    done.fails(1, &["found neither"]);
    fs::write(model.0.join("pytorch_model.bin"), "x").unwrap();
    let done = run_model(&model.0);
    assert!(done.stderr.contains("hint: transformers reads it"), "{done:?}");
    done.fails(1, &["`pytorch_model.bin` is not read"]);
}
