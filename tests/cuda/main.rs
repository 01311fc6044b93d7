//! Every CUDA kernel of every op against its f64 reference: on a GPU where there is one, and on the host emulator.
//!
//! `OCELLI_CASE=text` runs the cases whose name contains the text; `OCELLI_CUDA_ARCH=sm_90a` runs one architecture alone.

mod compile;
mod emulator;
mod harness;
mod standin;

use std::sync::Arc;

use ocelli_kernels::conformance::{Kinds, Part, Plan, alone_as_among_others, run_cuda};
use ocelli_kernels::cuda::CudaDevice;
use ocelli_kernels::{Arch, Caps, CudaOp, Device, Picks, for_each_op};

/// Seed of the cases; each failure repeats it.
const SEED: u64 = 20;

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

/// Holds every row of an op against its reference, except what a device of capabilities `elsewhere` runs too.
fn conforms<O: CudaOp>(device: &CudaDevice, place: &str, part: Part, elsewhere: Option<&Caps>) {
    let only = std::env::var("OCELLI_CASE").ok();
    let plan = Plan { place, seed: SEED, part, only: only.as_deref(), elsewhere };
    // Not every op has rows that others do not run: `compile` asks that each row runs on some architecture.
    run_cuda::<O>(device, plan).settle(O::NAME, only.is_some() || elsewhere.is_some());
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
    use super::{Arch, CudaOp, Part, conforms, for_each_op};

    fn run<O: CudaOp>(part: &str, parts: &[&str]) {
        if let Some(device) = super::emulated(Arch::Sm80) {
            conforms::<O>(&device, "emulated sm_80", Part::named(part, parts), None);
        }
    }

    for_each_op!(part_tests = run);
}

/// Every row, on a GPU, in parts: `tests/gpu.py` gives each a process of its own.
mod gpu {
    use super::{CudaOp, Part, conforms, for_each_op};

    fn run<O: CudaOp>(part: &str, parts: &[&str]) {
        if let Some(device) = super::gpu() {
            conforms::<O>(&device, "the GPU", Part::named(part, parts), None);
        }
    }

    for_each_op!(part_tests = run);
}

/// Rows of Hopper's own instructions, on the host: those that older architectures do not run.
mod emulated_hopper {
    use super::{Arch, Caps, CudaOp, Part, conforms, for_each_op};

    fn run<O: CudaOp>(part: &str, parts: &[&str]) {
        if let Some(device) = super::emulated(Arch::Sm90a) {
            let older = Caps::of_arch(Arch::Sm80);
            conforms::<O>(&device, "emulated sm_90a", Part::named(part, parts), Some(&older));
        }
    }

    for_each_op!(part_tests = run);
}
