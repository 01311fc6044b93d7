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
#[derive(Clone, Debug, Default)]
pub struct Caps {
    /// The backend.
    pub backend: Backend,
    /// The device as its vendor names it.
    pub device: String,
    /// The API that drives a GPU: Vulkan, Metal, Dx12; empty for a CPU.
    pub api: String,
    /// The driver of a GPU and its version; empty for a CPU.
    pub driver: String,
    /// Instruction set that CPU kernels may use; `Scalar` for other backends.
    pub isa: Level,
    /// Dot products of packed bytes in one instruction (VNNI and its like).
    pub int8_dot: bool,
    /// Dot products of bf16 pairs in one instruction.
    pub bf16_dot: bool,
    /// Threads of a CPU, multiprocessors of a GPU; 0 if unknown.
    pub units: usize,
    /// What a device of the wgpu backend can do.
    pub wgpu: WgpuCaps,
}

/// Limits and features of a wgpu device that kernels depend on. The default is what every WebGPU device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WgpuCaps {
    /// Whether `enable f16` is allowed.
    pub f16: bool,
    /// Smallest and largest width of a subgroup; 0 without subgroup operations.
    pub subgroup: (u32, u32),
    /// Side of cooperative matrices of f16 with f32 sums; 0 without.
    pub matrix: u32,
    /// Storage buffers of a kernel.
    pub storage_buffers: u32,
    /// Bytes that the invocations of a workgroup share.
    pub workgroup_memory: u32,
    /// Invocations of a workgroup.
    pub invocations: u32,
    /// Bytes of a binding.
    pub max_binding: u64,
    /// Whether the host's CPU does the work.
    pub software: bool,
}

impl Default for WgpuCaps {
    fn default() -> Self {
        Self {
            f16: false,
            subgroup: (0, 0),
            matrix: 0,
            storage_buffers: 8,
            workgroup_memory: 16 << 10,
            invocations: 256,
            max_binding: 128 << 20,
            software: false,
        }
    }
}
