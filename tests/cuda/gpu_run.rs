//! `tests/gpu.sh pack` and `tests/gpu.sh run` with the real programs, on the stand-in for the driver: few cases, one model, small shapes.
//!
//! `OCELLI_PROGRAMS` names the folder that `tests/gpu.sh programs` made.

#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::{host, required};

/// What a run may take on a GPU, which `tests/gpu.py` holds it to.
const BUDGET: Duration = Duration::from_secs(8 * 60);

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Where the programs are, and the folder of the stand-in; why there are none.
fn programs() -> Result<(PathBuf, PathBuf), String> {
    let programs = std::env::var_os("OCELLI_PROGRAMS").filter(|path| !path.is_empty());
    let programs = programs.ok_or("OCELLI_PROGRAMS names no folder of programs; tests/gpu.sh makes one")?;
    for needed in ["python3", "xz", "tar", "strip"] {
        Command::new(needed).arg("--version").output().map_err(|error| format!("{needed}: {error}"))?;
    }
    super::emulator::EmulatedDriver::open(ocelli_kernels::Arch::Sm90a)?;
    let library = host::library()?;
    Ok((programs.into(), library.parent().expect("a folder").to_owned()))
}

/// A pack in a folder, and how it is run.
struct Pack {
    folder: Folder,
    programs: PathBuf,
    driver: PathBuf,
}

impl Pack {
    fn script(&self, arguments: &[&str]) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let before = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
        let mut command = Command::new("bash");
        command
            .arg(root.join("tests/gpu.sh"))
            .args(arguments)
            .env("OCELLI_GPU_TINY", "1")
            .env("OCELLI_PACK", self.folder.0.join("pack.tar.xz"))
            .env("OCELLI_PROGRAMS", &self.programs)
            .env("LD_LIBRARY_PATH", format!("{}:{before}", self.driver.display()))
            .env("TMPDIR", &self.folder.0)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("OCELLI_STANDIN_US", "1000")
            .env_remove("OCELLI_REQUIRE")
            .env_remove("OCELLI_CUBINS")
            .env_remove("OCELLI_NVRTC");
        command
    }

    fn run(&self, out: &Path, variables: &[(&str, &str)]) -> (Option<i32>, String) {
        let mut command = self.script(&["run", &out.display().to_string()]);
        let done = command.envs(variables.iter().copied()).output().expect("bash");
        let text = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (done.status.code(), text.concat())
    }
}

