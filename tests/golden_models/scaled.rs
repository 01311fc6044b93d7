//! Experts whose inputs are scaled by their weights, several of them for a token: no published checkpoint has such, and transformers runs
//! them.

use std::path::Path;

use ocelli_bench::verify::Report;
use ocelli_kernels::{Backend, Device, DeviceOptions, ReferenceDevice};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::published::Folder;
use super::{golden, run};

/// Golden Llama 4 with its first experts alone, so many of which take each token; all but the first give nothing.
fn with_experts(experts: usize, device: &dyn Device) -> Report {
    let source = golden("llama4");
    let name = format!("ocelli-scaled-{experts}-{}-{:?}", std::process::id(), std::thread::current().id());
    let folder = Folder(std::env::temp_dir().join(name));
    std::fs::create_dir_all(&folder.0).expect("a folder");
    for entry in std::fs::read_dir(&source).expect("a model").flatten().filter(|entry| entry.path().is_file())
    {
        std::fs::copy(entry.path(), folder.0.join(entry.file_name())).expect("a copy");
    }
    let config = folder.0.join("config.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&config).expect("a file")).expect("JSON");
    value["text_config"]["num_local_experts"] = experts.into();
    value["text_config"]["num_experts_per_tok"] = experts.into();
    std::fs::write(&config, value.to_string()).expect("a file");

    let bytes = std::fs::read(source.join("model.safetensors")).expect("weights");
    let stored = SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = stored
        .iter()
        .map(|(name, view)| {
            let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
            if name.contains(".experts.") || name.contains(".router.") {
                let each = data.len() / shape[0];
                data.truncate(experts * each);
                shape[0] = experts;
                if name.ends_with("experts.down_proj") {
                    data[each..].fill(0);
                }
            }
            (name.to_owned(), view.dtype(), shape, data)
        })
        .collect();
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name, TensorView::new(*dtype, shape.clone(), data).expect("bytes of the shape"))
    });
    safetensors::serialize_to_file(views, None, &folder.0.join("model.safetensors")).expect("a file");
    run(Path::new(&folder.0), &source, device)
}

/// A token's experts are each given what their own weight makes of it, and their results are added: with others that give nothing the
/// model is that of one expert, whose weight is a sigmoid of its own score alone.
#[test]
fn several_scaled_experts_for_a_token() {
    let cpu = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let reference = ReferenceDevice::default();
    for device in [&*cpu, &reference as &dyn Device] {
        let alone = with_experts(1, device);
        for experts in [2, 3] {
            let several = with_experts(experts, device);
            for (a, b) in alone.cases.iter().zip(&several.cases) {
                assert_eq!(a.greedy.got, b.greedy.got, "{experts} experts, {}", a.name);
                for (a, b) in a.stages.iter().zip(&b.stages) {
                    // Both are as far from the golden of four experts.
                    assert!((a.max_abs - b.max_abs).abs() < 1e-4, "{experts} experts: {a:?} and {b:?}");
                }
            }
        }
        let far =
            alone.cases.iter().flat_map(|case| &case.stages).map(|stage| stage.max_abs).fold(0.0, f64::max);
        assert!(far > 0.01, "the experts make no difference: {far}");
    }
}
