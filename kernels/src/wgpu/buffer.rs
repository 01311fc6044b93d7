//! Memory of a device.

use std::sync::Arc;

use super::gpu::Gpu;
use crate::spec::KernelError;

/// A buffer on a device.
pub struct WgpuBuf {
    pub(super) buffer: wgpu::Buffer,
    pub(super) gpu: Arc<Gpu>,
    pub(super) id: u64,
    len: usize,
}

impl WgpuBuf {
    /// A zeroed buffer.
    pub(super) fn new(gpu: &Arc<Gpu>, len: usize) -> Result<Self, KernelError> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let buffer = gpu.buffer(len as u64, usage)?;
        Ok(Self { buffer, gpu: gpu.clone(), id: gpu.fresh(), len })
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for WgpuBuf {
    fn drop(&mut self) {
        self.gpu.give_back(self.buffer.size());
    }
}
