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

#[test]
fn quantized_and_16_bit_plans() {
    let f32 = inspect(&["--dtype", "f32"]);
    let bf16 = inspect(&["--dtype", "bf16"]);
    let kv = |report: &Value| report["plan"]["memory"]["kv_cache"].as_u64().unwrap();
    assert_eq!(kv(&f32), 2 * kv(&bf16));
    assert_eq!(bf16["dtype"], "bf16");
}

#[test]
fn refusals_come_with_what_is_known() {
    let model = Temp::copy_of(&demo());
    model.edit("config.json", |config| config["model_type"] = "llava".into());
    let done = ocelli(&["inspect", model.0.to_str().unwrap(), "--json"]);
    done.fails_after_output(1, &["llava"]);
    let report = parse(&done.stdout);
    assert_eq!((&report["model_type"], &report["plan"]), (&json!("llava"), &Value::Null));
    assert!(report["refused"][0].as_str().unwrap().contains("llava"));
    assert!(report["tensors"]["count"].as_u64().unwrap() > 50);
    ocelli(&["inspect", model.0.to_str().unwrap()]).fails_after_output(1, &["llava"]);

    let model = Temp::copy_of(&golden("smolvlm"));
    model.edit("config.json", |config| {
        config["text_config"]["rope_parameters"]["rope_type"] = "spiral".into()
    });
    ocelli(&["inspect", model.0.to_str().unwrap()]).fails_after_output(1, &["spiral"]);
    ocelli(&["inspect", "--prompt-tokens", "5000"]).fails_after_output(1, &["prompt"]);
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
    ocelli(&["inspect", model.0.to_str().unwrap()]).fails_after_output(1, &["q_proj", "not supported"]);
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
