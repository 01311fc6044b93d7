//! `ocelli compare`, `ocelli bench diff`, and the pages that reports become.

use serde_json::Value;

use crate::wgpu::adapter;
use crate::{Temp, example, golden, json, ocelli};

/// The value, which has to be what the schema says.
fn valid(value: Value) -> Value {
    let path = ocelli_tests::root().join("bench/schemas/compare.v1.json");
    let schema: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let schema = jsonschema::validator_for(&schema).expect("a schema");
    let wrong: Vec<String> =
        schema.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(wrong.is_empty(), "{wrong:?}\n{value}");
    value
}

fn names(value: &Value) -> Vec<&str> {
    value["candidates"].as_array().unwrap().iter().map(|run| run["name"].as_str().unwrap()).collect()
}

#[test]
fn types_and_formats_on_the_cpu() {
    let temp = Temp::new();
    let page = temp.path("report.html");
    let value = valid(
        ocelli(&[
            "compare",
            "--backends",
            "cpu",
            "--dtypes",
            "f32,bf16",
            "--formats",
            "stored,int8",
            "--runs",
            "1",
            "--max-tokens",
            "6",
            "--json",
            "--html",
            page.to_str().unwrap(),
        ])
        .json(),
    );
    assert_eq!(names(&value), ["cpu f32 stored", "cpu bf16 stored", "cpu f32 int8", "cpu bf16 int8"]);
    assert_eq!((&value["model"], &value["pass"]), (&"demo".into(), &true.into()));
    assert_eq!(value["requests"].as_array().unwrap().len(), 6);
    let runs = value["candidates"].as_array().unwrap();
    assert!(runs[0]["drift"].is_null());
    let weights = |run: &Value| run["memory"]["weight_bytes"].as_u64().unwrap();
    assert!(weights(&runs[2]) < weights(&runs[0]), "{value}");
    for run in &runs[1..] {
        let drift = &run["drift"];
        assert!(drift["error"].as_f64().unwrap() > 1e-5, "{drift}");
        assert_eq!(drift["first_different"].as_array().unwrap().len(), 6);
        let stage =
            |part: &str| drift["stages"].as_array().unwrap().iter().any(|stage| stage["part"] == part);
        assert!(stage("vision_last_hidden") && stage("text_layer") && stage("logits"), "{drift}");
    }
    // A format changes weights of the decoder alone: in f32 the tower gives what it gave.
    let tower = &runs[2]["drift"]["stages"][0];
    assert_eq!((&tower["part"], &tower["error"]), (&"vision_last_hidden".into(), &0.0.into()));
    assert!(runs[2]["drift"]["bounds"]["error"].is_null() && runs[1]["drift"]["bounds"]["error"] == 0.05);

    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.matches("<svg ").count() == 2 && page.contains("cpu bf16 int8"), "{page}");
    // No request goes out: the one address names SVG.
    let addresses = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!addresses.contains("http") && !addresses.contains("src=") && !addresses.contains("@import"));
}

#[test]
fn drift_past_a_stated_bound_fails() {
    let picture = example("01.png");
    let asked = ["compare", "--backends", "cpu", "--dtypes", "bf16", "--runs", "1", "--max-tokens", "2"];
    let asked = [&asked[..], &["--images", picture.to_str().unwrap()]].concat();
    let bounded = |bound: [&str; 2]| ocelli(&[&asked[..], &bound, &["--json"]].concat());
    let done = bounded(["--max-error", "1e-6"]);
    assert_eq!((done.code, &*done.stderr), (Some(1), ""));
    let value = valid(json(&done.stdout));
    assert_eq!(value["pass"], false);
    let past = value["candidates"][1]["drift"]["past"].as_array().unwrap();
    assert!(past.iter().any(|text| text.as_str().unwrap().starts_with("text_layer 0: error")), "{past:?}");
    assert_eq!(bounded(["--max-kl", "1e-12"]).code, Some(1));
    assert_eq!(bounded(["--max-error", "0.5"]).code, Some(0));
    let text = ocelli(&[&asked[..], &["--max-error", "1e-6"]].concat());
    assert!(text.code == Some(1) && text.stdout.contains("PAST: "), "{}", text.stdout);
}

/// A model that sees no pictures is asked without them, unless they were chosen.
#[test]
fn a_model_of_text_alone() {
    let model = golden("llama");
    let model = model.to_str().unwrap();
    let asked =
        ["compare", model, "--backends", "cpu", "--dtypes", "bf16", "--runs", "1", "--max-tokens", "3"];
    let value = valid(
        ocelli(&[&asked[..], &["--max-error", "1", "--max-kl", "1", "--min-top1", "0", "--json"]].concat())
            .json(),
    );
    assert_eq!(names(&value), ["cpu f32 stored", "cpu bf16 stored"]);
    assert_eq!(value["candidates"][0]["speed"]["tower_ms"]["median"], 0.0);
    let picture = example("01.png");
    ocelli(&[&asked[..], &["--images", picture.to_str().unwrap()]].concat()).fails(1, &["no pictures"]);
}

