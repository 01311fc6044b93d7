//! Runs CUDA kernels on the host.

use ocelli_kernels::Arch;
use ocelli_kernels::cuda::PlanDriver;

/// A device that the host emulates.
pub struct EmulatedDriver;

impl EmulatedDriver {
    /// A typical device of an architecture.
    pub fn open(arch: Arch) -> Result<PlanDriver, String> {
        Err(format!("no emulator of {arch} yet"))
    }
}
