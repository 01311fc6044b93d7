//! Valid files: values, alignment, types, names.

use std::sync::Arc;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::{Aligned, Checkpoint, Copied, StoredType, TensorFile};
use ocelli_kernels::{DType, Format};
use safetensors::SafeTensors;

use super::build::{f32s, i64s, valid};
use super::{TempDir, elements, golden};

#[test]
fn tensors_equal_those_of_the_safetensors_crate_without_a_copy() {
    let dir = golden("smolvlm");
    let checkpoint = Checkpoint::open(&ModelFiles::dir(&dir)).expect("a valid checkpoint");
    let bytes = std::fs::read(dir.join("model.safetensors")).expect("the golden model");
    let reference = SafeTensors::deserialize(&bytes).expect("a valid file");
    assert_eq!(checkpoint.names().count(), reference.len());
    assert_eq!(checkpoint.unused().count(), reference.len());
    assert_eq!(checkpoint.used_bytes(), 0);
    for (name, tensor) in reference.tensors() {
        let view = checkpoint.tensor(&name).expect("a tensor of the file");
        assert_eq!((view.shape(), view.dtype()), (tensor.shape(), DType::F32), "{name}");
        assert_eq!(f32s(&elements::<f32>(&view)), tensor.data(), "{name}");
        assert_eq!(f32s(&checkpoint.floats(&name).expect("floats")), tensor.data(), "{name}");
    }
    assert_eq!(checkpoint.unused().count(), 0);
    assert_eq!(checkpoint.used_bytes(), checkpoint.bytes());
    assert_eq!(checkpoint.copied(), Copied::default());
    checkpoint.prefetch();
}

#[test]
fn unaligned_tensors_are_copied_alone_and_counted() {
    let values: Vec<f32> = (0..7).map(|i| i as f32 - 2.5).collect();
    let halves: Vec<u8> = (0..6u16).flat_map(|i| (0x3f80 + i).to_le_bytes()).collect();
    for pad in 0..8 {
        let tensors: [(&str, &str, &[usize], Vec<u8>); 4] = [
            ("byte", "U8", &[1], vec![9]),
            ("f", "F32", &[7], f32s(&values)),
            ("h", "BF16", &[2, 3], halves.clone()),
            ("none", "F32", &[0, 4], vec![]),
        ];
        let bytes = valid(&tensors, pad);
        let dir = TempDir::new();
        let file = TensorFile::open(&dir.write("m.safetensors", &bytes)).expect("a valid file");
        let start = bytes.len() - (1 + 28 + 12) + 1;
        for _ in 0..2 {
            assert_eq!(elements::<f32>(&file.view("f").expect("f")), values, "pad {pad}");
            assert_eq!(elements::<u8>(&file.view("byte").expect("byte")), [9]);
            let h: Vec<u16> =
                elements::<half::bf16>(&file.view("h").expect("h")).iter().map(|v| v.to_bits()).collect();
            assert_eq!(h, [0x3f80, 0x3f81, 0x3f82, 0x3f83, 0x3f84, 0x3f85], "pad {pad}");
            assert_eq!(file.view("none").expect("none").shape(), [0, 4]);
        }
        let (f, h) = (!start.is_multiple_of(4), !(start + 28).is_multiple_of(2));
        let none = !(start + 40).is_multiple_of(4);
        let copied = file.copied();
        let expected = usize::from(f) + usize::from(h) + usize::from(none);
        assert_eq!(copied.tensors, expected, "pad {pad}");
        assert_eq!(copied.bytes, 28 * u64::from(f) + 12 * u64::from(h), "pad {pad}");
    }
}

#[test]
fn embedded_files_are_read_in_place() {
    static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../golden/smolvlm/model.safetensors"));
    let files: &'static [(&str, &[u8])] = vec![("model.safetensors", &MODEL.0)].leak();
    let files = ModelFiles::Embedded { label: "demo", files };
    let checkpoint = Checkpoint::open(&files).expect("a valid checkpoint");
    assert_eq!(checkpoint.path(), "demo:model.safetensors");
    let norm = checkpoint.tensor("model.text_model.norm.weight").expect("a norm");
    let inside = MODEL
        .0
        .as_ptr_range()
        .contains(&norm.read_ptr::<f32>(ocelli_kernels::StreamId::fresh()).expect("f32").cast());
    assert!(inside, "the view must lie in the embedded bytes");
    assert_eq!(checkpoint.copied(), Copied::default());
}

