//! What `tests/gpu.sh run` does, with programs that stand in for the real ones: one passes, one is wrong, one hangs, one ends the device,
//! and a benchmark is killed between two rows. Everything that was known before has to be in the record, also when it is killed itself.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn script(folder: &Path, name: &str, body: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
}

const CUDA: &str = r#"
case "$*" in
--list*) printf 'gpu::norm::whole: test\ngpu::matmul::few: test\ngpu::gather_rows::whole: test\ngpu::rope::whole: test\n' ;;
*gather_rows*)
    echo 'test gpu::gather_rows::whole ... case: gather_rows `one` (seed 20): rows at the GPU on `tokens=1`: ok'
    echo 'case: gather_rows `two` (seed 20): rows at the GPU on `tokens=2`: ok' ;;
*norm*)
    echo 'case: norm `wide` (seed 20): rows at the GPU on `d=64`: FAILED: index 3: expected 1, found 2'
    exit 101 ;;
*matmul*)
    echo 'case: matmul `small` (seed 20): gemv at the GPU on `m=1`: ok'
    echo $$ >>"$OCELLI_STARTED"
    exec sleep 600 ;;
*rope*) kill -SEGV $$ ;;
esac
"#;

const OCELLI: &str = r#"
if [ "$1" = devices ]; then
    echo '{"devices":[{"backend":"cpu","index":0,"name":"","unavailable":null},{"backend":"cuda","index":0,"name":"Stand-in","unavailable":null}]}'
    exit 0
fi
rows=
while [ $# -gt 0 ]; do
    [ "$1" = --rows ] && rows=$2
    shift
done
row='"backend":"cuda","variant":"gemv","picked":true,"bytes":1,"flops":1,"p20_us":1,"p80_us":3,"roof":"read_gbps","fraction":0.5'
echo "{\"op\":\"matmul\",$row,\"median_us\":2,\"spec\":{\"m\":1,\"n\":8192,\"k\":8192,\"w\":\"int4g128\"}}" >>"$rows"
printf '{"op":"matmul","backend"' >>"$rows"
echo $$ >>"$OCELLI_STARTED"
exec sleep 600
"#;

/// A folder with programs that stand in for the real ones.
fn programs(name: &str) -> Folder {
    let folder = Folder(std::env::temp_dir().join(format!("ocelli-gpu-{name}-{}", std::process::id())));
    let bin = folder.0.join("bin");
    fs::create_dir_all(&bin).expect("a folder");
    script(&bin, "cuda", CUDA);
    script(
        &bin,
        "golden",
        "case \"$*\" in --list*) echo 'cuda::golden_models_on_a_gpu: test' ;; *) echo done ;; esac",
    );
    script(&bin, "ocelli", OCELLI);
    script(&bin, "nvidia-smi", "echo '580.0, 1 MiB, 1 MHz, 1 MHz, 1 W, 30'");
    script(&bin, "compute-sanitizer", "exit 0");
    folder
}

/// `tests/gpu.py` with these programs.
fn gpu_py(folder: &Folder, out: &Path, scale: &str) -> Command {
    let (bin, root) = (folder.0.join("bin"), Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    let mut command = Command::new("python3");
    command
        .arg(root.join("tests/gpu.py"))
        .args([&bin, out])
        .env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default()))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("OCELLI_ROOT", &root)
        .env("OCELLI_CACHE", folder.0.join("cache"))
        .env("OCELLI_GPU_TIME_SCALE", scale)
        .env("OCELLI_STARTED", folder.0.join("started"));
    command
}

fn python() -> bool {
    let found = Command::new("python3").arg("--version").output();
    if let Err(error) = &found {
        assert!(!super::required("python"), "{error}");
        println!("skipped: python3: {error}");
    }
    found.is_ok()
}

/// Killed at any moment, it leaves files that are whole, and no program behind.
#[test]
fn files_are_whole_whenever_it_is_killed() {
    if !python() {
        return;
    }
    let folder = programs("killed");
    let (record_at, summary_at) = ("record.json", "summary.txt");
    let mut known = Vec::new();
    for moment in [0, 3, 10, 40, 90, 150, 250, 400, 700, 1100, 1600, 2500] {
        let out = folder.0.join(format!("out-{moment}"));
        let mut child = gpu_py(&folder, &out, "0.05")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("python3");
        let begin = Instant::now();
        while !out.join(summary_at).exists() {
            assert!(begin.elapsed().as_secs() < 30, "no file after {:?}", begin.elapsed());
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(moment));
        child.kill().expect("a kill");
        child.wait().expect("an end");
        let text = fs::read_to_string(out.join(record_at)).expect("a record");
        let record: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{moment} ms: {error}"));
        let summary = fs::read_to_string(out.join(summary_at)).expect("a summary");
        assert!(summary.ends_with('\n'), "{moment} ms: {summary}");
        known.push(record["conformance"]["passed"].as_u64().expect("a count"));
    }
    assert!(known.iter().any(|&passed| passed > 1), "what had passed is known: {known:?}");
    if Command::new("setpriv").arg("--version").output().is_err() {
        return println!("skipped: setpriv: programs that were begun may go on");
    }
    let started = fs::read_to_string(folder.0.join("started")).expect("programs that go on");
    let begin = Instant::now();
    for process in started.lines() {
        let gone = || {
            let state = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        };
        while !gone() {
            assert!(begin.elapsed().as_secs() < 10, "process {process} goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn what_is_known_survives_wrong_hanging_and_killed_programs() {
    if !python() {
        return;
    }
    let folder = programs("harness");
    let out = folder.0.join("out");
    let begin = Instant::now();
    let done = gpu_py(&folder, &out, "0.05").output().expect("python3");
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(done.status.code(), Some(1), "{told}{}", String::from_utf8_lossy(&done.stderr));
    assert!(begin.elapsed().as_secs() < 120, "{told}");

    let text = fs::read_to_string(out.join("record.json")).expect("a record");
    let record: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (&record["machine"]["gpu"], &record["machine"]["driver"]),
        (&"Stand-in".into(), &"580.0".into())
    );
    assert_eq!(
        (&record["complete"], &record["limited"]["OCELLI_GPU_TIME_SCALE"]),
        (&true.into(), &"0.05".into())
    );
    // Both of one, the one before the hang, chains, and a test of models; wrong, hanging and ended ones have failed.
    let counts = &record["conformance"];
    assert_eq!((&counts["passed"], &counts["failed"]), (&5.into(), &3.into()), "{told}");
    let code = |name: &str| {
        let steps = record["steps"].as_array().expect("steps");
        steps.iter().find(|step| step["name"] == name).map(|step| step["code"].clone())
    };
    assert_eq!(code("gpu::matmul::few"), Some(124.into()), "ended by its limit: {told}");
    assert_eq!(code("gpu::rope::whole"), Some((-11).into()), "{told}");
    assert!(told.contains("behind `matmul `small`") && told.contains("expected 1, found 2"), "{told}");
    let cases = fs::read_to_string(out.join("cases.log")).expect("cases");
    assert_eq!(cases.lines().count(), 4, "{cases}");
    // The row that was whole.
    let rows = record["rows"].as_array().expect("rows");
    assert!(rows.len() == 1 && rows[0]["spec"]["w"] == "int4g128", "{record}");
    assert!(told.contains("MISSED int4 GEMV 8192^2"), "{told}");
    assert!(fs::read_to_string(out.join("summary.txt")).expect("a summary").contains("5 passed, 3 failed"));
}
