//! Every CUDA kernel of every op against its f64 reference: on a GPU where there is one, and on the host emulator.
//!
//! The emulator runs a share of the cases of ops that are as they were, see [`known`].
//! `OCELLI_CASE=text` runs the cases whose name contains the text; `OCELLI_CASE='OP text|OP text'` the cases of these ops alone, each by
//! its text. `OCELLI_CUDA_ARCH=sm_90a` runs one architecture alone.

mod ahead;
mod canaries;
mod compile;
mod compiled;
mod emulator;
mod gpu_run;
mod harness;
#[path = "standin/host.rs"]
mod host;
#[path = "../known.rs"]
mod known;
mod standin;

use std::sync::Arc;

use ocelli_kernels::conformance::{Kinds, Part, Plan, alone_as_among_others, run_cuda};
use ocelli_kernels::cuda::CudaDevice;
use ocelli_kernels::{Arch, Caps, CudaOp, Device, Picks, for_each_op};

/// Seed of the cases; each failure repeats it.
const SEED: u64 = 20;
const BACKEND: known::Backend = known::Backend("cuda");

#[test]
fn sources_are_written_down() {
    BACKEND.write();
}

/// Whether an environment switch asks that nothing of this is skipped.
fn required(what: &str) -> bool {
    let required = std::env::var("OCELLI_REQUIRE").unwrap_or_default();
    required.split(',').any(|one| one == what || one == "all")
}

/// The emulated device of an architecture, or `None` with the reason printed and counted.
fn emulated(arch: Arch) -> Option<CudaDevice> {
    if std::env::var("OCELLI_CUDA_ARCH").is_ok_and(|only| only != arch.name()) {
        return None;
    }
    match emulator::EmulatedDriver::open(arch) {
        Ok(driver) => Some(CudaDevice::on(Arc::new(driver), Arc::default())),
        Err(why) => {
            assert!(!required("emulator"), "{why}");
            println!("skipped: emulated {arch}: {why}");
            None
        }
    }
}

/// The GPU of this machine, or `None` with the reason printed and counted. Kernels that one process compiled are there for the others.
fn gpu() -> Option<CudaDevice> {
    let cache = std::env::var_os("OCELLI_CACHE").map(std::path::PathBuf::from);
    match CudaDevice::open(0, Arc::default(), cache.as_deref()) {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(!required("cuda"), "{error}");
            println!("skipped: {error}");
            None
        }
    }
}

/// The text of the cases of an op that are `asked` for. The error is that the op is none of those that are.
fn chosen(op: &str, asked: Option<&str>) -> Result<Option<String>, String> {
    match asked {
        Some(asked) if asked.contains('|') => {
            let mut texts = asked.split('|').filter_map(|one| one.strip_prefix(op)?.strip_prefix(' '));
            texts.next().map(|text| Some(text.to_owned())).ok_or_else(|| format!("{op} is not asked for"))
        }
        text => Ok(text.map(str::to_owned)),
    }
}

/// The same of `OCELLI_CASE`.
fn cases_of(op: &str) -> Result<Option<String>, String> {
    chosen(op, std::env::var("OCELLI_CASE").ok().as_deref())
}

#[test]
fn cases_are_chosen_by_text_or_by_op() {
    assert_eq!(chosen("norm", None), Ok(None));
    assert_eq!(chosen("norm", Some("5x64")), Ok(Some("5x64".into())));
    let some = Some("matmul aligned 64|norm Rms 5x64|expert_matmul few");
    assert_eq!(chosen("norm", some), Ok(Some("Rms 5x64".into())));
    assert_eq!(chosen("matmul", some), Ok(Some("aligned 64".into())));
    assert!(chosen("rope", some).is_err() && chosen("mat", some).is_err());
}

/// Holds every row of an op against its reference, except what a device of capabilities `elsewhere` runs too.
fn conforms<O: CudaOp>(device: &CudaDevice, place: &str, part: Part, every: usize, elsewhere: Option<&Caps>) {
    let only = match cases_of(O::NAME) {
        Ok(only) => only,
        Err(why) => return println!("{why}"),
    };
    let plan = Plan { place, seed: SEED, part: part.share(every), only: only.as_deref(), elsewhere };
    // Not every op has rows that others do not run: `compile` asks that each row runs on some architecture.
    run_cuda::<O>(device, plan).settle(O::NAME, only.is_some() || every > 1 || elsewhere.is_some());
}

/// Batch-invariant choices, on the host.
#[test]
fn a_row_is_the_same_alone_and_among_others() {
    for arch in [Arch::Sm80, Arch::Sm90a] {
        let Some(mut device) = emulated(arch) else { return };
        let mut picks = Picks::default();
        picks.set_batch_invariant(true);
        device.prefer(picks);
        let ran = alone_as_among_others(&device, Kinds::Few, SEED);
        assert!(ran.unwrap_or_else(|error| panic!("{arch}: {error}")) >= 4);
    }
}

/// Rows of plain tensor cores, on the host.
mod emulated {
    use super::{Arch, BACKEND, CudaOp, Part, conforms, for_each_op};

    fn run<O: CudaOp>(part: &str, parts: &[&str]) {
        if let Some(device) = super::emulated(Arch::Sm80) {
            conforms::<O>(&device, "emulated sm_80", Part::named(part, parts), BACKEND.every(O::NAME), None);
        }
    }

    for_each_op!(part_tests = run);
}

/// Every row, on a GPU, in parts: `tests/gpu.py` gives each a process of its own.
mod gpu {
    use super::{CudaOp, Part, conforms, for_each_op};

    fn run<O: CudaOp>(part: &str, parts: &[&str]) {
        if let Some(device) = super::gpu() {
            conforms::<O>(&device, "the GPU", Part::named(part, parts), 1, None);
        }
    }

    for_each_op!(part_tests = run);
}

/// A GPU takes every kernel of the cases; none is launched, so what its driver refuses is known before anything can go wrong.
#[test]
fn every_kernel_loads_on_a_gpu() {
    let Some(device) = gpu() else { return };
    let mut failed = Vec::new();
    for (row, keys) in compile::asked(device.caps().cuda.arch) {
        let loaded = keys.iter().try_for_each(|key| device.driver().kernel(key).map(drop));
        let word = loaded.as_ref().map_or_else(|why| format!("FAILED: {why}"), |()| "ok".to_owned());
        println!("case: {} kernels of {row}: {}", keys.len(), word.replace('\n', " "));
        failed.extend(loaded.err().map(|why| format!("{row}: {why}")));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Rows of Hopper's own instructions, on the host: those that older architectures do not run.
mod emulated_hopper {
    use super::{Arch, BACKEND, Caps, CudaOp, Part, conforms, for_each_op};

    fn run<O: CudaOp>(part: &str, parts: &[&str]) {
        if let Some(device) = super::emulated(Arch::Sm90a) {
            let older = Caps::of_arch(Arch::Sm80);
            let every = BACKEND.every(O::NAME);
            conforms::<O>(&device, "emulated sm_90a", Part::named(part, parts), every, Some(&older));
        }
    }

    for_each_op!(part_tests = run);
}
