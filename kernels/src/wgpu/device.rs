//! Adapters as devices.

use std::path::Path;
use std::sync::Arc;

use super::adapter::{self, AdapterDetails, Profile};
use super::gpu::Gpu;
use super::stream::WgpuStream;
use crate::op::Device;
use crate::ops::Stream;
use crate::select::Picks;
use crate::spec::{Caps, KernelError};

/// Why there is no adapter at all.
const NONE: &str = "no adapter: no Vulkan, Metal or DX12 driver was found";

/// Each adapter with its name, its details and why it is refused.
#[must_use]
pub fn list() -> Vec<(String, AdapterDetails, Option<String>)> {
    let instance = adapter::instance();
    let describe = |a: &wgpu::Adapter| (a.get_info().name, adapter::details(a), adapter::refusal(a));
    adapter::adapters(&instance).iter().map(describe).collect()
}

/// Why a machine without adapters has none.
#[must_use]
pub const fn no_adapter() -> &'static str {
    NONE
}

/// An open adapter.
pub struct WgpuDevice {
    gpu: Arc<Gpu>,
    picks: Arc<Picks>,
}

impl WgpuDevice {
    /// Opens adapter `index` of [`list`]. Errors say which adapters there are.
    pub fn open(index: usize, profile: Profile, picks: Arc<Picks>) -> Result<Self, KernelError> {
        Self::open_cached(index, profile, picks, None)
    }

    /// As [`open`](Self::open), with a directory for what the driver makes of kernels.
    pub fn open_cached(
        index: usize,
        profile: Profile,
        picks: Arc<Picks>,
        cache: Option<&Path>,
    ) -> Result<Self, KernelError> {
        let instance = adapter::instance();
        let all = adapter::adapters(&instance);
        if all.is_empty() {
            return Err(KernelError::Device(format!("backend wgpu: {NONE}")));
        }
        let chosen = all.get(index).ok_or_else(|| {
            let names: Vec<String> =
                all.iter().enumerate().map(|(i, a)| format!("{i} ({})", a.get_info().name)).collect();
            KernelError::Device(format!("backend wgpu: no device {index}; there is {}", names.join(", ")))
        })?;
        Ok(Self { gpu: Gpu::open(chosen, profile, cache)?, picks })
    }

    /// Sets how long the device may take for one submission before an error says so.
    pub fn set_timeout(&self, timeout: std::time::Duration) {
        self.gpu.set_timeout(timeout);
    }

    /// Ends the device as if it had been removed.
    #[cfg(feature = "conformance")]
    pub fn lose(&self) {
        self.gpu.device.destroy();
    }

    /// A stream, for callers that launch chosen variants.
    pub fn queue(&self) -> Result<WgpuStream, KernelError> {
        WgpuStream::new(self.gpu.clone(), self.picks.clone())
    }
}

impl Device for WgpuDevice {
    fn caps(&self) -> &Caps {
        &self.gpu.caps
    }

    fn stream(&self) -> Result<Box<dyn Stream>, KernelError> {
        Ok(Box::new(self.queue()?))
    }

    fn prefer(&mut self, picks: Picks) {
        self.picks = Arc::new(picks);
    }
}
