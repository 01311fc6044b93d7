//! What a run holds in memory at once is what its plan says: the bytes of the file that it reads, keys and values, activations. Weights
//! that lie in the file as kernels want them have no second copy; others have one, as large as `inspect` says.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::process::Child;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::{Temp, command, ended, golden, json as parse, ocelli};

const D: usize = 1024;
const INNER: usize = 14336;
const LAYERS: usize = 6;
const VOCAB: usize = 608;
/// Weights that share a scale.
const GROUP: usize = 64;

/// What a process has of its own beside what is planned: stacks, tables, the tokenizer, what the allocator keeps.
const OWN: u64 = 16 << 20;
/// The same with the pages of its code that are resident.
const ALL: u64 = 40 << 20;

/// A tensor of a file: name, type, shape, and what is written again and again; none: bytes that look random.
type Tensor = (String, &'static str, Vec<usize>, Option<Vec<u8>>);

/// The tensors of a matrix `[n, k]`.
type Matrix = fn(&str, usize, usize) -> Vec<Tensor>;

fn floats(value: f32) -> Option<Vec<u8>> {
    Some(half::bf16::from_f32(value).to_le_bytes().to_vec())
}

fn mlx(name: &str, n: usize, k: usize) -> Vec<Tensor> {
    vec![
        (format!("{name}.weight"), "U32", vec![n, k / 8], None),
        (format!("{name}.scales"), "BF16", vec![n, k / GROUP], floats(0.002)),
        (format!("{name}.biases"), "BF16", vec![n, k / GROUP], floats(-0.016)),
    ]
}

fn mxfp4(name: &str, n: usize, k: usize) -> Vec<Tensor> {
    vec![
        (format!("{name}.weight_packed"), "U8", vec![n, k / 2], None),
        (format!("{name}.weight_scale"), "U8", vec![n, k / 32], Some(vec![118])),
    ]
}

fn gptq(name: &str, n: usize, k: usize) -> Vec<Tensor> {
    let scale = half::f16::from_f32(0.002).to_le_bytes().to_vec();
    vec![
        (format!("{name}.qweight"), "I32", vec![k / 8, n], None),
        (format!("{name}.qzeros"), "I32", vec![k / GROUP, n / 8], Some(vec![0x77])),
        (format!("{name}.scales"), "F16", vec![k / GROUP, n], Some(scale)),
    ]
}

/// A Llama with a wide MLP, whose matrices are these.
fn model(matrix: Matrix, quantization: Value) -> Temp {
    let model = Temp::copy_of(&golden("llama"));
    model.edit("config.json", |config| {
        config["hidden_size"] = D.into();
        config["intermediate_size"] = INNER.into();
        config["num_hidden_layers"] = LAYERS.into();
        config["quantization_config"] = quantization;
    });
    let one = |name: String, shape: Vec<usize>| (name, "BF16", shape, floats(1.0));
    let table = |name: &str| (format!("{name}.weight"), "BF16", vec![VOCAB, D], None);
    let mut tensors =
        vec![table("lm_head"), table("model.embed_tokens"), one("model.norm.weight".into(), vec![D])];
    for layer in 0..LAYERS {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        tensors.push(one(at("input_layernorm.weight"), vec![D]));
        tensors.push(one(at("post_attention_layernorm.weight"), vec![D]));
        // Four heads of 16, two of keys.
        let sizes = [
            ("self_attn.q_proj", 64, D),
            ("self_attn.k_proj", 32, D),
            ("self_attn.v_proj", 32, D),
            ("self_attn.o_proj", D, 64),
            ("mlp.gate_proj", INNER, D),
            ("mlp.up_proj", INNER, D),
            ("mlp.down_proj", D, INNER),
        ];
        tensors.extend(sizes.into_iter().flat_map(|(name, n, k)| matrix(&at(name), n, k)));
    }
    let size = |dtype: &str| match dtype {
        "I32" | "U32" => 4,
        "BF16" | "F16" => 2,
        _ => 1,
    };
    let (mut header, mut end) = (Map::new(), 0);
    for (name, dtype, shape, _) in &tensors {
        let start = end;
        end += shape.iter().product::<usize>() * size(dtype);
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let file = File::create(model.path("model.safetensors")).expect("a file");
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let mut write = |bytes: &[u8]| file.write_all(bytes).expect("room on the disk");
    write(&(text.len() as u64).to_le_bytes());
    write(text.as_bytes());
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for (name, dtype, shape, fill) in &tensors {
        let count = shape.iter().product::<usize>() * size(dtype);
        let bytes: Vec<u8> = match fill {
            Some(fill) => fill.iter().copied().cycle().take(count).collect(),
            None => {
                let mut bytes = vec![0u8; count.next_multiple_of(8)];
                for word in bytes.as_chunks_mut::<8>().0 {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    // Floats of tables are small, and none is NaN.
                    let mask = if name.ends_with("proj.weight") || *dtype != "BF16" {
                        u64::MAX
                    } else {
                        0x3cff_3cff_3cff_3cff
                    };
                    *word = (state & mask).to_le_bytes();
                }
                bytes.truncate(count);
                bytes
            }
        };
        write(&bytes);
    }
    file.flush().expect("room on the disk");
    drop(file);
    model
}

/// The most that a process held at once, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// Memory of its own.
    own: u64,
    /// All that was resident, pages of files too.
    all: u64,
}

/// Follows a process to its end; `None` where the system does not tell.
fn held(child: &mut Child) -> Option<Held> {
    let path = format!("/proc/{}/status", child.id());
    let mut most = Held::default();
    while child.try_wait().expect("a child").is_none() {
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb << 10)
        };
        if let (Some(own), Some(all)) = (field("RssAnon:"), field("VmHWM:")) {
            most = Held { own: most.own.max(own), all: most.all.max(all) };
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    (most.own > 0).then_some(most)
}

/// What was planned and what was held.
struct Seen {
    held: Held,
    made: u64,
    weights: u64,
    total: u64,
}

fn seen(matrix: Matrix, quantization: Value, more: &[&str]) -> Option<Seen> {
    let model = model(matrix, quantization);
    let path = model.0.to_str().expect("UTF-8");
    let request = [&["--max-tokens", "4", "--backend", "cpu"], more].concat();
    let report =
        ocelli(&[&["inspect", path, "--json", "--prompt-tokens", "40"][..], &request].concat()).json();
    assert_eq!((&report["refused"], &report["copied"]["bytes"]), (&json!([]), &json!(0)), "{report}");
    let number = |value: &Value| value.as_u64().expect("a number");
    let memory = &report["plan"]["memory"];
    let args =
        [&["run", "--model", path, "--json", "--ignore-eos"][..], &request, &["What is this?"]].concat();
    let mut child = command(&args).spawn().expect("the command");
    let held = held(&mut child);
    let done = ended(child);
    assert_eq!(done.code, Some(0), "{done:?}");
    let answer = parse(&done.stdout);
    assert_eq!(answer["token_ids"].as_array().map(Vec::len), Some(4), "{answer}");
    assert!(number(&answer["prompt_tokens"]) <= 40, "{answer}");
    Some(Seen {
        held: held?,
        made: number(&report["made_bytes"]),
        weights: number(&memory["weights"]),
        total: number(&memory["total"]),
    })
}

#[test]
fn weights_that_lie_as_kernels_want_them_have_no_second_copy() {
    let of_gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": GROUP});
    let reordered: &[&str] = &["--reorder"];
    let cases: [(&str, Matrix, Value, &[&str]); 4] = [
        ("MLX", mlx, json!({"group_size": GROUP, "bits": 4}), &[]),
        (
            "MXFP4",
            mxfp4,
            json!({"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}),
            &[],
        ),
        ("GPTQ", gptq, of_gptq.clone(), &[]),
        ("GPTQ, reordered", gptq, of_gptq, reordered),
    ];
    for (name, matrix, quantization, more) in cases {
        let Some(Seen { held, made, weights, total }) = seen(matrix, quantization, more) else {
            return ocelli_tests::skip("memory of a process", "no /proc/PID/status with RssAnon here");
        };
        println!(
            "{name}: weights {weights}, made {made}, planned {total}, own {}, all {}",
            held.own, held.all
        );
        let (file, rest) = (weights - made, total - weights);
        assert!(file > 120 << 20, "{name}: {file} bytes of weights in the file");
        // Codes are the most of what lies in the file; made anew they are as many. A plan has zero points of GPTQ, which it does not
        // read, as floats.
        let anew = !more.is_empty();
        assert!(if anew { made > file / 5 * 4 } else { made < file / 10 }, "{name}: {made} of {file}");
        assert!(anew || name == "GPTQ" || made == 0, "{name}: {made}");
        // Its own memory: what is made and what is computed, and no copy of the weights beside it.
        assert!(
            held.own <= made + rest + OWN,
            "{name}: {held:?}, expected {made} + {rest} and {OWN} at most"
        );
        assert!(!anew || held.own >= made, "{name}: {held:?}, expected {made} at least");
        // All of it: the file's weights once, and the plan's rest.
        assert!(held.all <= total + ALL, "{name}: {held:?}, expected {total} and {ALL} at most");
        assert!(held.all >= file, "{name}: {held:?}, expected the {file} bytes of the file that are read");
    }
}
