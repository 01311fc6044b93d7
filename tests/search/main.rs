//! `ocelli index` and `ocelli search` with drawn pictures: what is found, what is computed again, and what is refused.
//!
//! Runs the binary that lies beside the test's own (`tests/run.sh` builds it first).

mod changes;
mod drawn;
mod embedded;
mod found;
mod refused;

use std::ffi::{OsStr, OsString};
use std::path::Path;

use ocelli_tests::command::{Done, golden, ocelli};
use serde_json::Value;

/// Arguments of paths and texts.
fn args(all: &[&dyn AsRef<OsStr>]) -> Vec<OsString> {
    all.iter().map(|one| one.as_ref().to_owned()).collect()
}

/// The small dual encoder.
fn siglip() -> std::path::PathBuf {
    golden("siglip")
}

/// Makes or renews an index; gives its report.
#[track_caller]
fn index(folder: &Path, out: &Path, model: &Path) -> Value {
    ocelli(&args(&[&"index", &folder, &"--out", &out, &"--model", &model, &"--json", &"--backend", &"cpu"]))
        .json()
}

/// What is found like a picture, as (path, score).
#[track_caller]
fn like(index: &Path, picture: &Path, k: usize) -> Vec<(String, f64)> {
    let done = ocelli(&args(&[
        &"search",
        &index,
        &"--image",
        &picture,
        &"-k",
        &k.to_string(),
        &"--json",
        &"--backend",
        &"cpu",
    ]));
    results(&done.json())
}

fn results(value: &Value) -> Vec<(String, f64)> {
    let of = |hit: &Value| (hit["path"].as_str().unwrap().to_owned(), hit["score"].as_f64().unwrap());
    value["results"].as_array().unwrap().iter().map(of).collect()
}

/// Counts of a report: new, changed, moved, removed, unchanged, failed, computed.
fn counts(report: &Value) -> [u64; 7] {
    ["new", "changed", "moved", "removed", "unchanged", "failed", "computed"]
        .map(|name| report[name].as_u64().unwrap())
}

/// The report of a run with this exit code, and what it said on stderr.
#[track_caller]
fn report(done: &Done, code: i32) -> Value {
    assert_eq!(done.code, Some(code), "{done:?}");
    ocelli_tests::command::json(&done.stdout)
}
