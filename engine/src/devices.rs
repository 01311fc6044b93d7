//! Which device is taken, and how it computes unless told otherwise.

use std::sync::Arc;

use ocelli_kernels::{Backend, Caps, DType, Device, DeviceOptions, Picks};

use crate::choices::{Loaded, Table, cache_dir};
use crate::error::Result;

/// `picks` with what `ocelli kernels tune` measured on a device.
#[must_use]
pub fn tuned(caps: &Caps, mut picks: Picks) -> Picks {
    let Some(cache) = cache_dir() else { return picks };
    let path = Table::path(&cache, caps);
    let place = path.display();
    match Table::load(&path, caps) {
        Loaded::Absent => {}
        Loaded::Stale(why) => {
            tracing::info!("{place}: not of this device and these kernels, so it is not used: {why}");
        }
        Loaded::Corrupt(why) => {
            tracing::warn!("{place}: not used: {why}; `ocelli kernels tune` makes it anew");
        }
        Loaded::Fits(table) => {
            let count = table.apply(&mut picks);
            tracing::info!("{place}: {count} measured choices of kernels");
        }
    }
    picks
}

/// The first backend that has a device of its own: CUDA, wgpu, CPU. A GPU that the CPU emulates is left to those who ask for
/// it.
///
/// # Errors
/// If the CPU cannot be used.
pub fn auto(options: &DeviceOptions) -> Result<Arc<dyn Device>> {
    for backend in [Backend::Cuda, Backend::Wgpu] {
        match ocelli_kernels::open(backend, options) {
            Ok(device) if device.caps().wgpu.software => {
                tracing::info!("backend {backend}: {} is software", device.caps().device);
            }
            Ok(device) => return Ok(device),
            Err(error) => tracing::info!("{error}"),
        }
    }
    Ok(ocelli_kernels::open(Backend::Cpu, options)?)
}

/// Type of activations unless another one is asked for: bf16 with CUDA, f16 on other GPUs that compute with it, f32 elsewhere.
#[must_use]
pub fn usual_dtype(caps: &Caps) -> DType {
    match caps.backend {
        Backend::Cuda => DType::BF16,
        Backend::Wgpu if caps.wgpu.f16 && !caps.wgpu.software => DType::F16,
        _ => DType::F32,
    }
}

/// Type of keys and values unless another one is asked for, `None` for that of activations: f16 on the CPU with rounded products.
#[must_use]
pub fn usual_kv(caps: &Caps, fast_int8: bool) -> Option<DType> {
    (fast_int8 && caps.backend == Backend::Cpu).then_some(DType::F16)
}
