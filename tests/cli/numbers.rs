//! Logits that are no numbers: an error, not an answer.

use std::fs;

use crate::{Temp, demo, example, golden, json, ocelli};

/// Exit code 1 and the error for every way of choosing a token.
fn refuses(args: &[&str]) {
    for more in [&[][..], &["--temperature", "1"], &["--repetition-penalty", "1.3"], &["--json"]] {
        let done = ocelli(&[&["run"], args, more, &["--max-tokens", "4", "--ignore-eos", "What?"]].concat());
        done.fails(1, &["logits", "NaN"]);
        assert!(done.stderr.contains("hint: ") && done.stderr.contains("damaged"), "{done:?}");
    }
}

/// Writes `value` over part of a tensor of floats.
fn damage(model: &Temp, tensor: &str, value: f32) {
    let file = model.path("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = json(std::str::from_utf8(&bytes[8..8 + length]).unwrap());
    let info = &header[tensor];
    let end = |at: usize| info["data_offsets"][at].as_u64().expect(tensor) as usize + 8 + length;
    let data = &mut bytes[end(0)..end(1)];
    // The upper half of an f32 is a bf16.
    let cell = match info["dtype"].as_str() {
        Some("F32") => value.to_le_bytes().to_vec(),
        Some("BF16") => value.to_le_bytes()[2..].to_vec(),
        other => panic!("{tensor}: {other:?}"),
    };
    let cells = (data.len() / cell.len()).div_ceil(2);
    data.chunks_exact_mut(cell.len()).take(cells).for_each(|at| at.copy_from_slice(&cell));
    fs::write(file, bytes).unwrap();
}

#[test]
fn damaged_weights() {
    let picture = example("01.png");
    for (source, tensor) in [
        (demo(), "model.text_model.norm.weight"),
        (golden("smolvlm"), "model.text_model.layers.0.mlp.down_proj.weight"),
        (golden("smolvlm"), "lm_head.weight"),
    ] {
        for value in [f32::NAN, f32::INFINITY] {
            let model = Temp::copy_of(&source);
            damage(&model, tensor, value);
            let model = model.0.to_str().unwrap();
            refuses(&["--model", model, "--image", picture.to_str().unwrap()]);
            refuses(&["--model", model]);
        }
    }
}

#[test]
fn pictures_that_overflow() {
    let picture = example("01.png");
    let picture = picture.to_str().unwrap();
    for field in ["image_std=1e-40", "image_std=[0.5,1e-40,0.5]", "image_mean=1e39", "rescale_factor=1e39"] {
        let args = ["run", "--image", picture, "--processor", field, "--max-tokens", "4", "What?"];
        let done = ocelli(&args);
        // What no f32 can hold may be refused as a wrong field.
        match done.code {
            Some(2) => done.fails(2, &[field.split('=').next().unwrap()]),
            _ => done.fails(1, &["logits", "NaN"]),
        }
    }
}
