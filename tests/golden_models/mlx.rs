//! Checkpoints as mlx-vlm converts them: other names, experts in one tensor for each projection, colours of filters last.

use ocelli_engine::weights::TensorFile;
use ocelli_kernels::{Backend, DeviceOptions};

use super::experts::{Tensor, file_of};
use super::published::Folder;
use super::{explain, golden, run};

/// Beginnings of names, and what MLX has in place of them.
const NAMES: [(&str, &str); 4] = [
    ("model.language_model.", "language_model.model."),
    ("model.visual.", "vision_tower."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", ""),
];

/// A tensor as MLX stores it; a parameter of all experts as two.
fn converted(name: &str, tensor: Tensor, place: &str) -> Vec<Tensor> {
    let found = NAMES.iter().find_map(|(old, new)| Some((*new).to_owned() + name.strip_prefix(old)?));
    let name = found.unwrap_or_else(|| name.to_owned());
    if let Some((above, which)) = name.split_once(".experts.") {
        let module = |which: &str| format!("{above}.{place}.{which}.weight");
        let &[experts, rows, cols] = &*tensor.shape else { panic!("{name}: {:?}", tensor.shape) };
        if which == "down_proj" {
            return vec![Tensor { name: module(which), ..tensor }];
        }
        let half = |at: usize| {
            let size = rows * cols; // Two bytes each, of which a half.
            let parts = tensor.bytes.chunks_exact(2 * size).flat_map(|one| one[at * size..][..size].to_vec());
            (vec![experts, rows / 2, cols], parts.collect::<Vec<u8>>())
        };
        let part = |(at, which): (usize, &str)| {
            let (shape, bytes) = half(at);
            Tensor { name: module(which), dtype: tensor.dtype, shape, bytes }
        };
        return ["gate_proj", "up_proj"].into_iter().enumerate().map(part).collect();
    }
    if name.ends_with("patch_embed.proj.weight") {
        let &[filters, 3, frames, rows, cols] = &*tensor.shape else { panic!("{name}: {:?}", tensor.shape) };
        let places = frames * rows * cols;
        let from = (0..filters * places * 3).map(|i| {
            let (filter, at, colour) = (i / 3 / places, i / 3 % places, i % 3);
            filter * 3 * places + colour * places + at
        });
        let bytes = from.flat_map(|at| tensor.bytes[2 * at..][..2].to_vec()).collect();
        return vec![Tensor { name, shape: vec![filters, frames, rows, cols, 3], bytes, ..tensor }];
    }
    vec![Tensor { name, ..tensor }]
}

#[test]
fn converted_models() {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let families = [
        ("qwen3_vl", ""),
        ("qwen3_vl_moe", "switch_mlp"),
        ("gemma4", ""),
        ("gemma4_moe", "experts.switch_glu"),
    ];
    for (family, place) in families {
        let source = golden(family);
        let folder = Folder(std::env::temp_dir().join(format!("ocelli-mlx-{family}-{}", std::process::id())));
        std::fs::create_dir_all(&folder.0).expect("a folder");
        for entry in std::fs::read_dir(&source).expect(family) {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|kind| kind == "json" || kind == "jinja") {
                std::fs::copy(&path, folder.0.join(path.file_name().expect("a name"))).expect("a copy");
            }
        }
        let file = TensorFile::open(&source.join("model.safetensors")).expect(family);
        let tensors = file.names().flat_map(|name| {
            let info = file.info(name).expect(name);
            assert_eq!(info.dtype.to_string(), "BF16", "{name}");
            let bytes = file.bytes(name).expect(name).to_vec();
            let tensor = Tensor { name: name.to_owned(), dtype: "BF16", shape: info.shape.to_vec(), bytes };
            converted(name, tensor, place)
        });
        let tensors: Vec<Tensor> = tensors.collect();
        assert!(place.is_empty() || tensors.iter().any(|tensor| tensor.name.contains(place)), "{family}");
        std::fs::write(folder.0.join("model.safetensors"), file_of(&tensors)).expect("a file");
        let report = run(&folder.0, &source, &*device);
        assert!(report.pass, "{family}: {}", explain(&report));
    }
}
