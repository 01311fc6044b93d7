//! What `tests/gpu.sh run` does, with programs that stand in for the real ones: one passes, one is wrong, one hangs, one ends the device,
//! and a benchmark is killed between two rows. Everything that was known before has to be in the record.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

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
    sleep 600 ;;
*rope*) kill -SEGV $$ ;;
esac
"#;

const OCELLI: &str = r#"
rows=
while [ $# -gt 0 ]; do
    [ "$1" = --rows ] && rows=$2
    shift
done
row='"backend":"cuda","variant":"gemv","picked":true,"bytes":1,"flops":1,"p20_us":1,"p80_us":3,"roof":"read_gbps","fraction":0.5'
echo "{\"op\":\"matmul\",$row,\"median_us\":2,\"spec\":{\"m\":1,\"n\":8192,\"k\":8192,\"w\":\"int4g128\"}}" >>"$rows"
printf '{"op":"matmul","backend"' >>"$rows"
sleep 600
"#;

#[test]
fn what_is_known_survives_wrong_hanging_and_killed_programs() {
    let base = std::env::temp_dir().join(format!("ocelli-gpu-harness-{}", std::process::id()));
    let folder = Folder(base);
    let (bin, out) = (folder.0.join("bin"), folder.0.join("out"));
    fs::create_dir_all(&bin).expect("a folder");
    script(&bin, "cuda", CUDA);
    script(
        &bin,
        "golden",
        "case \"$*\" in --list*) echo 'cuda::golden_models_on_a_gpu: test' ;; *) echo done ;; esac",
    );
    script(&bin, "ocelli", OCELLI);
    script(&bin, "nvidia-smi", "echo 'Stand-in, 580.0, 1 MiB, 1 MHz, 1 MHz, 1 W, 30'");
    script(&bin, "compute-sanitizer", "exit 0");

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let begin = std::time::Instant::now();
    let done = Command::new("python3")
        .arg(root.join("tests/gpu.py"))
        .args([&bin, &out])
        .env("PATH", path)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("OCELLI_ROOT", &root)
        .env("OCELLI_CACHE", folder.0.join("cache"))
        .env("OCELLI_GPU_TIME_SCALE", "0.05")
        .output();
    let done = match done {
        Ok(done) => done,
        Err(error) => {
            assert!(!super::required("python"), "{error}");
            return println!("skipped: python3: {error}");
        }
    };
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(done.status.code(), Some(1), "{told}{}", String::from_utf8_lossy(&done.stderr));
    assert!(begin.elapsed().as_secs() < 120, "{told}");

    let text = fs::read_to_string(out.join("record.json")).expect("a record");
    let record: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(record["machine"]["gpu"], "Stand-in");
    // Both of one, the one before the hang, and a test of models; wrong, hanging and ended ones have failed.
    let counts = &record["conformance"];
    assert_eq!((&counts["passed"], &counts["failed"]), (&4.into(), &3.into()), "{told}");
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
    assert!(fs::read_to_string(out.join("summary.txt")).expect("a summary").contains("4 passed, 3 failed"));
}
