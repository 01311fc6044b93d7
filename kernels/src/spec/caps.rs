//! What a device can do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cpu::isa::Level;

/// A family of devices that has its own kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Rust SIMD on the host.
    #[default]
    Cpu,
    /// WGSL through `wgpu`.
    Wgpu,
    /// CUDA through `cudarc`.
    Cuda,
}

impl Backend {
    /// Every backend.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Wgpu, Self::Cuda];

    /// Spelling on the command line and in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|backend| backend.name() == text)
            .ok_or_else(|| format!("unknown backend `{text}`; expected cpu, wgpu or cuda"))
    }
}

/// Capabilities of a device, as `reject` and `est_us` of a variant see them.
#[derive(Clone, Debug)]
pub struct Caps {
    /// The backend.
    pub backend: Backend,
    /// The device as its vendor names it.
    pub device: String,
    /// Instruction set that CPU kernels may use; `Scalar` for other backends.
    pub isa: Level,
    /// Dot products of packed bytes in one instruction (VNNI and its like).
    pub int8_dot: bool,
    /// Dot products of bf16 pairs in one instruction.
    pub bf16_dot: bool,
    /// Threads of a CPU, multiprocessors of a GPU.
    pub units: usize,
}
