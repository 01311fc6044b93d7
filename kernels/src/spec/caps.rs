//! What a device can do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Arch;
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
    /// Tiles of matrices that multiply bf16 (AMX).
    pub amx: bool,
    /// Threads of a CPU, multiprocessors of a GPU; 0 if unknown.
    pub units: usize,
    /// What a device of the wgpu backend can do.
    pub wgpu: WgpuCaps,
    /// What a device of the CUDA backend can do.
    pub cuda: CudaCaps,
    /// Whether results of a row or sequence must not depend on what else is in its batch: then kernels cut their work as for
    /// [`MANY`] rows, however many there are.
    pub batch_invariant: bool,
}

/// Rows of the batches that [batch-invariant](Caps::batch_invariant) choices are made for.
pub const MANY: u32 = 1024;

impl Caps {
    /// The rows that work is cut for, where there are `rows`.
    #[must_use]
    pub fn rows(&self, rows: usize) -> usize {
        if self.batch_invariant { MANY as usize } else { rows }
    }

    /// A typical GPU of an architecture, for choices and estimates without one.
    #[must_use]
    pub fn of_arch(arch: Arch) -> Self {
        let (device, units, cuda) = CudaCaps::typical(arch);
        Self {
            backend: Backend::Cuda,
            device: device.to_owned(),
            api: "CUDA".into(),
            units,
            cuda,
            ..Self::default()
        }
    }
}

/// What kernels depend on in a device of the CUDA backend. The default is that of the oldest architecture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CudaCaps {
    /// What kernels are compiled for.
    pub arch: Arch,
    /// Bytes of shared memory that a block may have.
    pub shared_memory: u32,
    /// Bytes of the second-level cache.
    pub l2: u64,
    /// Bandwidth of memory in GB/s, by the data sheet.
    pub read_gbps: f32,
    /// Rate of dense bf16 matrix products with f32 sums in TFLOP/s, by the data sheet.
    pub tensor_tflops: f32,
    /// Rate of f32 multiply-adds in TFLOP/s, by the data sheet.
    pub f32_tflops: f32,
}

impl CudaCaps {
    /// A typical device of an architecture: its name, its multiprocessors and the rest.
    fn typical(arch: Arch) -> (&'static str, usize, Self) {
        let caps = |kib: u32, l2: u64, read_gbps, tensor_tflops, f32_tflops| Self {
            arch,
            shared_memory: kib << 10,
            l2: l2 << 20,
            read_gbps,
            tensor_tflops,
            f32_tflops,
        };
        match arch {
            Arch::Sm80 => ("NVIDIA A100", 108, caps(163, 40, 2039.0, 312.0, 19.5)),
            Arch::Sm86 => ("NVIDIA GeForce RTX 3090", 82, caps(99, 6, 936.0, 71.0, 35.6)),
            Arch::Sm89 => ("NVIDIA GeForce RTX 4090", 128, caps(99, 72, 1008.0, 165.0, 82.6)),
            Arch::Sm90a => ("NVIDIA H100", 132, caps(227, 50, 3350.0, 989.0, 66.9)),
            Arch::Sm120 => ("NVIDIA GeForce RTX 5090", 170, caps(99, 96, 1792.0, 209.0, 104.8)),
        }
    }

    /// What a device of an architecture with this many multiprocessors at `ghz` can do, beside memory: rates of the typical
    /// device, scaled. Its own clock where `ghz` is 0, unknown.
    #[must_use]
    pub fn scaled(arch: Arch, units: usize, ghz: f32) -> Self {
        let (_, typical, caps) = Self::typical(arch);
        let boost = match arch {
            Arch::Sm80 => 1.41,
            Arch::Sm86 => 1.70,
            Arch::Sm89 => 2.52,
            Arch::Sm90a => 1.83,
            Arch::Sm120 => 2.41,
        };
        let clock = if ghz > 0.0 { ghz / boost } else { 1.0 };
        let factor = units as f32 / typical as f32 * clock;
        Self { tensor_tflops: caps.tensor_tflops * factor, f32_tflops: caps.f32_tflops * factor, ..caps }
    }

    /// Estimated microseconds of a launch that moves `bytes` and does `flops` at a rate in TFLOP/s.
    #[must_use]
    pub fn estimate_us(&self, bytes: f64, flops: f64, tflops: f32) -> f32 {
        let memory = bytes / (f64::from(self.read_gbps) * 1e3);
        let arithmetic = flops / (f64::from(tflops) * 1e6);
        memory.max(arithmetic) as f32 + 2.0
    }
}

impl Default for CudaCaps {
    fn default() -> Self {
        Self::typical(Arch::Sm80).2
    }
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
