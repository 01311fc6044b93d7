//! References in the layouts that `verify` takes beside that of the committed ones.

use std::collections::BTreeMap;
use std::path::Path;

use ocelli_kernels::{Backend, DeviceOptions};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::published::Folder;
use super::{explain, golden, run};

/// Tensors of a reference: type, shape, bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Writes the reference of `family` with other tensors and cases, and compares the model with it: whether it passes, and what is said.
fn with(family: &str, change: impl FnOnce(&mut Tensors, &mut Value)) -> (bool, String) {
    let bytes = std::fs::read(golden(family).join("golden.safetensors")).expect("a reference");
    let stored = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut tensors: Tensors = stored
        .iter()
        .map(|(name, view)| (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    let text = std::fs::read(golden(family).join("inputs.json")).expect("cases");
    let mut inputs: Value = serde_json::from_slice(&text).expect("JSON");
    change(&mut tensors, &mut inputs);

    let name = format!("ocelli-reference-{family}-{}-{:?}", std::process::id(), std::thread::current().id());
    let folder = Folder(std::env::temp_dir().join(name));
    let images = folder.0.join("images");
    std::fs::create_dir_all(&images).expect("a folder");
    for picture in
        inputs["cases"].as_array().expect("cases").iter().flat_map(|case| case["images"].as_array()).flatten()
    {
        let name = picture.as_str().expect("a name");
        std::fs::copy(golden("images").join(name), images.join(name)).expect("a picture");
    }
    std::fs::write(folder.0.join("inputs.json"), inputs.to_string()).expect("a file");
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).expect("bytes of the shape"))
    });
    safetensors::serialize_to_file(views, None, &folder.0.join("golden.safetensors")).expect("a file");
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let report = run(&golden(family), Path::new(&folder.0), &*device);
    (report.pass, explain(&report))
}

/// `[n, places, channels]` of 4 bytes each as `[n, channels, places]`.
fn channels_first(bytes: &[u8], places: usize, channels: usize) -> Vec<u8> {
    let value = |map: &[u8], place: usize, channel: usize| -> [u8; 4] {
        std::array::from_fn(|byte| map[4 * (place * channels + channel) + byte])
    };
    let maps = bytes.chunks_exact(4 * places * channels);
    maps.flat_map(|map| {
        (0..channels).flat_map(move |channel| (0..places).flat_map(move |place| value(map, place, channel)))
    })
    .collect()
}

/// A tower's map as its convolutions have it, and one whose sides are turned.
#[test]
fn maps_with_channels_first() {
    for turned in [false, true] {
        let (pass, told) = with("fast_vlm", |tensors, _| {
            for (name, (_, shape, bytes)) in tensors.iter_mut() {
                if let ([n, places, channels], true) = (&shape[..], name.ends_with(".vision_last_hidden")) {
                    let (n, places, channels) = (*n, *places, *channels);
                    if !turned {
                        *bytes = channels_first(bytes, places, channels);
                    }
                    *shape = vec![n, channels, 1, places];
                }
            }
        });
        assert_eq!(pass, !turned, "{told}");
    }
}

/// What is told of an encoder of text and, with the whole answer, of its decoder.
#[test]
fn encoder_and_answer() {
    let of_answer = [
        ("text_layer_first", "decoder_layer_first"),
        ("text_layer_last", "decoder_layer_last"),
        ("logits_last8", "logits_first8"),
    ];
    for wrong in [false, true] {
        let (pass, told) = with("florence2", |tensors, inputs| {
            for case in inputs["cases"].as_array_mut().expect("cases") {
                let start = case.as_object_mut().expect("a case").remove("decoder_input_ids");
                assert!(start.is_some(), "expected what the decoder begins with");
            }
            let mut renamed = Tensors::new();
            for (name, (dtype, mut shape, mut bytes)) in std::mem::take(tensors) {
                let (case, key) = name.split_once('.').expect("a case");
                let Some((_, key)) = of_answer.iter().find(|(of_prompt, _)| *of_prompt == key) else {
                    if key == "encoder_last_hidden" {
                        renamed
                            .insert(format!("{case}.text_layer_last"), (dtype, shape.clone(), bytes.clone()));
                    }
                    if key != "inputs_embeds" {
                        renamed.insert(name, (dtype, shape, bytes));
                    }
                    continue;
                };
                // A second row, of the answer's first token, which the pass over the prompt does not give.
                let rows = shape.len() - 2;
                shape[rows] += 1;
                bytes.extend(vec![0; bytes.len()]);
                if wrong {
                    bytes[3] ^= 0x80;
                }
                renamed.insert(format!("{case}.{key}"), (dtype, shape, bytes));
            }
            *tensors = renamed;
        });
        assert_eq!(pass, !wrong, "{told}");
        for stage in ["decoder_layer_first", "logits_first8", "text_layer_last"] {
            assert!(told.contains(stage), "{told}");
        }
    }
}

/// Without what the reference's own run rounds, a stage is held to what the last bits of its pixels change; a wrong value is still seen.
#[test]
fn references_silent_of_rounding() {
    for wrong in [false, true] {
        let (pass, told) = with("gemma4_e", |tensors, _| {
            let before = tensors.len();
            tensors.retain(|name, _| !name.ends_with(".f32_drift"));
            assert!(tensors.len() < before, "expected drifts");
            if wrong {
                for (_, (_, _, bytes)) in
                    tensors.iter_mut().filter(|(name, _)| name.ends_with(".text_layer_last"))
                {
                    let value = f32::from_le_bytes(bytes[..4].try_into().expect("4 bytes"));
                    bytes[..4].copy_from_slice(&(value + 4e-3).to_le_bytes());
                }
            }
        });
        assert_eq!(pass, !wrong, "{told}");
    }
}
