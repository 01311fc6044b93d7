//! Every CUDA kernel of every op against its f64 reference: on a GPU where there is one, and on the host emulator.
//!
//! `OCELLI_CASE=text` runs the cases whose name contains the text; `OCELLI_CUDA_ARCH=sm_90a` runs one architecture alone.

mod compile;
mod emulator;

use std::sync::Arc;

use ocelli_kernels::conformance::run_cuda;
use ocelli_kernels::cuda::CudaDevice;
use ocelli_kernels::{Arch, Caps, CudaOp, ops};

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

/// The GPU of this machine, or `None` with the reason printed and counted.
fn gpu() -> Option<CudaDevice> {
    match CudaDevice::open(0, Arc::default(), None) {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(!required("cuda"), "{error}");
            println!("skipped: {error}");
            None
        }
    }
}

/// Holds every row of an op against its reference, except what a device of capabilities `elsewhere` runs too.
fn conforms<O: CudaOp>(device: &CudaDevice, place: &str, elsewhere: Option<&Caps>) {
    let only = std::env::var("OCELLI_CASE").ok();
    let report = run_cuda::<O>(device, place, SEED, only.as_deref(), elsewhere);
    report.settle(O::NAME, only.is_some());
}

fn on_the_host<O: CudaOp>() {
    if let Some(device) = emulated(Arch::Sm80) {
        conforms::<O>(&device, "emulated sm_80", None);
    }
}

fn on_the_gpu<O: CudaOp>() {
    if let Some(device) = gpu() {
        conforms::<O>(&device, "the GPU", None);
    }
}

/// Rows of plain tensor cores, on the host.
mod emulated {
    use super::{on_the_host, ops};

    #[test]
    fn attention() {
        on_the_host::<ops::Attention>();
    }

    #[test]
    fn gather_rows() {
        on_the_host::<ops::GatherRows>();
    }

    #[test]
    fn matmul() {
        on_the_host::<ops::Matmul>();
    }

    #[test]
    fn merge_patches() {
        on_the_host::<ops::MergePatches>();
    }

    #[test]
    fn norm() {
        on_the_host::<ops::Norm>();
    }

    #[test]
    fn patch_embed() {
        on_the_host::<ops::PatchEmbed>();
    }

    #[test]
    fn pool() {
        on_the_host::<ops::Pool>();
    }

    #[test]
    fn rope() {
        on_the_host::<ops::Rope>();
    }

    #[test]
    fn sample() {
        on_the_host::<ops::Sample>();
    }

    #[test]
    fn scatter_rows() {
        on_the_host::<ops::ScatterRows>();
    }
}

/// Every row, on a GPU.
mod gpu {
    use super::{on_the_gpu, ops};

    #[test]
    fn attention() {
        on_the_gpu::<ops::Attention>();
    }

    #[test]
    fn gather_rows() {
        on_the_gpu::<ops::GatherRows>();
    }

    #[test]
    fn matmul() {
        on_the_gpu::<ops::Matmul>();
    }

    #[test]
    fn merge_patches() {
        on_the_gpu::<ops::MergePatches>();
    }

    #[test]
    fn norm() {
        on_the_gpu::<ops::Norm>();
    }

    #[test]
    fn patch_embed() {
        on_the_gpu::<ops::PatchEmbed>();
    }

    #[test]
    fn pool() {
        on_the_gpu::<ops::Pool>();
    }

    #[test]
    fn rope() {
        on_the_gpu::<ops::Rope>();
    }

    #[test]
    fn sample() {
        on_the_gpu::<ops::Sample>();
    }

    #[test]
    fn scatter_rows() {
        on_the_gpu::<ops::ScatterRows>();
    }
}

/// Rows of Hopper's own instructions, on the host: those that older architectures do not run.
mod emulated_hopper {
    use super::{Arch, Caps, conforms, emulated, ops};

    #[test]
    fn attention() {
        let Some(device) = emulated(Arch::Sm90a) else { return };
        conforms::<ops::Attention>(&device, "emulated sm_90a", Some(&Caps::of_arch(Arch::Sm80)));
    }

    #[test]
    fn matmul() {
        let Some(device) = emulated(Arch::Sm90a) else { return };
        conforms::<ops::Matmul>(&device, "emulated sm_90a", Some(&Caps::of_arch(Arch::Sm80)));
    }
}
