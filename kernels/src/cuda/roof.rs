//! Loops that measure what a device can do at most.

use bytemuck::{Pod, Zeroable};

use super::launch::CudaCx;
use super::stream::CudaStream;
use crate::buffer::View;
use crate::spec::{Arch, KernelError};

/// What a loop does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CudaArithmetic {
    /// Multiply-adds of f32.
    Fma,
    /// Products of bf16 matrices with f32 sums, by the best instruction of the architecture.
    Matrix,
}

/// Blocks of a loop on each multiprocessor.
const BLOCKS: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Spin {
    out: u64,
    turns: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Read {
    data: u64,
    out: u64,
    quads: u64,
}

impl CudaStream {
    /// Elements of f32 that [`spin`](Self::spin) writes.
    #[must_use]
    pub fn spin_len(&self) -> usize {
        BLOCKS * self.driver().caps().units.max(1) * 256
    }

    /// Starts `turns` turns of a loop on every multiprocessor; gives its operations, an addition and a multiplication counted
    /// apart.
    pub fn spin(&mut self, kind: CudaArithmetic, turns: u32, out: &View) -> Result<f64, KernelError> {
        let caps = self.driver().caps().clone();
        let hopper = caps.cuda.arch == Arch::Sm90a;
        let blocks = BLOCKS * caps.units.max(1);
        let (path, shared, per_block) = match kind {
            CudaArithmetic::Fma => ("cuda/roof/fma.cu", 0, 256.0 * 16.0 * 2.0),
            CudaArithmetic::Matrix if hopper => {
                ("cuda/roof/wgmma.cu", 2 * 64 * 128 + 256 * 128, 2.0 * 4.0 * 64.0 * 256.0 * 16.0 * 2.0)
            }
            CudaArithmetic::Matrix => ("cuda/roof/mma.cu", 0, 8.0 * 8.0 * 16.0 * 8.0 * 16.0 * 2.0),
        };
        let mut cx = CudaCx { stream: self };
        let mut kernel = cx.kernel(path);
        kernel.shared(shared);
        let params = Spin { out: kernel.address(out)?, turns, pad: 0 };
        kernel.launch([blocks as u32, 1, 1], 256, &params)?;
        Ok(per_block * blocks as f64 * f64::from(turns))
    }

    /// Reads all of `data`, whose bytes are a multiple of 16; `out` is u32 of [`spin_len`](Self::spin_len).
    pub fn read_all(&mut self, data: &View, out: &View) -> Result<(), KernelError> {
        let blocks = BLOCKS * self.driver().caps().units.max(1) / 2;
        let mut cx = CudaCx { stream: self };
        let kernel = cx.kernel("cuda/roof/read.cu");
        let params =
            Read { data: kernel.address(data)?, out: kernel.address(out)?, quads: data.bytes() / 16 };
        kernel.launch([blocks as u32, 1, 1], 512, &params)
    }
}
