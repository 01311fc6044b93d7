//! Published checkpoints at their full size, without their weights (`golden/checkpoints`): plan, memory and cost.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

use ocelli_bench::plan::{Plan, Wanted};
use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::Checkpoint;
use ocelli_engine::{Ctx, Gives, Precision};
use ocelli_kernels::{Backend, Caps, DeviceOptions};
use ocelli_models::{FAMILIES, Leftovers};
use serde_json::{Map, Value, json};

use super::{TempDir, golden};

fn records() -> BTreeMap<String, Value> {
    let entries = std::fs::read_dir(golden("checkpoints")).expect("golden/checkpoints");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let records: BTreeMap<String, Value> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path: PathBuf| {
            let text = std::fs::read(&path).expect("a record");
            let name = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
            (name, serde_json::from_slice(&text).expect("JSON"))
        })
        .collect();
    assert!(records.len() > 30, "{} records", records.len());
    records
}

/// `a.{0-2,5}.b` as `a.0.b`, `a.1.b`, `a.2.b`, `a.5.b`.
fn expanded(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else { return vec![name.to_owned()] };
    let (runs, after) = rest.split_once('}').expect("a closing brace");
    let numbers = runs.split(',').flat_map(|run| {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        let number = |text: &str| text.parse::<usize>().expect("a number");
        number(first)..=number(last)
    });
    let tails = expanded(after);
    numbers.flat_map(|n| tails.iter().map(move |tail| format!("{before}{n}{tail}"))).collect()
}

/// A safetensors file of these tensors that has nothing but holes for values.
fn sparse(record: &Value, path: &std::path::Path) {
    let (mut header, mut end) = (Map::new(), 0);
    // Scales of whole matrices are not 0.
    let mut ones = Vec::new();
    // A file has one tensor at least.
    let none = vec![json!(["unknown", [1]])];
    let rows = record["tensors"].as_array().expect("tensors");
    for row in if rows.is_empty() { &none } else { rows } {
        let kind = row.get(2).unwrap_or(&record["type"]).as_str().expect("a type");
        let size = match kind {
            "F32" | "I32" => 4,
            "BF16" | "F16" => 2,
            "F8_E4M3" | "U8" => 1,
            other => panic!("type {other}"),
        };
        let elements: u64 = row[1].as_array().expect("a shape").iter().filter_map(Value::as_u64).product();
        for name in expanded(row[0].as_str().expect("a name")) {
            let begin = end;
            end += elements * size;
            if row[1] == json!([]) && kind == "F32" {
                ones.push(begin);
            }
            header.insert(name, json!({"dtype": kind, "shape": row[1], "data_offsets": [begin, end]}));
        }
    }
    let mut text = Value::Object(header).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let mut file = File::create(path).expect("a file");
    file.write_all(&(text.len() as u64).to_le_bytes()).expect("the length");
    file.write_all(text.as_bytes()).expect("the header");
    file.set_len(8 + text.len() as u64 + end).expect("a sparse file");
    for at in ones {
        file.seek(SeekFrom::Start(8 + text.len() as u64 + at)).expect("a place");
        file.write_all(&1f32.to_le_bytes()).expect("a scale");
    }
}

/// A tokenizer that knows the added tokens alone.
fn tokenizer(tokens: &Map<String, Value>) -> Value {
    let mut vocab = tokens.clone();
    let taken = |id: u64| tokens.values().any(|other| other.as_u64() == Some(id));
    let free = (0..).find(|&id| !taken(id)).expect("an id");
    let unknown = "<another>";
    vocab.insert(unknown.into(), free.into());
    let added = tokens.iter().map(|(text, id)| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
    });
    json!({
        "version": "1.0", "added_tokens": added.collect::<Vec<_>>(),
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": unknown}
    })
}

fn written(record: &Value) -> TempDir {
    let dir = TempDir::new();
    for (name, content) in record["files"].as_object().expect("files") {
        dir.write(name, content.to_string());
    }
    dir.write("tokenizer.json", tokenizer(record["tokens"].as_object().expect("tokens")).to_string());
    sparse(record, &dir.join("model.safetensors"));
    dir
}