#[test]
fn wrong_arguments_are_one_error() {
    ocelli(&["compare", "--backends", "abacus"]).fails(2, &["abacus"]);
    ocelli(&["compare", "--max-error", "-1"]).fails(2, &["--max-error"]);
    ocelli(&["compare", "--runs", "0"]).fails(2, &["--runs"]);
    ocelli(&["compare", "--formats", "int3"]).fails(2, &["int3", "stored, int8, int4"]);
    // Before the work that the page tells of.
    ocelli(&["compare", "--backends", "cpu", "--html", "absent/page.html"]).fails(1, &["absent/page.html"]);
    ocelli(&["compare", "--images", "absent.png", "--backends", "cpu"]).fails(1, &["absent.png"]);
    ocelli(&["compare", "no-such-folder/", "--backends", "cpu"]).fails(1, &["no-such-folder"]);
}

#[test]
fn the_software_driver_is_within_bounds() {
    if !adapter() {
        return;
    }
    let value = valid(
        ocelli(&["compare", "--backends", "cpu,wgpu", "--runs", "1", "--max-tokens", "8", "--json"]).json(),
    );
    assert_eq!(names(&value), ["cpu f32 stored", "wgpu f32 stored"]);
    let drift = &value["candidates"][1]["drift"];
    assert!(drift["error"].as_f64().unwrap() > 0.0 && drift["top1"] == 1.0, "{drift}");
    assert!(drift["first_different"].as_array().unwrap().iter().all(Value::is_null), "{drift}");
}

#[test]
fn records_are_compared() {
    let temp = Temp::new();
    let model = golden("smolvlm");
    let bench = ["bench", "kernels", "--backend", "cpu", "--model", model.to_str().unwrap(), "--op", "norm"];
    let page = temp.path("kernels.html");
    let text = ocelli(&[&bench[..], &["--json", "--html", page.to_str().unwrap()]].concat()).well();
    let mut record = json(&text);
    let rows = record["rows"].as_array().unwrap();
    assert!(!rows.is_empty() && rows.iter().all(|row| row["op"] == "norm"), "{record}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg ") && page.contains("norm"), "{page}");

    let before = temp.write("before.json", &text);
    let diff = |after: &str, more: &[&str]| {
        let after = temp.write("after.json", after);
        let paths = [before.to_str().unwrap(), after.to_str().unwrap()];
        ocelli(&[&["bench", "diff"], &paths[..], more].concat())
    };
    let same = diff(&text, &[]).well();
    assert!(same.contains("0 slower, 0 faster"), "{same}");
    for row in record["rows"].as_array_mut().unwrap() {
        for time in ["median_us", "p20_us", "p80_us"] {
            row[time] = (100.0 * row[time].as_f64().unwrap()).into();
        }
    }
    let slower = diff(&record.to_string(), &["--json"]);
    assert_eq!(slower.code, Some(1), "{}", slower.stdout);
    let changes = json(&slower.stdout)["changes"].as_array().unwrap().clone();
    assert!(changes.iter().all(|change| change["verdict"] == "slower"), "{changes:?}");
    diff("{}", &[]).fails(1, &["after.json", "schema"]);
    let broken = temp.write("shapes.toml", "[[shape]]\nop = 7\n");
    let shapes = ["bench", "kernels", "--backend", "cpu", "--shapes", broken.to_str().unwrap()];
    ocelli(&shapes).fails(1, &["shapes.toml: line "]);
    ocelli(&["bench", "kernels", "--backend", "cpu", "--op", "abacus"]).fails(2, &["--op", "abacus"]);
    ocelli(&["bench", "diff", "absent.json", "absent.json"]).fails(1, &["absent.json"]);
    ocelli(&["bench", "diff", before.to_str().unwrap()]).fails(2, &["AFTER"]);
}

/// A variant that is slow where another runs, picked by force.
#[test]
fn a_slow_pick_fails_the_assertion() {
    let bench = |force: &str| {
        // Codes are decoded for each row by one, for many rows by the other: several times as long, however busy the memory is.
        let shape = "m=1 n=3072 k=576 w=int8";
        let mut command = crate::command(&[
            "bench",
            "kernels",
            "--backend",
            "cpu",
            "--no-tune",
            "--assert",
            "--only",
            shape,
        ]);
        crate::ended(command.env("OCELLI_KERNEL_FORCE", force).spawn().unwrap())
    };
    // What varies by more than the two differ, as beside other work, says nothing: it is measured again then.
    let slow = (0..6).map(|_| bench("gemm-f32")).find(|done| done.code == Some(1));
    let slow = slow.expect("a run that notices the slow variant");
    assert!(slow.stderr.contains("gemm-f32 is picked and takes"), "{}", slow.stderr);
    assert_eq!(bench("").code, Some(0));
}
