//! Every CUDA kernel of every op against its f64 reference: on a GPU where there is one, and on the host emulator.
//!
//! `OCELLI_CASE=text` runs the cases whose name contains the text; `OCELLI_CUDA_ARCH=sm_90a` runs one architecture alone.

mod compile;
#[path = "../emulator/mod.rs"]
mod emulator;

use std::sync::Arc;

use ocelli_kernels::conformance::run_cuda;
use ocelli_kernels::cuda::CudaDevice;
use ocelli_kernels::{Arch, CudaOp, ops};

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

fn conforms<O: CudaOp>(arch: Arch) {
    let Some(device) = emulated(arch) else { return };
    let only = std::env::var("OCELLI_CASE").ok();
    let report = run_cuda::<O>(&device, &format!("emulated {arch}"), SEED, only.as_deref());
    for (what, cases) in &report.ran {
        println!("{} {what}: {cases} cases", O::NAME);
    }
    for (what, cases) in &report.skipped {
        let (kernel, why) = what.split_once(": ").unwrap_or((what, ""));
        if report.ran.contains_key(kernel) {
            println!("{} {what}: {cases} cases left out", O::NAME);
        } else {
            println!("not run: {} {kernel}: {why}", O::NAME);
        }
    }
    let failed = report.failed.len();
    let few: Vec<&str> = report.failed.iter().take(20).map(String::as_str).collect();
    assert!(failed == 0, "{failed} failed, {} passed:\n{}", report.passed, few.join("\n"));
    assert!(report.passed > 0, "{}: nothing ran", O::NAME);
}

macro_rules! emulated_ops {
    ($($module:ident: $arch:ident),+ $(,)?) => {
        $(
            mod $module {
                use super::{Arch, conforms, ops};

                #[test]
                fn attention() {
                    conforms::<ops::Attention>(Arch::$arch);
                }

                #[test]
                fn gather_rows() {
                    conforms::<ops::GatherRows>(Arch::$arch);
                }

                #[test]
                fn matmul() {
                    conforms::<ops::Matmul>(Arch::$arch);
                }

                #[test]
                fn merge_patches() {
                    conforms::<ops::MergePatches>(Arch::$arch);
                }

                #[test]
                fn norm() {
                    conforms::<ops::Norm>(Arch::$arch);
                }

                #[test]
                fn patch_embed() {
                    conforms::<ops::PatchEmbed>(Arch::$arch);
                }

                #[test]
                fn pool() {
                    conforms::<ops::Pool>(Arch::$arch);
                }

                #[test]
                fn rope() {
                    conforms::<ops::Rope>(Arch::$arch);
                }

                #[test]
                fn sample() {
                    conforms::<ops::Sample>(Arch::$arch);
                }

                #[test]
                fn scatter_rows() {
                    conforms::<ops::ScatterRows>(Arch::$arch);
                }
            }
        )+
    };
}

// Rows of plain tensor cores, and those of Hopper.
emulated_ops!(sm80: Sm80, sm90a: Sm90a);
