//! `ocelli kernels tune`, and what other commands make of it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::wgpu::adapter;
use crate::{Done, Temp, command, ended, json};

/// Runs a command with a cache of its own.
fn with_cache(cache: &Path, args: &[&str]) -> Done {
    ended(command(args).env("OCELLI_CACHE", cache).spawn().expect("the command starts"))
}

/// Tunes the one shape on a backend, and gives the report and the file that it names.
fn tune(cache: &Path, backend: &str, only: &str) -> (Value, PathBuf) {
    let args = ["kernels", "tune", "--backend", backend, "--only", only, "--json"];
    let done = with_cache(cache, &args);
    assert_eq!(done.code, Some(0), "{done:?}");
    let value = json(&done.stdout);
    assert_eq!(value["schema"], "ocelli.kernels.tune.v1");
    assert_eq!(value["device"]["backend"], backend);
    let path = PathBuf::from(value["path"].as_str().expect("a path"));
    assert!(path.starts_with(cache.join("tune")), "{path:?}");
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(name.starts_with(&format!("{backend}-")) && name.ends_with(".json"), "{name}");
    for row in value["rows"].as_array().unwrap() {
        assert!(row["us"].as_f64().unwrap() > 0.0 && row["gain"].as_f64().unwrap() >= 1.0, "{row}");
        assert!(row["candidates"].as_u64().unwrap() > 1, "{row}");
    }
    (value, path)
}

/// What `kernels why` picks of the shape that is tuned, and whether that is the estimates' own pick.
fn why(cache: &Path, backend: &str, spec: &str) -> (String, bool) {
    let fields: Vec<&str> = spec.split(' ').collect();
    let args = [&["kernels", "why", "matmul"], &fields[..], &["--backend", backend, "--json"]].concat();
    let value = with_cache(cache, &args).json();
    let rows = value["rows"].as_array().unwrap();
    let picked: Vec<&Value> = rows.iter().filter(|row| row["picked"] == true).collect();
    assert_eq!(picked.len(), 1, "{value}");
    (picked[0]["variant"].as_str().unwrap().to_owned(), value["preferred"] == false)
}

/// The choice is kept and used, another one too; one of other kernels is ignored quietly, a broken file with one warning.
fn is_kept(backend: &str) {
    const SPEC: &str = "m=1 n=576 k=576 w=bf16 residual=true";
    let temp = Temp::new();
    let (report, path) = tune(&temp.0, backend, "step out");
    let table = json(&std::fs::read_to_string(&path).unwrap());
    assert_eq!(report["kept"], table["rows"].as_array().unwrap().len());
    let (picked, estimated) = why(&temp.0, backend, SPEC);
    let Some(row) = table["rows"].as_array().unwrap().iter().find(|row| row["op"] == "matmul") else {
        assert!(estimated, "one variant alone runs it");
        return;
    };
    assert_eq!(row["variant"], picked.as_str());

    // A choice that cannot be the estimates'.
    let other = |table: &Value| {
        let args = ["kernels", "why", "matmul", "m=1", "n=576", "k=576", "w=bf16", "residual=true"];
        let all = with_cache(&temp.0, &[&args[..], &["--backend", backend, "--json"]].concat()).json();
        let rows = all["rows"].as_array().unwrap().clone();
        let runs = rows.into_iter().filter(|row| row["rejected"].is_null());
        let estimate = table["rows"][0]["estimated"].clone();
        runs.map(|row| row["variant"].clone()).find(|name| *name != estimate).expect("another variant")
    };
    let slow = other(&table);
    let change = |edit: &dyn Fn(&mut Value)| {
        let mut changed = table.clone();
        changed["rows"][0]["variant"] = slow.clone();
        edit(&mut changed);
        std::fs::write(&path, changed.to_string()).unwrap();
    };
    change(&|_| ());
    assert_eq!(why(&temp.0, backend, SPEC), (slow.as_str().unwrap().to_owned(), false));
    for field in ["digest", "version", "device"] {
        change(&|table| table[field] = "something else".into());
        assert!(why(&temp.0, backend, SPEC).1, "{field}");
    }
    let args = ["kernels", "why", "matmul", "m=1", "n=576", "k=576", "w=bf16", "--backend", backend];
    for broken in ["", "{\"rows\":", "[]"] {
        std::fs::write(&path, broken).unwrap();
        let done = with_cache(&temp.0, &args);
        assert_eq!((done.code, done.stderr.lines().count()), (Some(0), 1), "{done:?}");
        assert!(done.stderr.contains("WARN") && done.stderr.contains("kernels tune"), "{done:?}");
    }
    let run = ["bench", "kernels", "--backend", backend, "--only", "step rope", "--no-tune"];
    assert_eq!(with_cache(&temp.0, &run).well().lines().count(), 5, "--no-tune reads no table");
}

