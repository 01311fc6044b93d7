//! The CUDA backend from the command line, as far as it goes without a GPU.

use super::{Temp, command, ended, ocelli};

/// Whether this machine has a device of the backend.
fn gpu() -> bool {
    let devices = ocelli(&["devices", "--json"]).json();
    let all = devices["devices"].as_array().unwrap();
    all.iter().any(|device| device["backend"] == "cuda" && device["unavailable"].is_null())
}

#[test]
fn a_missing_driver_is_one_error() {
    if gpu() {
        return;
    }
    ocelli(&["run", "--backend", "cuda", "hi"]).fails(1, &["backend cuda", "driver"]);
    // Where nobody asked for it, the next backend answers, and -v says why.
    let done = ocelli(&["run", "-v", "--backend", "auto", "--max-tokens", "1", "How are you?"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stderr.contains("backend cuda: no NVIDIA driver was found"), "{done:?}");
}

#[test]
fn choices_are_explained_without_a_gpu() {
    let spec = ["m=1", "n=8192", "k=8192", "w=int4g128"];
    for arch in ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_120"] {
        let args = [&["kernels", "why", "matmul"], &spec[..], &["--arch", arch, "--json"]].concat();
        let answer = ocelli(&args).json();
        assert_eq!((&answer["backend"], &answer["cuda"]["arch"]), (&"cuda".into(), &arch.into()));
        let rows = answer["rows"].as_array().unwrap();
        let picked: Vec<_> = rows.iter().filter(|row| row["picked"] == true).collect();
        assert_eq!(picked.len(), 1, "{answer}");
        assert_eq!(picked[0]["variant"], "gemv", "{answer}");
        assert!(rows.iter().any(|row| !row["rejected"].is_null()), "{answer}");
    }
    ocelli(&["kernels", "why", "matmul", "--arch", "sm_70"]).fails(2, &["sm_70", "sm_90a"]);
}

#[test]
fn a_missing_compiler_is_one_error() {
    let temp = Temp::new();
    let out = temp.0.join("cubins");
    let args = ["kernels", "compile", "--arch", "sm_90a", "--out", out.to_str().unwrap()];
    let mut without = command(&args);
    ended(without.env("OCELLI_NVRTC", "/nonexistent/libnvrtc.so").spawn().unwrap())
        .fails(1, &["NVRTC", "/nonexistent/libnvrtc.so"]);
    assert!(!out.exists());
}

#[test]
fn kernels_are_compiled_ahead() {
    let temp = Temp::new();
    let out = temp.0.join("cubins");
    let args = ["kernels", "compile", "--arch", "sm_90a", "--out", out.to_str().unwrap(), "--json"];
    let done = ended(command(&args).env("OCELLI_CACHE", temp.0.join("cache")).spawn().unwrap());
    if done.code == Some(1) && done.stderr.contains("NVRTC") {
        return ocelli_tests::skip("nvrtc", "no compiler for kernels ahead of a run");
    }
    let answer = done.json();
    let kernels = answer["archs"][0]["kernels"].as_u64().unwrap();
    assert!(kernels > 10, "{answer}");
    let files = std::fs::read_dir(&out).unwrap().count() as u64;
    assert_eq!(files, kernels, "{answer}");
}
