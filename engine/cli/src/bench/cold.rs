//! Cold start: what a fresh process takes until its first token is there.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use ocelli_bench::model::Quantiles;
use ocelli_engine::files::ModelFiles;
use serde::Serialize;

use crate::args::BenchModelArgs;
use crate::fail::Failure;
use crate::open;

/// Processes that are started, after one that does not count.
const STARTS: usize = 5;

/// Milliseconds from the start of a process to its end, which follows its first token.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Starts {
    /// With the model's files in the system's memory.
    pub warm_ms: Quantiles,
    /// With none of them there; absent where the system keeps them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped_ms: Option<Quantiles>,
}

/// Starts processes that answer with one token.
pub fn measure(args: &BenchModelArgs) -> Result<Starts, Failure> {
    let files = open::files(args.which().model.as_deref())?;
    let start = |drop: bool| -> Result<Option<f64>, Failure> {
        if drop && !let_go(&files) {
            return Ok(None);
        }
        let begin = Instant::now();
        let done = command(args)?.output().map_err(|error| Failure::new(format!("--cold-start: {error}")))?;
        let ms = begin.elapsed().as_secs_f64() * 1e3;
        if done.status.success() {
            return Ok(Some(ms));
        }
        let why = String::from_utf8_lossy(&done.stderr);
        Err(Failure::new(format!(
            "--cold-start: a process failed: {}",
            why.lines().next().map_or("no reason", |line| line.trim_start_matches("error: "))
        )))
    };
    start(false)?;
    let times = |drop: bool| -> Result<Option<Quantiles>, Failure> {
        let all = (0..STARTS).map(|_| start(drop)).collect::<Result<Option<Vec<f64>>, _>>()?;
        Ok(all.map(Quantiles::of))
    };
    Ok(Starts { warm_ms: times(false)?.unwrap_or_default(), dropped_ms: times(true)? })
}

fn command(args: &BenchModelArgs) -> Result<Command, Failure> {
    let exe = std::env::current_exe().map_err(|error| Failure::new(format!("--cold-start: {error}")))?;
    let mut command = Command::new(exe);
    command.args(["run", "--quiet", "--max-tokens", "1", "--ignore-eos"]).stdin(Stdio::null());
    if let Some(model) = &args.which().model {
        command.args(["--model", model]);
    }
    for (key, value) in &args.model.processor {
        command.arg("--processor").arg(format!("{key}={value}"));
    }
    if let Some(image) = &args.image {
        command.arg("--image").arg(image);
    }
    args.device.pass_on(&mut command);
    command.arg("--").arg(&args.prompt);
    Ok(command)
}

/// Has the system let go of the model's files; whether it does. What is inside the binary stays.
#[cfg(target_os = "linux")]
fn let_go(files: &ModelFiles) -> bool {
    use std::os::fd::AsRawFd;

    let ModelFiles::Dir(folder) = files else { return false };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    let gone = |path: &PathBuf| {
        std::fs::File::open(path).is_ok_and(|file| {
            // Pages that are not written yet cannot go.
            let _ = file.sync_all();
            // SAFETY: the descriptor is open, and the advice changes no contents.
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) == 0 }
        })
    };
    !paths.is_empty() && paths.iter().all(gone)
}

#[cfg(not(target_os = "linux"))]
fn let_go(_: &ModelFiles) -> bool {
    let _: Option<PathBuf> = None;
    false
}
