//! The one list of devices.

use std::sync::Arc;

use serde::Serialize;

use crate::cpu::CpuDevice;
use crate::op::Device;
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
}

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Number within the backend.
    pub index: usize,
    /// Threads of the CPU backend; `None` takes every core that the process may use.
    pub threads: Option<usize>,
}

/// Why a backend of this build has no device, if so.
fn missing(backend: Backend) -> Option<&'static str> {
    match backend {
        Backend::Cpu => None,
        Backend::Wgpu if cfg!(feature = "wgpu") => Some("not built yet"),
        Backend::Cuda if cfg!(feature = "cuda") => Some("not built yet"),
        Backend::Wgpu => Some("this binary was built without the `wgpu` feature"),
        Backend::Cuda => Some("this binary was built without the `cuda` feature"),
    }
}

/// Every device of every backend, usable or not.
#[must_use]
pub fn devices() -> Vec<DeviceInfo> {
    Backend::ALL
        .into_iter()
        .map(|backend| {
            let (name, unavailable) = match missing(backend) {
                Some(why) => (String::new(), Some(why.to_owned())),
                None => match CpuDevice::open(None) {
                    Ok(device) => (device.caps().device.clone(), None),
                    Err(error) => (String::new(), Some(error.to_string())),
                },
            };
            DeviceInfo { backend, index: 0, name, unavailable }
        })
        .collect()
}

/// Opens a device. Errors name the backend and why it cannot be had.
pub fn open(backend: Backend, options: &DeviceOptions) -> Result<Arc<dyn Device>, KernelError> {
    if let Some(why) = missing(backend) {
        return Err(KernelError::Device(format!("backend {backend}: {why}")));
    }
    if options.index != 0 {
        return Err(KernelError::Device(format!(
            "backend {backend}: no device {}; there is only 0",
            options.index
        )));
    }
    Ok(Arc::new(CpuDevice::open(options.threads)?))
}
