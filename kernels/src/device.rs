//! The one list of devices.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use crate::cpu::CpuDevice;
use crate::op::Device;
use crate::select::Picks;
use crate::spec::{Backend, KernelError};

/// A device as `ocelli devices` and errors show it.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceInfo {
    /// Its backend.
    pub backend: Backend,
    /// Its number within the backend.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Why it cannot be used, if so.
    pub unavailable: Option<String>,
    /// Limits and features of a GPU.
    #[cfg(feature = "wgpu")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wgpu: Option<crate::wgpu::AdapterDetails>,
}

impl DeviceInfo {
    fn new(backend: Backend, index: usize, name: String, unavailable: Option<String>) -> Self {
        Self {
            backend,
            index,
            name,
            unavailable,
            #[cfg(feature = "wgpu")]
            wgpu: None,
        }
    }
}

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Number within the backend.
    pub index: usize,
    /// Threads of the CPU backend; `None` takes every core that the process may use.
    pub threads: Option<usize>,
    /// Choices of variants that come before estimates.
    pub picks: Picks,
    /// A directory for what drivers make of kernels; `None` keeps nothing.
    pub cache: Option<PathBuf>,
}

/// Why a backend has no devices and no kernels in this build, if so.
#[must_use]
pub fn missing(backend: Backend) -> Option<&'static str> {
    match backend {
        Backend::Cpu => None,
        Backend::Wgpu => crate::wgpu::ABSENT,
        Backend::Cuda => crate::cuda::ABSENT,
    }
}

/// Every device of every backend, usable or not.
#[must_use]
pub fn devices() -> Vec<DeviceInfo> {
    let mut all = Vec::new();
    for backend in Backend::ALL {
        match (backend, missing(backend)) {
            (_, Some(why)) => all.push(DeviceInfo::new(backend, 0, String::new(), Some(why.to_owned()))),
            (Backend::Cpu, None) => match CpuDevice::open(None, Arc::default()) {
                Ok(device) => all.push(DeviceInfo::new(backend, 0, device.caps().device.clone(), None)),
                Err(error) => all.push(DeviceInfo::new(backend, 0, String::new(), Some(error.to_string()))),
            },
            (Backend::Wgpu, None) => wgpu_devices(&mut all),
            (Backend::Cuda, None) => cuda_devices(&mut all),
        }
    }
    all
}

#[cfg(feature = "wgpu")]
fn wgpu_devices(all: &mut Vec<DeviceInfo>) {
    let adapters = crate::wgpu::list();
    if adapters.is_empty() {
        let why = crate::wgpu::no_adapter().to_owned();
        all.push(DeviceInfo::new(Backend::Wgpu, 0, String::new(), Some(why)));
    }
    for (index, (name, details, refused)) in adapters.into_iter().enumerate() {
        let info = DeviceInfo::new(Backend::Wgpu, index, name, refused);
        all.push(DeviceInfo { wgpu: Some(details), ..info });
    }
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_devices(_: &mut Vec<DeviceInfo>) {}

#[cfg(feature = "cuda")]
fn cuda_devices(all: &mut Vec<DeviceInfo>) {
    match crate::cuda::list() {
        Err(why) => all.push(DeviceInfo::new(Backend::Cuda, 0, String::new(), Some(why))),
        Ok(found) => all.extend(
            found
                .into_iter()
                .enumerate()
                .map(|(index, (name, refused))| DeviceInfo::new(Backend::Cuda, index, name, refused)),
        ),
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda_devices(_: &mut Vec<DeviceInfo>) {}

/// Opens a device. Errors name the backend and why it cannot be had.
pub fn open(backend: Backend, options: &DeviceOptions) -> Result<Arc<dyn Device>, KernelError> {
    if let Some(why) = missing(backend) {
        return Err(KernelError::Device(format!("backend {backend}: {why}")));
    }
    let picks = Arc::new(options.picks.clone());
    #[cfg(feature = "wgpu")]
    if backend == Backend::Wgpu {
        let profile = crate::wgpu::Profile::from_env()?;
        return Ok(Arc::new(crate::wgpu::WgpuDevice::open_cached(
            options.index,
            profile,
            picks,
            options.cache.as_deref(),
        )?));
    }
    #[cfg(feature = "cuda")]
    if backend == Backend::Cuda {
        let cache = options.cache.as_deref();
        return Ok(Arc::new(crate::cuda::CudaDevice::open(options.index, picks, cache)?));
    }
    if options.index != 0 {
        return Err(KernelError::Device(format!(
            "backend {backend}: no device {}; there is only 0",
            options.index
        )));
    }
    Ok(Arc::new(CpuDevice::open(options.threads, picks)?))
}
