//! The wgpu backend from the command line.

use serde_json::Value;

use crate::{command, demo, ended, example, golden, json, ocelli};

/// Whether there is an adapter; if not, that is printed and counted.
pub fn adapter() -> bool {
    let devices = ocelli(&["devices", "--json"]).json();
    let all = devices["devices"].as_array().unwrap();
    let found = all.iter().find(|device| device["backend"] == "wgpu").expect("wgpu is listed");
    if let Some(why) = found["unavailable"].as_str() {
        ocelli_tests::skip("wgpu", why);
        return false;
    }
    assert!(found["wgpu"]["max_binding"].as_u64().unwrap() >= 128 << 20, "{found}");
    true
}

#[test]
fn answers_as_the_cpu_does() {
    if !adapter() {
        return;
    }
    let picture = example("01.png");
    let run = |backend: &str| {
        let picture = picture.to_str().unwrap();
        let args = ["run", "--backend", backend, "--dtype", "f32", "--json", "--image", picture];
        ocelli(&[&args[..], &["How many objects are there?"]].concat()).json()
    };
    let (cpu, wgpu) = (run("cpu"), run("wgpu"));
    assert_eq!(cpu["token_ids"], wgpu["token_ids"]);
    assert_eq!(wgpu["text"], "two");
    assert_eq!(wgpu["backend"], "wgpu");
    assert!(wgpu["timings"]["encode_share"].as_f64().unwrap() > 0.0, "{wgpu}");
    assert_eq!(cpu["timings"]["encode_share"], 0.0);
}

#[test]
fn golden_model_passes() {
    if !adapter() {
        return;
    }
    let dir = golden("smolvlm");
    let dir = dir.to_str().unwrap();
    let report =
        ocelli(&["verify", "--model", dir, "--reference", dir, "--backend", "wgpu", "--json"]).json();
    assert_eq!(
        (&report["pass"], &report["backend"], &report["dtype"]),
        (&true.into(), &"wgpu".into(), &"f32".into())
    );
}

#[test]
fn a_missing_driver_is_one_error() {
    let run = || {
        let mut command = command(&["run", "--backend", "wgpu", "hi"]);
        command.env("VK_DRIVER_FILES", "/nonexistent.json").env("VK_ICD_FILENAMES", "/nonexistent.json");
        ended(command.env_remove("LD_LIBRARY_PATH").spawn().unwrap())
    };
    let done = run();
    // Metal and DX12 need no driver of Vulkan.
    if cfg!(target_os = "linux") {
        done.fails(1, &["backend wgpu", "no adapter"]);
    }
}

#[test]
fn wrong_devices_kernels_and_profiles_are_one_error() {
    let prompt = ["run", "--backend", "wgpu", "hi"];
    let with = |name: &str, value: &str| ended(command(&prompt).env(name, value).spawn().unwrap());
    with("OCELLI_KERNEL_FORCE", "nonsense").fails(2, &["OCELLI_KERNEL_FORCE", "nonsense"]);
    if !adapter() {
        return;
    }
    ocelli(&["run", "--backend", "wgpu", "--device", "99", "hi"]).fails(1, &["wgpu", "no device 99", "0 ("]);
    with("OCELLI_WGPU", "fast").fails(1, &["OCELLI_WGPU", "baseline", "fast"]);
}

/// Forced variants run where they can, and the answer stays.
#[test]
fn a_forced_variant_runs() {
    if !adapter() {
        return;
    }
    let picture = example("01.png");
    let args = ["run", "--backend", "wgpu", "--dtype", "f32", "--image", picture.to_str().unwrap()];
    let args = [&args[..], &["How many objects are there?"]].concat();
    let done = ended(command(&args).env("OCELLI_KERNEL_FORCE", "matmul/gemm-tile").spawn().unwrap());
    assert_eq!(done.well().trim(), "two");
    let why = |profile: &str| -> Value {
        let args =
            ["kernels", "why", "matmul", "m=1", "n=576", "k=576", "w=int4g32", "--backend", "wgpu", "--json"];
        json(&ended(command(&args).env("OCELLI_WGPU", profile).spawn().unwrap()).well())
    };
    let (full, baseline) = (why("full"), why("baseline"));
    assert_eq!(full["rows"].as_array().unwrap().len(), baseline["rows"].as_array().unwrap().len());
    assert_eq!(baseline["wgpu"]["storage_buffers"], 8);
}

/// A model whose weights exceed all memory: a file with a hole, so that it takes no room on the disk.
#[test]
fn a_model_larger_than_memory_is_one_error() {
    if !adapter() {
        return;
    }
    let copy = crate::Temp::copy_of(&demo());
    let vocab: u64 = 1 << 30;
    copy.edit("config.json", |config| config["text_config"]["vocab_size"] = vocab.into());
    let file = copy.path("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let data = (bytes.len() - 8 - length) as u64;
    let name = header
        .as_object()
        .unwrap()
        .keys()
        .find(|name| name.ends_with("embed_tokens.weight"))
        .unwrap()
        .clone();
    let d = header[&name]["shape"][1].as_u64().unwrap();
    let end = data + vocab * d * 2;
    // The old table stays as a tensor of another name, so that the data has no gap.
    let old = header[&name].clone();
    header["unused"] = old;
    header[&name] = serde_json::json!({"dtype": "BF16", "shape": [vocab, d], "data_offsets": [data, end]});
    let mut text = header.to_string();
    text.push_str(&" ".repeat((8 - text.len() % 8) % 8));
    let mut new = (text.len() as u64).to_le_bytes().to_vec();
    new.extend(text.as_bytes());
    new.extend(&bytes[8 + length..]);
    std::fs::write(&file, &new).unwrap();
    let handle = std::fs::File::options().write(true).open(&file).unwrap();
    handle.set_len(8 + text.len() as u64 + end).unwrap();
    let model = copy.0.to_str().unwrap();
    let done = ocelli(&["run", "--backend", "wgpu", "--model", model, "hi"]);
    done.fails(1, &["out of memory", "bytes"]);
}
