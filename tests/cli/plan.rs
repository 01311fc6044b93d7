//! `ocelli inspect`.

use std::fs::{self, File};

use serde_json::{Value, json};

use crate::{Temp, demo, golden, json as parse, ocelli};

fn inspect(args: &[&str]) -> Value {
    ocelli(&[&["inspect", "--json"], args].concat()).json()
}

fn sum(steps: &Value, field: &str) -> u64 {
    steps.as_array().unwrap().iter().map(|step| step[field].as_u64().unwrap()).sum()
}

#[test]
fn the_embedded_model() {
    let text = ocelli(&["inspect"]).well();
    for part in ["demo", "smolvlm", "tower", "decoder", "prefill", "decode", "layers.0-4"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let report = inspect(&[]);
    assert_eq!(report["schema"], "ocelli.inspect.v1");
    assert_eq!((&report["model_type"], &report["family"]), (&json!("smolvlm"), &json!("smolvlm")));
    assert_eq!((&report["refused"], &report["unused"]), (&json!([]), &json!([])));
    let parts = report["parts"].as_array().unwrap();
    let sum_of = |field: &str| parts.iter().map(|part| part[field].as_u64().unwrap()).sum::<u64>();
    assert_eq!(report["parameters"], sum_of("parameters"));
    assert_eq!(report["tensors"]["bytes"], sum_of("bytes"), "every byte of the file belongs to one part");
    assert_eq!(report["plan"]["memory"]["weights"], report["tensors"]["bytes"]);
    assert!(report["tensors"]["types"]["BF16"].as_u64().unwrap() > 50);
}

#[test]
fn the_plan_is_what_the_request_needs() {
    let model = demo();
    let plan = |args: &[&str]| inspect(&[&[model.to_str().unwrap()], args].concat())["plan"].clone();
    let small = plan(&["--image-size", "96x96", "--prompt-tokens", "10", "--max-tokens", "20"]);
    let split = plan(&["--image-size", "400x300", "--prompt-tokens", "10", "--max-tokens", "20"]);
    let two =
        plan(&["--image-size", "96x96", "--images", "2", "--prompt-tokens", "10", "--max-tokens", "20"]);
    let none = plan(&["--images", "0", "--prompt-tokens", "10", "--max-tokens", "20"]);
    let request = |plan: &Value, field: &str| plan["request"][field].as_u64().unwrap();
    assert_eq!(request(&two, "tiles"), 2 * request(&small, "tiles"));
    assert_eq!(request(&two, "image_tokens"), 2 * request(&small, "image_tokens"));
    assert!(request(&split, "tiles") >= request(&small, "tiles"));
    assert_eq!((request(&none, "tiles"), request(&none, "image_tokens")), (0, 0));
    assert_eq!(none["phases"][0]["name"], "prefill");

    // 5 layers of 2 key heads of 32 f32 elements, keys and values; pages of 16 tokens.
    assert_eq!(small["memory"]["kv_per_token"], 2 * 5 * 2 * 32 * 4);
    let tokens = (request(&small, "prompt_tokens") + 20).next_multiple_of(16);
    assert_eq!(small["memory"]["kv_cache"], tokens * 2 * 5 * 2 * 32 * 4);
    let memory = &small["memory"];
    let fields = ["weights", "kv_cache", "image_features", "activations"];
    assert_eq!(memory["total"], fields.iter().map(|field| memory[field].as_u64().unwrap()).sum::<u64>());

    let names: Vec<_> = small["phases"].as_array().unwrap().iter().map(|phase| &phase["name"]).collect();
    assert_eq!(names, ["vision", "prefill", "decode"]);
    for phase in small["phases"].as_array().unwrap() {
        assert_eq!(sum(&phase["steps"], "flops"), phase["flops"].as_u64().unwrap());
        for step in phase["steps"].as_array().unwrap() {
            assert!(step["variant"].is_string() && step["refused"].is_null(), "{step}");
        }
    }
    // A decode step reads every weight of the decoder once, and the head.
    let decode = small["phases"][2]["steps"].as_array().unwrap();
    let down =
        decode.iter().find(|step| step["module"].as_str().unwrap().ends_with("layers.0-4.mlp.down_proj"));
    assert_eq!(down.unwrap()["weight_bytes"], 5 * 128 * 256 * 2);
    assert_eq!(down.unwrap()["count"], 5);
}

/// Models that take no pictures are planned without one, unless one is asked for.
#[test]
fn a_model_of_texts_alone() {
    let model = golden("llama");
    let model = model.to_str().unwrap();
    let report = inspect(&[model]);
    assert_eq!((&report["refused"], &report["plan"]["request"]["images"]), (&json!([]), &json!([])));
    assert_eq!(report["plan"]["phases"][0]["name"], "prefill");
    for asked in [["--image-size", "64x64"], ["--images", "1"]] {
        let done = ocelli(&[&["inspect", model], &asked[..]].concat());
        done.fails_after_output(1, &["the model takes no pictures"]);
    }
}

#[test]
fn quantized_and_16_bit_plans() {
    let f32 = inspect(&["--dtype", "f32"]);
    let bf16 = inspect(&["--dtype", "bf16"]);
    let kv = |report: &Value| report["plan"]["memory"]["kv_cache"].as_u64().unwrap();
    assert_eq!(kv(&f32), 2 * kv(&bf16));
    // A code a number, and a scale of four bytes a head.
    let int8 = inspect(&["--backend", "cpu", "--kv-dtype", "int8"]);
    let head = f32["plan"]["memory"]["kv_per_token"].as_u64().unwrap();
    let codes = int8["plan"]["memory"]["kv_per_token"].as_u64().unwrap();
    assert!(4 * codes > head && 2 * codes < head, "{codes} of {head}");
    assert!(
        int8["plan"]["phases"]
            .as_array()
            .unwrap()
            .iter()
            .all(|phase| { phase["steps"].as_array().unwrap().iter().all(|step| step["refused"].is_null()) })
    );
    assert_eq!(bf16["dtype"], "bf16");
}

#[test]
fn refusals_come_with_what_is_known() {
    let model = Temp::copy_of(&demo());
    model.edit("config.json", |config| config["model_type"] = "nobodys".into());
    let done = ocelli(&["inspect", model.0.to_str().unwrap(), "--json"]);
    done.fails_after_output(1, &["nobodys"]);
    let report = parse(&done.stdout);
    assert_eq!((&report["model_type"], &report["plan"]), (&json!("nobodys"), &Value::Null));
    // With all that there are.
    let reason = report["refused"][0].as_str().unwrap();
    let kinds = ocelli_models::FAMILIES.iter().flat_map(|family| family.model_types);
    assert!(reason.contains("nobodys") && kinds.clone().all(|kind| reason.contains(kind)), "{reason}");
    assert!(kinds.count() > 20);
    assert!(report["tensors"]["count"].as_u64().unwrap() > 50);
    ocelli(&["inspect", model.0.to_str().unwrap()]).fails_after_output(1, &["nobodys"]);
    // Whatever else is wrong.
    fs::write(model.0.join("model.safetensors"), "nothing").unwrap();
    ocelli(&["inspect", model.0.to_str().unwrap()]).fails(1, &["nobodys"]);

    let model = Temp::copy_of(&golden("smolvlm"));
    model.edit("config.json", |config| {
        config["text_config"]["rope_parameters"]["rope_type"] = "spiral".into()
    });
    ocelli(&["inspect", model.0.to_str().unwrap()]).fails_after_output(1, &["spiral"]);
    ocelli(&["inspect", "--prompt-tokens", "5000"]).fails_after_output(1, &["prompt"]);
}

/// What the processor does to pictures, and whether all fits this machine.
#[test]
fn pictures_and_memory() {
    let dir = golden("smolvlm");
    let dir = dir.to_str().unwrap();
    let sizes = ["--image-size", "200x100", "--image-size", "40x40"];
    let report = inspect(&[&[dir][..], &sizes].concat());
    assert!(report["processor"].as_str().unwrap().contains("ImageProcessor"), "{}", report["processor"]);
    let pictures = report["plan"]["request"]["pictures"].as_array().unwrap();
    let tiles = |picture: &Value| picture["tiles"].as_array().unwrap().len();
    assert_eq!(pictures.len(), 2);
    let all: usize = pictures.iter().map(tiles).sum();
    assert_eq!(report["plan"]["request"]["tiles"], all);
    assert!(tiles(&pictures[0]) > 1);
    assert_eq!(report["plan"]["request"]["image_tokens"], sum(&json!(pictures), "tokens"));
    if cfg!(target_os = "linux") {
        assert_eq!(
            (&report["fits"]["fits"], &report["fits"]["needed"]),
            (&json!(true), &report["plan"]["memory"]["total"])
        );
    }
    let text = ocelli(&[&["inspect", dir][..], &sizes].concat()).well();
    for part in ["processor     ", "picture of 200x100: through the tower as ", "fits          "] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }

    // Weights of four times the memory of any machine, in a file of holes.
    let model = Temp::copy_of(&golden("qwen2"));
    model.edit("config.json", |config| config["vocab_size"] = (1u64 << 40).into());
    let rows = 1u64 << 40;
    let header = json!({"model.embed_tokens.weight": {"dtype": "BF16", "shape": [rows, 1], "data_offsets": [0, 2 * rows]}}).to_string();
    let padded = header.clone() + &" ".repeat(header.len().next_multiple_of(8) - header.len());
    let bytes = [&(padded.len() as u64).to_le_bytes()[..], padded.as_bytes()].concat();
    let file = model.write("model.safetensors", &bytes);
    let sparse = std::fs::File::options().write(true).open(file).unwrap();
    sparse.set_len(bytes.len() as u64 + 2 * rows).unwrap();
    let done = ocelli(&["inspect", model.0.to_str().unwrap(), "--json"]);
    assert_eq!(done.code, Some(1));
    if cfg!(target_os = "linux") {
        assert_eq!(parse(&done.stdout)["fits"]["fits"], false);
    }
}

