//! Checkpoints as the hub has them: other names of tensors, and configurations in older spellings (`golden/published.json`).

use std::path::{Path, PathBuf};

use ocelli_kernels::{Backend, DeviceOptions};
use serde_json::{Map, Value};

use super::{explain, golden, run};

/// A folder that is gone when this is dropped.
pub(super) struct Folder(pub PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `name` with the first prefix of `pairs` that it has replaced.
fn renamed(name: &str, pairs: &[Value]) -> String {
    let pair = |pair: &Value| Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned()));
    let found = pairs.iter().filter_map(pair).find_map(|(from, to)| Some(to + name.strip_prefix(&from)?));
    found.unwrap_or_else(|| name.to_owned())
}

/// Writes a safetensors file whose tensors have other names.
fn rename(from: &Path, to: &Path, pairs: &[Value]) {
    let bytes = std::fs::read(from).expect("weights");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    let named: Map<String, Value> =
        header.into_iter().map(|(name, tensor)| (renamed(&name, pairs), tensor)).collect();
    let mut text = Value::Object(named).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.as_bytes());
    out.extend(&bytes[8 + length..]);
    std::fs::write(to, out).expect("a file");
}

#[test]
fn older_names_and_spellings() {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let text = std::fs::read(golden("published.json")).expect("published.json");
    let families: Map<String, Value> = serde_json::from_slice(&text).expect("JSON");
    let mut layouts = 0;
    for (family, published) in &families {
        let source = golden(family);
        for (layout, pairs) in published["layouts"].as_object().expect("layouts") {
            let name = format!("ocelli-published-{family}-{layout}-{}", std::process::id());
            let folder = Folder(std::env::temp_dir().join(name));
            std::fs::create_dir_all(&folder.0).expect("a folder");
            std::fs::copy(source.join("tokenizer.json"), folder.0.join("tokenizer.json")).expect("a copy");
            for (file, content) in published["files"].as_object().expect("files") {
                std::fs::write(folder.0.join(file), content.to_string()).expect("a file");
            }
            let pairs = pairs.as_array().expect("pairs");
            rename(&source.join("model.safetensors"), &folder.0.join("model.safetensors"), pairs);
            let report = run(&folder.0, &source, &*device);
            assert!(report.pass, "{family}, layout {layout}: {}", explain(&report));
            layouts += 1;
        }
    }
    assert!(layouts >= 7, "{layouts} layouts");
}
