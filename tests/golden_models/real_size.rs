//! A model of SmolVLM-256M's widths, half as deep, with random weights: one tile and a prompt give the same logits on the CPU and on
//! wgpu.

use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use half::bf16;
use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::Rgb8Image;
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::generate;
use ocelli_engine::text::Message;
use ocelli_engine::weights::{QuantizeOptions, QuantizeScheme, quantize};
use ocelli_engine::{Ctx, Pipeline, Precision, Stage};
use ocelli_kernels::{Backend, Device, DeviceOptions};
use serde_json::{Value, json};

/// Largest difference of a logit in f32 on a GPU (design, section 6).
pub(super) const TOLERANCE: f32 = 1e-3;

const D_VISION: usize = 768;
const D_TEXT: usize = 576;
const VOCAB: usize = 49_280;
const LAYERS_VISION: usize = 6;
const LAYERS_TEXT: usize = 15;

/// Name and shape of every tensor.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| all.push((format!("model.{name}"), shape.to_vec()));
    add("connector.modality_projection.proj.weight".into(), &[D_TEXT, 16 * D_VISION]);
    add("text_model.embed_tokens.weight".into(), &[VOCAB, D_TEXT]);
    for i in 0..LAYERS_TEXT {
        let mut layer =
            |name: &str, shape: &[usize]| add(format!("text_model.layers.{i}.{name}.weight"), shape);
        layer("input_layernorm", &[D_TEXT]);
        layer("post_attention_layernorm", &[D_TEXT]);
        for (name, rows) in [("q_proj", 576), ("k_proj", 192), ("v_proj", 192), ("o_proj", 576)] {
            layer(&format!("self_attn.{name}"), &[rows, D_TEXT]);
        }
        layer("mlp.gate_proj", &[1536, D_TEXT]);
        layer("mlp.up_proj", &[1536, D_TEXT]);
        layer("mlp.down_proj", &[D_TEXT, 1536]);
    }
    add("text_model.norm.weight".into(), &[D_TEXT]);
    add("vision_model.embeddings.patch_embedding.weight".into(), &[D_VISION, 3, 16, 16]);
    add("vision_model.embeddings.patch_embedding.bias".into(), &[D_VISION]);
    add("vision_model.embeddings.position_embedding.weight".into(), &[1024, D_VISION]);
    let mut biased = |name: String, rows: usize, cols: &[usize]| {
        add(format!("vision_model.{name}.weight"), &[&[rows], cols].concat());
        add(format!("vision_model.{name}.bias"), &[rows]);
    };
    for i in 0..LAYERS_VISION {
        for name in ["layer_norm1", "layer_norm2"] {
            biased(format!("encoder.layers.{i}.{name}"), D_VISION, &[]);
        }
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            biased(format!("encoder.layers.{i}.self_attn.{name}"), D_VISION, &[D_VISION]);
        }
        biased(format!("encoder.layers.{i}.mlp.fc1"), 3072, &[D_VISION]);
        biased(format!("encoder.layers.{i}.mlp.fc2"), D_VISION, &[3072]);
    }
    biased("post_layernorm".into(), D_VISION, &[]);
    all
}

/// Normal values of standard deviation 0.02; a prime number of them, so that rows differ when they repeat.
fn values() -> Vec<bf16> {
    let mut state = 7u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..1_000_003)
        .map(|_| {
            let radius = (-2.0 * (1.0 - unit()).ln()).sqrt();
            bf16::from_f64(0.02 * radius * (std::f64::consts::TAU * unit()).cos())
        })
        .collect()
}