#[test]
fn the_cpus_choices_are_kept() {
    is_kept("cpu");
}

#[test]
fn the_gpus_choices_are_kept() {
    if adapter() {
        is_kept("wgpu");
    }
}

#[test]
fn the_specs_of_a_model_are_tuned() {
    let temp = Temp::new();
    let demo = crate::demo();
    let args = ["--model", demo.to_str().unwrap(), "--only", "lm_head", "--json"];
    let done = with_cache(&temp.0, &[&["kernels", "tune", "--backend", "cpu"], &args[..]].concat());
    assert_eq!(done.code, Some(0), "{done:?}");
    let value = json(&done.stdout);
    assert!(!value["rows"].as_array().unwrap().is_empty(), "{value}");
}

#[test]
fn what_cannot_be_tuned_is_one_error() {
    let temp = Temp::new();
    with_cache(&temp.0, &["kernels", "tune", "--only", "no such shape"]).fails(2, &["no such shape"]);
    with_cache(&temp.0, &["kernels", "tune", "--backend", "cuda", "--device", "99"])
        .fails(1, &["backend cuda"]);
    let args = ["kernels", "tune", "--backend", "cpu", "--only", "step norm", "--json"];
    with_cache(Path::new("/dev/null/no"), &args).fails(1, &["/dev/null/no"]);
}

#[test]
fn the_gpus_kernels_are_measured() {
    if !adapter() {
        return;
    }
    let args = ["bench", "kernels", "--backend", "wgpu", "--only", "step out", "--all", "--json"];
    for profile in ["full", "baseline"] {
        let mut command = command(&args);
        let value = ended(command.env("OCELLI_WGPU", profile).spawn().unwrap()).json();
        assert_eq!(value["schema"], "ocelli.bench.kernels.v1");
        let adapter = &value["machine"]["adapter"];
        for field in ["name", "api", "driver"] {
            assert!(adapter[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {adapter}");
        }
        if profile == "baseline" {
            assert_eq!(adapter["clock"], "host");
        }
        assert!(adapter["submit_us"].as_f64().unwrap() > 0.0, "{adapter}");
        for roof in ["fma_f32_gflops", "int8_gops", "read_gbps"] {
            assert!(value["roofs"][roof].as_f64().unwrap() > 0.0, "{roof}: {}", value["roofs"]);
        }
        assert!(value["roofs"]["read_gbps_1t"].is_null(), "one thread is a figure of CPUs");
        let rows = value["rows"].as_array().unwrap();
        assert!(!rows.is_empty() && rows.iter().filter(|row| row["picked"] == true).count() == 1, "{value}");
        for row in rows {
            assert_eq!((&row["backend"], &row["op"]), (&"wgpu".into(), &"matmul".into()));
            let figure = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name}: {row}"));
            assert!(0.0 < figure("p20_us") && figure("p20_us") <= figure("median_us"), "{row}");
            assert!(figure("median_us") <= figure("p80_us") && figure("fraction") > 0.0, "{row}");
        }
    }
    let missing = ["bench", "kernels", "--backend", "wgpu", "--device", "99", "--only", "step out"];
    crate::ocelli(&missing).fails(1, &["no device 99"]);
}

#[test]
fn a_model_is_measured_on_the_gpu() {
    if !adapter() {
        return;
    }
    let args = ["bench", "model", "--backend", "wgpu", "--runs", "1", "--max-tokens", "3"];
    let args = [&args[..], &["--image-size", "64x48", "--json"]].concat();
    let value = crate::ocelli(&args).json();
    assert_eq!((&value["backend"], &value["decode_tokens"]), (&"wgpu".into(), &2.into()), "{value}");
    for field in ["device", "api", "driver"] {
        assert!(value[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {value}");
    }
    for figure in ["encode_ms", "prefill_tokens_per_s", "decode_tokens_per_s", "decode_encode_share"] {
        assert!(value[figure]["median"].as_f64().unwrap() > 0.0, "{figure}: {value}");
    }
}