#[test]
fn types_that_kernels_do_not_know_are_told_apart() {
    let bytes = valid(
        &[
            ("shape", "I64", &[2], i64s(&[640, -3])),
            ("wide", "F64", &[1], 0.5f64.to_le_bytes().to_vec()),
            ("flag", "BOOL", &[2], vec![0, 1]),
            ("count", "U64", &[1], u64::MAX.to_le_bytes().to_vec()),
            ("deep", "U8", &[1, 1, 1, 1, 2], vec![1, 2]),
        ],
        0,
    );
    let file = TensorFile::in_memory("m", Arc::from(bytes)).expect("a valid file");
    assert_eq!(file.ints("shape").expect("integers"), [640, -3]);
    assert_eq!(file.ints("flag").expect("integers"), [0, 1]);
    assert_eq!(file.floats("wide").expect("floats"), [0.5]);
    assert_eq!(file.info("shape").expect("shape").dtype, StoredType::I64);
    let text = |e: ocelli_engine::weights::WeightError| e.to_string();
    assert_eq!(
        file.view("shape").map_err(text).expect_err("refused"),
        "m: tensor `shape`: expected F32, BF16, F16, I8, U8 or I32, found I64"
    );
    assert_eq!(
        file.ints("count").map_err(text).expect_err("refused"),
        "m: tensor `count`: a value is above 2^63 - 1"
    );
    assert_eq!(
        file.floats("shape").map_err(text).expect_err("refused"),
        "m: tensor `shape`: expected F64, F32, BF16 or F16, found I64"
    );
    assert_eq!(
        file.ints("wide").map_err(text).expect_err("refused"),
        "m: tensor `wide`: expected integers, found F64"
    );
    assert!(file.view("deep").map_err(text).expect_err("refused").contains("at most 4 axes"));
    assert_eq!(Checkpoint::of_file(file).tensor_as("deep", &[2]).expect("flat").shape(), [2]);
}

#[test]
fn names_are_found_in_either_version_and_near_ones_are_told() {
    let checkpoint = Checkpoint::open(&ModelFiles::dir(golden("smolvlm"))).expect("a valid checkpoint");
    let text = checkpoint.at_any(&["language_model.model", "model.text_model"]);
    assert_eq!(text.prefix(), "model.text_model");
    let layer = text.at("layers").at(1);
    let q = layer.at("self_attn.q_proj").linear(64, 64, false).expect("a linear layer");
    assert_eq!((q.n(), q.k(), q.format(), q.has_bias()), (64, 64, Format::Dense(DType::F32), false));
    let norm = layer.tensor_any(&["norm1.weight", "input_layernorm.weight"], &[64]).expect("a norm");
    assert_eq!(norm.shape(), [64]);
    let tower = checkpoint.at("model.vision_model");
    let patch = tower.at("embeddings.patch_embedding").patch_embed(64, 192, true).expect("a convolution");
    assert_eq!((patch.n(), patch.k(), patch.has_bias()), (64, 192, true));
    let head = checkpoint.at("lm_head").embedding(544, 64).expect("a head");
    assert_eq!((head.n(), head.k()), (544, 64));

    let text = |e: ocelli_engine::weights::WeightError| e.to_string();
    let missing = layer.at("self_attn.q_prj").linear(64, 64, false).map_err(text).expect_err("absent");
    assert!(missing.contains("no tensor `model.text_model.layers.1.self_attn.q_prj.weight`; nearest: model.text_model.layers.1.self_attn.q_proj.weight"), "{missing}");
    let wrong = layer.at("self_attn.q_proj").linear(64, 32, false).map_err(text).expect_err("another shape");
    assert!(wrong.ends_with("tensor `model.text_model.layers.1.self_attn.q_proj.weight`: shape: expected [64, 32], found [64, 64]"), "{wrong}");
    let both = layer.tensor_any(&["a.weight", "b.weight"], &[64]).map_err(text).expect_err("absent");
    assert!(both.contains("layers.1.a.weight` or `model.text_model.layers.1.b.weight`"), "{both}");
    let patch = tower
        .at("embeddings.patch_embedding")
        .patch_embed(64, 190, false)
        .map_err(text)
        .expect_err("another size");
    assert!(patch.contains("expected [64, ...] of 12160 values, found [64, 3, 8, 8]"), "{patch}");
}
