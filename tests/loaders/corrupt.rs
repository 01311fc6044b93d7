//! Every golden layer, damaged in each of its parts: an error that names the tensor or the module, or the same weights as before.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::{Checkpoint, TensorFile};

use super::build::valid;
use super::published::{LAYERS, Layer};
use super::{decoded, golden, model_of};

/// A tensor of a file: name, type, shape, bytes.
type Tensor = (String, String, Vec<usize>, Vec<u8>);

fn tensors(case: &str) -> Vec<Tensor> {
    let file = TensorFile::open(&golden("quant").join(case).join("model.safetensors")).expect(case);
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let of = |name: String| {
        let info = file.info(&name).expect("a tensor");
        let (dtype, shape) = (info.dtype.to_string(), info.shape.to_vec());
        let bytes = file.bytes(&name).expect("bytes").to_vec();
        (name, dtype, shape, bytes)
    };
    names.into_iter().map(of).collect()
}

fn config(case: &str) -> serde_json::Value {
    ModelFiles::dir(golden("quant").join(case)).require_json("config.json").expect(case)
}

/// What reading the layer gives: its weights, or why not.
fn read(layer: &Layer, tensors: &[Tensor], config: &serde_json::Value) -> Result<Vec<f32>, String> {
    let tensors: Vec<(&str, &str, &[usize], Vec<u8>)> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (&**name, &**dtype, &**shape, bytes.clone()))
        .collect();
    let (_dir, checkpoint): (_, Checkpoint) = model_of(&valid(&tensors, 0), &config.to_string());
    let [n, k] = layer.size;
    let read = checkpoint.at("proj").linear_in_order(n, k, layer.bias).map_err(|error| error.to_string())?;
    Ok(decoded(&read.0))
}

/// The NVFP4 layer of compressed-tensors as ModelOpt names its parts, whose scale of the matrix multiplies.
pub fn modelopt() -> (super::TempDir, Checkpoint) {
    let renamed = tensors("ct_nvfp4a16").into_iter().map(|(name, dtype, shape, bytes)| {
        let (name, bytes) = match &*name {
            "proj.weight_packed" => ("proj.weight".to_owned(), bytes),
            "proj.weight_global_scale" => {
                let whole = f32::from_le_bytes(bytes[..4].try_into().expect("4 bytes"));
                ("proj.weight_scale_2".to_owned(), (1.0 / whole).to_le_bytes().to_vec())
            }
            _ => (name, bytes),
        };
        (name, dtype, shape, bytes)
    });
    let all: Vec<Tensor> = renamed.collect();
    let all: Vec<(&str, &str, &[usize], Vec<u8>)> =
        all.iter().map(|(name, dtype, shape, bytes)| (&**name, &**dtype, &**shape, bytes.clone())).collect();
    let config = r#"{"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}"#;
    model_of(&valid(&all, 0), config)
}

#[test]
fn modelopt_has_the_same_weights_under_other_names() {
    let (_dir, checkpoint) = modelopt();
    let weights = checkpoint.at("proj").linear(192, 256, false).expect("NVFP4");
    let other = Checkpoint::open(&ModelFiles::dir(golden("quant/ct_nvfp4a16"))).expect("NVFP4");
    let other = other.at("proj").linear(192, 256, false).expect("NVFP4");
    assert_eq!((weights.format(), decoded(&weights)), (other.format(), decoded(&other)));
}

/// Errors are one line that names the tensor or the module.
fn named(text: &str, what: &str) {
    assert!(text.contains("`proj") && !text.contains('\n'), "{what}: {text}");
}

/// What tells nothing that other parts do not: without it weights are the same, or read as the other parts say.
const SPARE: [&str; 14] = [
    "weight_shape",
    "weight_format",
    "input_scale",
    "output_scale",
    "input_global_scale",
    "shape",
    "g_idx",
    "weight_g_idx",
    "channel_wise",
    "encoded_state_dict",
    "optimize",
    "round_zero",
    "quant_scale",
    "quant_zero",
];

#[test]
fn a_missing_part_is_named() {
    for layer in &LAYERS {
        let (all, config) = (tensors(layer.case), config(layer.case));
        for (name, ..) in &all {
            let last = name.strip_prefix("proj.").expect("one module");
            let left: Vec<Tensor> = all.iter().filter(|other| other.0 != *name).cloned().collect();
            match read(layer, &left, &config) {
                Err(text) => named(&text, &format!("{} without {name}", layer.case)),
                // Parts of HQQ and zero points that say what is so without them.
                Ok(_) => assert!(
                    SPARE.contains(&last) || layer.case.starts_with("hqq") || last == "_weight_zero_point",
                    "{} without {name}",
                    layer.case
                ),
            }
        }
    }
}

#[test]
fn another_shape_is_named() {
    for layer in &LAYERS {
        let (all, config) = (tensors(layer.case), config(layer.case));
        for (at, (name, _, shape, _)) in all.iter().enumerate() {
            let &[rows, cols] = &**shape else { continue };
            if rows == cols || rows == 1 || cols == 1 {
                continue;
            }
            let mut turned = all.clone();
            turned[at].2 = vec![cols, rows];
            let what = format!("{} with {name} turned", layer.case);
            named(&read(layer, &turned, &config).expect_err(&what), &what);
            // Half of its rows, as of another group size or of a matrix that was cut.
            let mut cut = all.clone();
            let bytes = cut[at].3.len();
            cut[at].2 = vec![rows / 2, cols];
            cut[at].3.truncate(bytes / rows * (rows / 2));
            let what = format!("{} with half of {name}", layer.case);
            named(&read(layer, &cut, &config).expect_err(&what), &what);
        }
    }
}

#[test]
fn an_unknown_method_is_refused() {
    for layer in &LAYERS {
        let (all, mut config) = (tensors(layer.case), config(layer.case));
        let unknown = serde_json::json!({"quant_method": "unheard-of", "bits": 4});
        let Some(fields) = config.as_object_mut() else { continue };
        fields.remove("quantization");
        fields.insert("quantization_config".into(), unknown);
        let text = read(layer, &all, &config).expect_err(layer.case);
        assert!(text.contains("unheard-of") && text.contains("not supported"), "{}: {text}", layer.case);
    }
}

/// Targets that name no module are said aloud, and what shapes tell is read; where they leave a choice, nothing is.
#[test]
fn targets_that_match_nothing() {
    let mut seen = 0;
    for layer in &LAYERS {
        let (all, mut config) = (tensors(layer.case), config(layer.case));
        let named = read(layer, &all, &config).expect(layer.case);
        let groups = ["/quantization_config/config_groups", "/config_groups"];
        let Some(path) = groups.into_iter().find(|path| config.pointer(path).is_some()) else { continue };
        let groups = config.pointer_mut(path).and_then(serde_json::Value::as_object_mut).expect("groups");
        for group in groups.values_mut() {
            group["targets"] = serde_json::json!(["re:nothing\\..*", "lm_head"]);
        }
        let unnamed = read(layer, &all, &config).unwrap_or_else(|text| panic!("{}: {text}", layer.case));
        assert_eq!(unnamed, named, "{}", layer.case);
        seen += 1;
    }
    assert!(seen >= 5, "{seen}");
}
