//! Quantized matrices that are laid out anew as they are loaded: LFM2-VL's patch embedding and Mistral 3's patch merger, with random codes
//! in each published format, give what the same weights in f32 give.

use std::path::Path;

use ocelli_engine::Pipeline;
use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::Rgb8Image;
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::Request;
use ocelli_engine::text::Message;
use ocelli_engine::weights::{Checkpoint, TensorFile};
use serde_json::Value;

use super::experts::{Random, Tensor, WAYS, f32s, file_of, none};
use super::golden;
use super::published::Folder;
use super::stages::{cpu, decoded, equal_stages, stages_of};

const LAYERS: [(&str, &str); 2] = [
    ("lfm2_vl", "model.vision_tower.embeddings.patch_embedding"),
    ("mistral3", "multi_modal_projector.patch_merger.merging_layer"),
];

/// A copy of a family's model with these tensors in place of a module's weight.
fn write(family: &str, what: &str, module: &str, weight: Vec<Tensor>, config: &Value) -> Folder {
    let source = golden(family);
    let folder = std::env::temp_dir().join(format!("ocelli-relaid-{family}-{what}-{}", std::process::id()));
    let folder = Folder(folder);
    std::fs::create_dir_all(&folder.0).expect("a folder");
    for entry in std::fs::read_dir(&source).expect("the golden model") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|kind| kind == "json" || kind == "jinja") {
            std::fs::copy(&path, folder.0.join(path.file_name().expect("a name"))).expect("a copy");
        }
    }
    let mut all: Value = ModelFiles::dir(&source).require_json("config.json").expect("JSON");
    for (key, value) in config.as_object().expect("fields") {
        all[key] = value.clone();
    }
    std::fs::write(folder.0.join("config.json"), all.to_string()).expect("a file");
    let file = TensorFile::open(&source.join("model.safetensors")).expect(family);
    let replaced = format!("{module}.weight");
    let kept = file.names().filter(|name| *name != replaced).map(|name| {
        let info = file.info(name).expect(name);
        let dtype = if info.dtype.to_string() == "BF16" { "BF16" } else { "F32" };
        let bytes = file.bytes(name).expect(name).to_vec();
        Tensor { name: name.to_owned(), dtype, shape: info.shape.to_vec(), bytes }
    });
    let tensors: Vec<Tensor> = kept.chain(weight).collect();
    std::fs::write(folder.0.join("model.safetensors"), file_of(&tensors)).expect("a file");
    folder
}

/// A prompt with a picture that is not square.
fn request(pipeline: &Pipeline) -> Request {
    let (width, height) = (100, 70);
    let bytes = (0..3 * width * height).map(|i| (i % 251) as u8 ^ (i / 900) as u8).collect();
    let picture = Rgb8Image::from_raw(width, height, bytes).expect("a picture");
    let params = SamplingParams { max_tokens: 2, ignore_eos: true, ..SamplingParams::default() };
    pipeline.request(&[Message::user(1, "What is this?")], &[picture], params).expect("a request")
}

#[test]
fn decoded_in_every_format() {
    let device = cpu();
    for (family, module) in LAYERS {
        let file = TensorFile::open(&golden(family).join("model.safetensors")).expect(family);
        let &[n, k] = file.info(&format!("{module}.weight")).expect(module).shape else { panic!("{module}") };
        let stages = |folder: &Path| stages_of(folder, &*device, request);
        for (number, way) in WAYS.iter().enumerate() {
            let codes = way.matrix(&mut Random(7 + number as u64), n, k);
            let named = |tensor: Tensor| Tensor { name: format!("{module}.{}", tensor.name), ..tensor };
            let codes = codes.into_iter().map(named).collect();
            let quantized = write(family, &format!("{number}"), module, codes, &(way.config)());
            let checkpoint = Checkpoint::open(&ModelFiles::dir(&quantized.0)).expect("a checkpoint");
            let w = checkpoint.at(module).linear(n, k, false).expect(way.source);
            let values = decoded(&w);
            assert!(values.iter().any(|value| value.abs() > 0.005), "{}", way.source);
            let name = format!("{module}.weight");
            let dense = Tensor { name, dtype: "F32", shape: vec![n, k], bytes: f32s(&values) };
            let dense = write(family, &format!("{number}-dense"), module, vec![dense], &none());
            let what = format!("{family}, {} ({number})", way.source);
            equal_stages(&what, &stages(&quantized.0), &stages(&dense.0));
        }
    }
}
