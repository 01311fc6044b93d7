//! Runs tests on the stand-in for the driver, each in a process of its own: a driver is looked for when a process starts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Where kernels that were compiled for the host are put.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("standin")
}

/// The library, compiled once; why there is none. Tests of one process share it.
pub fn library() -> Result<PathBuf, String> {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    MADE.get_or_init(|| compiled("cuda.c", "libcuda.so")).clone()
}

/// A kernel that does nothing; the error is as above.
#[allow(dead_code, reason = "not every program makes kernels ahead of a run")]
pub fn idle_kernel() -> Result<PathBuf, String> {
    compiled("idle.c", "idle.so")
}

/// A compiler that is not there is the only reason for no library.
fn compiled(source: &str, name: &str) -> Result<PathBuf, String> {
    std::fs::create_dir_all(folder()).expect("a folder");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cuda/standin").join(source);
    let (path, part) = (folder().join(name), folder().join(format!("{name}.{}.part", std::process::id())));
    let made = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()))
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&part)
        .arg(&source)
        .args(["-ldl", "-lpthread"])
        .output()
        .map_err(|error| format!("no C compiler: {error}"))?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::rename(&part, &path).expect("the library");
    Ok(path)
}

/// What a process said and left.
pub struct Ended {
    pub success: bool,
    pub output: String,
    /// Faults, and what was still held, by name.
    pub report: serde_json::Value,
    pub took: Duration,
}

/// Runs a test of this program on the stand-in, with the kernels of a folder and these variables; the error is why there is no stand-in.
pub fn on_stand_in(test: &str, kernels: &Path, variables: &[(&str, &str)]) -> Result<Ended, String> {
    let library = library()?;
    let report = library.with_file_name(format!("{}-{}.json", test.replace("::", "-"), std::process::id()));
    let before = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let folder = library.parent().expect("a folder").display().to_string();
    let begin = Instant::now();
    let done = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--include-ignored", "--nocapture", "--test-threads", "1"])
        .env("LD_LIBRARY_PATH", format!("{folder}:{before}"))
        .env("OCELLI_CUBINS", kernels)
        .env("OCELLI_REQUIRE", "cuda")
        .env("OCELLI_STANDIN_REPORT", &report)
        .env(ON, "1")
        .env_remove("OCELLI_CACHE")
        .env_remove("OCELLI_CASE")
        .envs(variables.iter().copied())
        .output()
        .expect("this program again");
    let output =
        format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    let text =
        std::fs::read_to_string(&report).unwrap_or_else(|error| panic!("no report: {error}\n{output}"));
    let _ = std::fs::remove_file(&report);
    let report = serde_json::from_str(&text).expect("a report");
    Ok(Ended { success: done.status.success(), output, report, took: begin.elapsed() })
}

/// Set in a process that is to run on the stand-in.
pub const ON: &str = "OCELLI_STANDIN";

pub fn is_on() -> bool {
    std::env::var_os(ON).is_some()
}

impl Ended {
    /// Right, without a fault, and with nothing left behind. (Modules end with their context.)
    pub fn well(&self) {
        assert!(self.success, "{}", self.output);
        let nothing = [
            "faults",
            "contexts",
            "streams",
            "events",
            "device_allocations",
            "host_allocations",
            "graphs",
            "graph_execs",
        ];
        for what in nothing {
            assert_eq!(self.report[what], 0, "{what}: {}\n{}", self.report, self.output);
        }
    }

    /// One clear failure, soon.
    pub fn fails(&self, words: &[&str]) {
        assert!(!self.success, "{}", self.output);
        for word in words {
            assert!(self.output.contains(word), "no `{word}` in: {}", self.output);
        }
        assert!(self.took < Duration::from_secs(60), "{:?}", self.took);
    }
}