/// What a request would take of the checkpoint in a folder.
fn planned(record: &Value, dir: &TempDir, caps: &Caps) -> Result<Plan, String> {
    let files = ModelFiles::dir(&dir.0);
    let (mut cx, log) = Ctx::dry(caps.clone(), Precision::default());
    let checkpoint = Checkpoint::open(&files).map_err(|e| e.to_string())?.planned();
    // Every field is read, and every tensor used.
    let loaded = ocelli_models::load_from(&files, &checkpoint, &mut cx, Leftovers::Refuse)
        .map_err(|e| e.to_string())?;
    let parameters: u64 = loaded.model.parts().iter().map(|part| part.parameters).sum();
    // Parts that the family leaves out, such as Gemma 4's for sound, are no parameters of what is loaded.
    let elements = |name: &str| {
        let (_, info) = checkpoint.infos().find(|(other, _)| *other == name).expect("a tensor");
        info.shape.iter().map(|&size| size as u64).product::<u64>()
    };
    // Scales of activations are none of any model.
    let of_model = checkpoint.unused().filter(|name| !name.ends_with(".input_scale"));
    let left_out: u64 = of_model.map(elements).sum();
    let expected = record["parameters"].as_u64().expect("parameters") - left_out;
    if parameters != expected {
        return Err(format!("expected {expected} parameters, found {parameters}"));
    }
    let pictures = record["files"]["config.json"].get("vision_config").is_some();
    let images = if pictures { vec![(1200, 800)] } else { vec![] };
    let vectors = loaded.model.gives() == Gives::Vectors;
    let wanted = Wanted { images, prompt_tokens: 32, max_tokens: 32 };
    let plan = Plan::make(&wanted, &files, loaded, &mut cx, &log, checkpoint.used_bytes())
        .map_err(|e| e.to_string())?;
    assert_eq!(plan.refusals(), Vec::<String>::new());
    assert_eq!(plan.memory.weights, checkpoint.used_bytes());
    assert!(plan.memory.total > plan.memory.weights && plan.phases.iter().all(|phase| phase.flops > 0));
    // BLIP attends to the picture beside the text.
    let beside = record["files"]["config.json"]["model_type"] == "blip";
    assert!(beside || vectors || !pictures || plan.request.image_tokens > 50, "{:?}", plan.request);
    Ok(plan)
}

/// Time that the processor spent on this thread, whatever else the machine does.
#[cfg(unix)]
fn spent() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every Unix, and `time` is writable.
    let code = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(code, 0, "the clock of a thread");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(not(unix))]
fn spent() -> Duration {
    Duration::ZERO
}

#[test]
fn published_checkpoints_load_at_full_size() {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let (mut loaded, mut failed) = (0, Vec::new());
    for (name, record) in records() {
        let dir = written(&record);
        let kind = record["files"]["config.json"]["model_type"].as_str().expect("model_type");
        let known = FAMILIES.iter().any(|family| family.model_types.contains(&kind));
        let before = spent();
        let found = planned(&record, &dir, device.caps());
        // `inspect` says within a second whether a model fits; it reads the tokenizer beside the plan.
        let took = spent() - before;
        assert!(took < Duration::from_secs(1), "{name}: {took:?}");
        match (found, known) {
            (Err(error), true) if record["refused"].as_str().is_some_and(|why| error.contains(why)) => {}
            (Ok(plan), true) => {
                loaded += 1;
                // Reading a token takes two operations for each parameter that it meets, at least.
                let decode = plan.phases.iter().find(|phase| phase.name == "decode");
                assert!(decode.is_none_or(|phase| phase.bytes > 1 << 20), "{name}");
                let (weights, total) = (plan.memory.weights >> 20, plan.memory.total >> 20);
                println!(
                    "{name}: {weights} MiB of weights, {total} MiB, {} picture tokens, planned in {took:.0?}",
                    plan.request.image_tokens
                );
            }
            (Err(error), false) if error.contains(kind) && error.contains("model_type") => {}
            (found, ..) => failed.push(format!("{name}: {:?}", found.map(|plan| plan.memory))),
        }
    }
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
    assert!(loaded >= 40, "{loaded} loaded");
}
