//! Checkpoints that quantization libraries wrote: logits and likeliest tokens equal those of the dequantized weights.

use std::path::{Path, PathBuf};

use ocelli_engine::files::ModelFiles;
use ocelli_kernels::{Backend, DType, DeviceOptions};
use serde_json::{Value, json};

use super::{explain, golden, run, run_in};
use ocelli_engine::Precision;

/// Those that are here, and those of the folder that `OCELLI_QUANTIZED` names.
fn models() -> Vec<PathBuf> {
    let folders = [Some(golden("quant/models")), std::env::var_os("OCELLI_QUANTIZED").map(PathBuf::from)];
    let mut all: Vec<PathBuf> = folders
        .into_iter()
        .flatten()
        .flat_map(|folder| {
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        })
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.join("golden.safetensors").is_file())
        .collect();
    all.sort();
    all
}

/// A folder that is gone when this is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A copy of a model of pictures that has neither tokenizer nor processor, with such: the reference has tokens and pixels already.
fn with_processor(model: &Path) -> Option<Folder> {
    let config: Value = ModelFiles::dir(model).require_json("config.json").expect("config.json");
    if config.get("vision_config").is_none() || model.join("tokenizer.json").is_file() {
        return None;
    }
    let name = format!("ocelli-quantized-{}-{}", model.file_name()?.display(), std::process::id());
    let folder = Folder(std::env::temp_dir().join(name));
    std::fs::create_dir_all(&folder.0).expect("a folder");
    for file in ["config.json", "model.safetensors", "golden.safetensors"] {
        std::fs::copy(model.join(file), folder.0.join(file)).expect("a copy");
    }
    let size = &config["vision_config"]["image_size"];
    let token = json!({"id": config["image_token_index"], "content": "<image>", "special": true});
    let files = [
        ("tokenizer.json", json!({"added_tokens": [token]})),
        (
            "preprocessor_config.json",
            json!({
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": size},
                "crop_size": {"height": size, "width": size},
            }),
        ),
    ];
    for (file, value) in files {
        std::fs::write(folder.0.join(file), value.to_string()).expect("a file");
    }
    Some(folder)
}

#[test]
fn logits_equal_those_of_the_dequantized_weights() {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let models = models();
    assert!(models.len() >= 3, "{models:?}");
    for folder in models {
        let held = with_processor(&folder);
        let model = held.as_ref().map_or(folder, |held| held.0.clone());
        let report = run(&model, &model, &*device);
        println!("{}: {}", model.display(), explain(&report));
        assert!(report.pass, "{}", explain(&report));
        // Most tokens are firm, else the test says little.
        let firm = report.cases[0].greedy.counted;
        assert!(firm >= 6, "{}: {firm} firm tokens", model.display());
        // What lies along n is read in place, or stored anew.
        let reordered = run_in(&model, &model, &*device, Precision { reorder: true, ..Precision::default() });
        assert!(reordered.pass, "{}", explain(&reordered));
        if device.caps().bf16_dot {
            let bf16 = Precision { dtype: DType::BF16, ..Precision::default() };
            let report = run_in(&model, &model, &*device, bf16);
            assert!(report.pass, "{}", explain(&report));
        }
    }
}