#[test]
fn the_model_may_come_with_its_flag() {
    let model = golden("smolvlm");
    let model = model.to_str().unwrap();
    let (bare, named) = (inspect(&[model]), inspect(&["--model", model]));
    assert_eq!((&bare["model"], &bare["tensors"]), (&json!(model), &named["tensors"]));
    assert_eq!(bare["model"], named["model"]);
}

#[test]
fn unused_tensors_are_named() {
    let model = Temp::copy_of(&golden("smolvlm"));
    model.edit("config.json", |config| config["text_config"]["num_hidden_layers"] = 1.into());
    let report = inspect(&[model.0.to_str().unwrap()]);
    let unused: Vec<_> = report["unused"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(unused.len() > 5 && unused.iter().all(|name| name.contains("layers.1.")), "{unused:?}");
    let text = ocelli(&["inspect", model.0.to_str().unwrap()]).well();
    assert!(text.contains(&format!("{} tensors are not used: ", unused.len())), "{text}");
    assert!(text.contains(unused[0]), "{text}");
}

/// A prompt that pictures make too long comes with what would make it shorter, if anything would.
#[test]
fn pictures_that_take_all_of_the_prompt() {
    let model = Temp::copy_of(&golden("smolvlm"));
    let dir = model.0.to_str().unwrap().to_owned();
    let whole = &inspect(&[&dir, "--processor", "do_image_splitting=false"])["plan"]["request"];
    let split = &inspect(&[&dir])["plan"]["request"];
    let (whole, split) = (whole["prompt_tokens"].as_u64().unwrap(), split["prompt_tokens"].as_u64().unwrap());
    // The template's words, without the 32 tokens of text that are planned with.
    let (whole, split) = (whole - 32, split - 32);
    assert!(whole + 20 < split, "{whole} {split}");
    let picture = model.path("picture.bmp");
    fs::write(&picture, bmp(512, 512)).unwrap();
    let run = |limit: u64| {
        model.edit("config.json", |config| config["text_config"]["max_position_embeddings"] = limit.into());
        [
            ocelli(&["inspect", &dir]),
            ocelli(&["run", "--model", &dir, "--image", picture.to_str().unwrap(), "What?"]),
        ]
    };
    for done in run(split - 5) {
        done.fails_after_output(1, &["prompt", "tokens"]);
        assert!(done.stderr.contains("hint: pictures take most"), "{done:?}");
        assert!(done.stderr.contains("--processor do_image_splitting=false"), "{done:?}");
    }
    for done in run(whole - 5) {
        done.fails_after_output(1, &["prompt", "tokens"]);
        assert!(done.stderr.contains("hint: fewer pictures"), "{done:?}");
    }
}

/// A grey picture.
fn bmp(width: u32, height: u32) -> Vec<u8> {
    let size = width * height * 3;
    let mut bytes = b"BM".to_vec();
    bytes.extend((54 + size).to_le_bytes());
    bytes.extend([0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0]);
    bytes.extend(width.to_le_bytes());
    bytes.extend(height.to_le_bytes());
    bytes.extend([1, 0, 24, 0, 0, 0, 0, 0]);
    bytes.extend(size.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.resize(54 + size as usize, 90);
    bytes
}

/// Blocks of no known method: named by `inspect`, refused by all that would compute, whatever the tensors look like.
#[test]
fn unknown_quantization_is_named_and_refused() {
    let mlx = json!({"group_size": 64, "bits": 4, "mode": "codebook", "vision_tower.fc1": false,
        "model.text_model.layers.0.mlp.down_proj": {"group_size": 32, "bits": 8}});
    for (field, block, name) in [
        ("quantization_config", mlx.clone(), "MLX codebook: 4 bits in groups of 64, otherwise for 2 modules"),
        ("quantization", json!({"group_size": 32, "bits": 8, "mode": "x"}), "MLX x: 8 bits in groups of 32"),
        ("quantization_config", json!({"quant_method": "vptq"}), "vptq"),
        (
            "quantization_config",
            json!({"w_bit": 4, "version": "x"}),
            "no named method (fields: w_bit, version)",
        ),
    ] {
        let model = Temp::copy_of(&golden("smolvlm"));
        model.edit("config.json", |config| config[field] = block);
        let dir = model.0.to_str().unwrap();
        let done = ocelli(&["inspect", dir, "--json"]);
        done.fails_after_output(1, &["config.json", "not supported", name]);
        let report = parse(&done.stdout);
        assert!(report["quantization"].as_str().unwrap().contains(name), "{report}");
        assert_eq!(report["plan"], Value::Null);
        let done = ocelli(&["inspect", dir]);
        assert!(
            done.stdout.lines().any(|line| line.starts_with("quantized ") && line.contains(name)),
            "{done:?}"
        );
        ocelli(&["run", "--model", dir, "What?"]).fails(1, &["config.json", "not supported", name]);
        let out = model.path("out");
        let quantize = ["quantize", dir, "--out", out.to_str().unwrap(), "--format", "int8"];
        ocelli(&quantize).fails(1, &["already quantized", name]);
    }
    // An empty block says nothing.
    let model = Temp::copy_of(&golden("smolvlm"));
    model.edit("config.json", |config| config["quantization_config"] = json!({}));
    assert_eq!(inspect(&[model.0.to_str().unwrap()])["quantization"], Value::Null);
}

#[test]
fn foreign_quantization_is_named() {
    let model = Temp::copy_of(&golden("smolvlm"));
    let file = model.path("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let old = b"layers.0.self_attn.q_proj.weight\"";
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap() + old.len() - 7;
    // The same length in bytes: `weight` becomes a GPTQ name, the header's size stays.
    bytes[at..at + 6].copy_from_slice(b"scales");
    fs::write(&file, bytes).unwrap();
    ocelli(&["inspect", model.0.to_str().unwrap()]).fails_after_output(1, &["q_proj.weight", "no tensor"]);
}

#[test]
fn weights_are_not_read() {
    // The header of the golden model with 32 GB of holes where the values would be: reading them would take minutes.
    let model = Temp::copy_of(&golden("smolvlm"));
    let bytes = fs::read(model.path("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let end = header.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64()).max().unwrap();
    let more = 32 << 30;
    header
        .insert("unused".into(), json!({"dtype": "U8", "shape": [more], "data_offsets": [end, end + more]}));
    let mut text = serde_json::to_string(&header).unwrap();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let mut start = (text.len() as u64).to_le_bytes().to_vec();
    start.extend(text.as_bytes());
    let file = model.write("model.safetensors", &start);
    let sparse = File::options().write(true).open(file).unwrap();
    if let Err(error) = sparse.set_len(start.len() as u64 + end + more) {
        return ocelli_tests::skip("sparse files", &error.to_string());
    }
    let report = inspect(&[model.0.to_str().unwrap()]);
    assert_eq!((&report["unused"], &report["refused"]), (&json!(["unused"]), &json!([])));
    assert!(report["plan"]["memory"]["weights"].as_u64().unwrap() < 2 << 20);
}