fn record(out: &Path) -> Value {
    let text = fs::read_to_string(out.join("record.json")).expect("a record");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The exit codes of a record's steps of this name.
fn codes(record: &Value, name: &str) -> Vec<Value> {
    let steps = record["steps"].as_array().expect("steps").iter();
    steps.filter(|step| step["name"] == name).map(|step| step["code"].clone()).collect()
}

#[test]
fn a_run_on_the_stand_in_ends_with_a_complete_record() {
    let (programs, driver) = match programs() {
        Ok(found) => found,
        Err(why) => {
            assert!(!required("programs"), "{why}");
            return println!("skipped: programs: {why}");
        }
    };
    let folder = Folder(std::env::temp_dir().join(format!("ocelli-gpu-run-{}", std::process::id())));
    fs::create_dir_all(&folder.0).expect("a folder");
    let pack = Pack { folder, programs, driver };
    let begin = Instant::now();
    let packed = pack.script(&["pack"]).output().expect("bash");
    let told = String::from_utf8_lossy(&packed.stdout).into_owned();
    assert!(packed.status.success(), "{told}{}", String::from_utf8_lossy(&packed.stderr));
    println!("packed in {:.0?}: {}", begin.elapsed(), told.trim().replace('\n', "; "));

    whole(&pack);
    hangs(&pack);
    killed(&pack);
}

/// Everything runs, and all that it uses was packed.
fn whole(pack: &Pack) {
    let (out, begin) = (pack.folder.0.join("out"), Instant::now());
    let (code, told) = pack.run(&out, &[]);
    println!("a whole run took {:.0?}", begin.elapsed());
    assert_eq!(code, Some(0), "{told}");
    assert!(begin.elapsed() < BUDGET, "{:?}", begin.elapsed());
    let record = record(&out);
    assert_eq!(record["machine"]["gpu"], "Stand-in H100");
    assert_eq!((&record["complete"], &record["limited"]["OCELLI_GPU_TINY"]), (&true.into(), &"1".into()));
    let counts = &record["conformance"];
    assert_eq!((&counts["failed"], &counts["skipped"]), (&0.into(), &0.into()), "{told}");
    assert!(counts["passed"].as_u64() > Some(20), "{told}");
    let cubins = &record["cubins"];
    assert_eq!(cubins["compiled"], 0, "kernels that are not in the pack: {cubins}");
    assert!(cubins["used"].as_u64() > Some(20) && cubins["shipped"].as_u64() >= cubins["used"].as_u64());
    for step in [
        "machine",
        "every_kernel_loads_on_a_gpu",
        "canaries::chains_on_a_gpu",
        "list cuda",
        "gpu::gather_rows::whole",
        "gpu::matmul::part_12",
        "gpu::sample::whole",
        "list golden",
        "gpu::golden_models_on_a_gpu",
        "gpu::demo_answers_on_a_gpu",
        "bench model",
    ] {
        assert_eq!(codes(&record, step), [Value::from(0)], "{step}: {told}");
    }
    assert_eq!(codes(&record, "bench cuda"), [Value::from(0), Value::from(0)], "{told}");
    let rows = record["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 3, "{told}");
    assert!(rows.iter().all(|row| row["median_us"].as_f64() > Some(0.0) && row["variant"].is_string()));
    assert!(record["machine"]["roofs"]["read_gbps"].as_f64() > Some(0.0), "{record}");
    assert!(record["model"]["decode_tokens_per_s"]["median"].as_f64() > Some(0.0), "{told}");
    // There is no GPU for what others measure on it.
    assert!(record["left_out"]["yardsticks"].is_string(), "{record}");
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let cases = read("cases.log");
    assert!(cases.lines().all(|line| line.starts_with("case: ") && line.ends_with(": ok")), "{cases}");
    for case in [
        "gather_rows `1 of 1x1 f32",
        "matmul `aligned 64x128x64",
        "attention `decode 1",
        "model smolvlm: ok",
        "2 demo answers: ok",
    ] {
        assert!(cases.contains(&format!("case: {case}")), "no case {case}: {cases}");
    }
    assert!(read("summary.txt").starts_with("NOT A WHOLE RUN: OCELLI_GPU_TINY=1"), "{}", read("summary.txt"));
    assert_eq!(read("rows.jsonl").lines().count(), 6, "each of them twice");
    assert!(read("kernels.log").lines().all(|line| line.starts_with("ahead sm_90a ")));
    assert!(!read("steps.log").contains("stand-in: fault"), "{}", read("steps.log"));
}

/// A device that answers no more: each program is ended when its time is over, and what was known before is there.
fn hangs(pack: &Pack) {
    let (out, begin) = (pack.folder.0.join("hangs"), Instant::now());
    let (code, told) = pack.run(
        &out,
        &[
            ("OCELLI_STANDIN_HANG", "5"),
            ("OCELLI_CUDA_TIMEOUT", "600"),
            ("OCELLI_GPU_TIME_SCALE", "0.05"),
            ("OCELLI_GPU_ONLY", "gather_rows"),
        ],
    );
    assert_eq!(code, Some(1), "{told}");
    assert!(begin.elapsed().as_secs() < 60, "{:?}", begin.elapsed());
    let record = record(&out);
    assert_eq!(record["complete"], true);
    assert_eq!(codes(&record, "gpu::gather_rows::whole"), [Value::from(124)], "{told}");
    assert_eq!(codes(&record, "bench cuda")[0], 124, "{told}");
    assert!(record["conformance"]["passed"].as_u64() > Some(1), "{told}");
    assert!(told.contains("gpu::gather_rows::whole: ended after 3 s, behind `gather_rows `"), "{told}");
}

/// Whether a program of the pack goes on.
fn goes_on(pack: &Pack) -> bool {
    let place = pack.folder.0.display().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|one| fs::read(one.path().join("cmdline")).ok()).any(|line| {
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains(&place) && line.contains("/bin/") && !line.contains("gpu.sh")
    })
}

/// Killed at some moment, it leaves whole files, and nothing that goes on.
fn killed(pack: &Pack) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").subsec_nanos();
    for turn in 0..3u64 {
        let moment = Duration::from_millis(3000 * turn + u64::from(now) % 3000);
        let out = pack.folder.0.join(format!("killed-{turn}"));
        let mut command = pack.script(&["run", &out.display().to_string()]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("bash");
        let begin = Instant::now();
        while !out.join("summary.txt").exists() {
            assert!(begin.elapsed().as_secs() < 60, "no file after {:?}", begin.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        let begin = Instant::now();
        while begin.elapsed() < moment {
            record(&out);
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill().expect("a kill");
        child.wait().expect("an end");
        assert_eq!(record(&out)["complete"], false, "killed after {moment:?}");
        let summary = fs::read_to_string(out.join("summary.txt")).expect("a summary");
        assert!(summary.ends_with('\n'), "{moment:?}: {summary}");
        if Command::new("setpriv").arg("--version").output().is_err() {
            println!("skipped: setpriv: programs that were begun may go on");
            continue;
        }
        let begin = Instant::now();
        while goes_on(pack) {
            assert!(begin.elapsed().as_secs() < 10, "killed after {moment:?}, a program goes on");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