/// A folder that goes when the test ends.
pub(super) struct Folder(pub(super) PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn checkpoint() -> Folder {
    let folder = Folder(std::env::temp_dir().join(format!("ocelli-real-size-{}", std::process::id())));
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/model");
    std::fs::create_dir_all(&folder.0).expect("a folder");
    for name in ["chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(demo.join(name), folder.0.join(name)).expect("a copy");
    }
    let edit = |name: &str, change: &dyn Fn(&mut Value)| {
        let text = std::fs::read_to_string(demo.join(name)).expect("a file of the demo model");
        let mut value: Value = serde_json::from_str(&text).expect("JSON");
        change(&mut value);
        std::fs::write(folder.0.join(name), value.to_string()).expect("a file");
    };
    let set = |object: &mut Value, fields: Value| {
        for (name, value) in fields.as_object().expect("fields") {
            object[name] = value.clone();
        }
    };
    edit("config.json", &|config| {
        config["scale_factor"] = 4.into();
        set(
            &mut config["text_config"],
            json!({
                "hidden_size": D_TEXT, "num_hidden_layers": LAYERS_TEXT, "num_attention_heads": 9, "num_key_value_heads": 3,
                "head_dim": 64, "intermediate_size": 1536, "vocab_size": VOCAB, "max_position_embeddings": 8192
            }),
        );
        set(
            &mut config["vision_config"],
            json!({
                "hidden_size": D_VISION, "num_hidden_layers": LAYERS_VISION, "num_attention_heads": 12,
                "intermediate_size": 3072, "patch_size": 16, "image_size": 512
            }),
        );
    });
    edit("processor_config.json", &|config| {
        let size = json!({"longest_edge": 512});
        set(&mut config["image_processor"], json!({"size": size, "max_image_size": size}));
        config["image_seq_len"] = 64.into();
    });
    let (mut header, mut end) = (serde_json::Map::new(), 0usize);
    let tensors = tensors();
    for (name, shape) in &tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let file = std::fs::File::create(folder.0.join("model.safetensors")).expect("a file");
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let mut write = |bytes: &[u8]| file.write_all(bytes).expect("room on the disk");
    write(&(text.len() as u64).to_le_bytes());
    write(text.as_bytes());
    let random = values();
    let mut next = 0;
    for (name, shape) in &tensors {
        let count: usize = shape.iter().product();
        if name.contains("norm") && name.ends_with("weight") {
            write(bytemuck::cast_slice(&vec![bf16::ONE; count]));
            continue;
        }
        let mut left = count;
        while left > 0 {
            let run = left.min(random.len() - next);
            write(bytemuck::cast_slice(&random[next..next + run]));
            (left, next) = (left - run, (next + run) % random.len());
        }
    }
    file.flush().expect("room on the disk");
    folder
}

/// Tokens of an answer about one picture, and the logits that the prompt ends in.
fn answer(files: &ModelFiles, device: &dyn Device) -> (Vec<u32>, Vec<f32>) {
    let mut cx = Ctx::new(device, Precision::default()).expect("a stream");
    let model = ocelli_models::load(files, &mut cx).expect("the model");
    let pipeline = Pipeline::new(files, model, 2).expect("its tokenizer");
    let picture: Vec<u8> = (0..512 * 512 * 3).map(|i: usize| (i * i / 977 % 256) as u8).collect();
    let picture = Rgb8Image::from_raw(512, 512, picture).expect("a picture");
    let params = SamplingParams { max_tokens: 3, ignore_eos: true, ..SamplingParams::default() };
    let messages = [Message::user(1, "What is this?".to_owned())];
    let request = pipeline.request(&messages, &[picture], params).expect("a request");
    assert!(request.prompt.len() > 64, "a tile of 64 tokens");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let first = seen.clone();
    cx.observe(Some(Box::new(move |stage, _, values| {
        let mut first = first.lock().expect("nobody panicked");
        if stage == Stage::LOGITS && first.is_empty() {
            first.extend_from_slice(values);
        }
    })));
    let answers = generate(&mut cx, &pipeline.model, &pipeline.tokenizer, vec![request], |_, _| {
        ControlFlow::Continue(())
    });
    let logits = seen.lock().expect("nobody panicked").clone();
    (answers.expect("an answer")[0].token_ids.clone(), logits)
}

#[test]
fn wgpu_gives_the_logits_of_the_cpu() {
    let wgpu = match ocelli_kernels::open(Backend::Wgpu, &DeviceOptions::default()) {
        Ok(device) => device,
        Err(error) => return ocelli_tests::skip("wgpu", &error.to_string()),
    };
    let cpu = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let folder = checkpoint();
    let int4 = Folder(folder.0.with_extension("int4"));
    let files = ModelFiles::dir(&folder.0);
    let roles = ocelli_models::roles(&files).expect("a family");
    let role = |module: &str| roles.get(module).copied();
    quantize(&files, &int4.0, &role, &QuantizeOptions::new(QuantizeScheme::Int4), &mut |_| {
        ControlFlow::Continue(())
    })
    .expect("a quantized copy");
    for (format, files) in [("bf16", files), ("int4", ModelFiles::dir(&int4.0))] {
        let (tokens, expected) = answer(&files, &*cpu);
        let (got_tokens, got) = answer(&files, &*wgpu);
        assert_eq!((expected.len(), got.len()), (VOCAB, VOCAB));
        let off = expected.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let size = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        println!("{format}: logits up to {size:.3} differ by {off:.2e} at most");
        assert!(off <= TOLERANCE && size > 0.1, "{format}: logits up to {size} differ by {off:e}");
        assert_eq!((tokens.len(), got_tokens.len()), (3, 3));
    }
}
