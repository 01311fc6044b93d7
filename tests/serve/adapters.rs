//! Adapters that requests name as their model.

use std::path::Path;

use ocelli_engine::adapter::tensor_name;
use ocelli_tests::command::{Temp, ocelli};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

use crate::http::{Server, data, example, question, with};

/// An adapter of noise for a module of the first layers of a part of the demo.
fn adapter(folder: &Path, seed: u32, layers: &str, module: &str, [n, k]: [usize; 2]) {
    let mut state = seed;
    let mut values = |len: usize| -> Vec<u8> {
        let value = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.8
        };
        (0..len).map(value).flat_map(f32::to_le_bytes).collect()
    };
    let matrices: Vec<(String, [usize; 2], Vec<u8>)> = (0..4)
        .flat_map(|layer| {
            let path = format!("{layers}.{layer}.{module}");
            [
                (tensor_name(&path, "A"), [2, k], values(2 * k)),
                (tensor_name(&path, "B"), [n, 2], values(2 * n)),
            ]
        })
        .collect();
    let views = matrices.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("a tensor"))
    });
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join("adapter_model.safetensors"), serialize(views, None).expect("a file"))
        .expect("written");
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "bias": "none"});
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("written");
}

/// The demo's layers of the decoder.
const TEXT: &str = "model.text_model.layers";

/// What a request is answered: tokens with how likely they were.
fn answer(server: &Server, model: &str) -> Value {
    let asked = question(&[data(&example("01.png"))], "How many objects are there?");
    let more =
        json!({"model": model, "temperature": 0, "max_tokens": 24, "ignore_eos": true, "logprobs": true});
    let reply = server.chat(&with(asked, more)).json(200);
    assert_eq!(reply["model"], model);
    reply["choices"][0]["logprobs"].clone()
}

#[test]
fn requests_of_one_batch_have_their_own() {
    let temp = Temp::new();
    adapter(&temp.path("one"), 1, TEXT, "self_attn.q_proj", [128, 128]);
    adapter(&temp.path("two"), 2, TEXT, "mlp.down_proj", [128, 256]);
    let of = |name: &str| format!("{name}={}", temp.path(name).display());
    let server = Server::start(&["--batch-invariant", "--adapter", &of("one"), "--adapter", &of("two")]);
    let models = server.get("/v1/models").json(200);
    let names: Vec<&str> =
        models["data"].as_array().expect("models").iter().filter_map(|m| m["id"].as_str()).collect();
    assert_eq!(names, ["demo", "one", "two"]);
    assert_eq!(server.get("/v1/models/two").json(200)["parent"], "demo");
    let known: Vec<Value> = names.iter().map(|name| answer(&server, name)).collect();
    assert!(known[0] != known[1] && known[1] != known[2] && known[0] != known[2], "{known:?}");
    // All at once, each several times, in orders of their own.
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..12)
            .map(|number| (number * 7) % 3)
            .map(|of| {
                (
                    of,
                    scope.spawn({
                        let (server, names) = (&server, &names);
                        move || answer(server, names[of])
                    }),
                )
            })
            .collect();
        for (of, thread) in all {
            assert_eq!(thread.join().expect("an answer"), known[of], "{}", names[of]);
        }
    });
    let asked = with(question(&[], "Hello"), json!({"model": "three"}));
    let error = server.chat(&asked).json(404);
    assert_eq!(error["error"]["code"], "model_not_found");
}

#[test]
fn adapters_of_towers_are_not_chosen_by_requests() {
    let temp = Temp::new();
    let folder = temp.path("tower");
    adapter(&folder, 3, "model.vision_model.encoder.layers", "self_attn.q_proj", [128, 128]);
    let of = format!("eye={}", folder.display());
    let done = ocelli(&["serve", "--port", "0", "--adapter", &of]);
    done.fails(1, &["is no layer of the decoder", "as --adapter DIR"]);
}
