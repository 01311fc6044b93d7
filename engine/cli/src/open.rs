//! From arguments to devices and models.

use std::sync::Arc;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::hub::{HubConfig, ModelRef};
use ocelli_engine::{Ctx, Pipeline, Precision, Vlm};
use ocelli_kernels::{Backend, Device, DeviceOptions};

use crate::args::{DeviceArgs, ModelArgs};
use crate::fail::Failure;
use crate::progress::Download;

/// Opens the device that the arguments ask for, and says how precisely it computes.
pub fn device(args: &DeviceArgs) -> Result<(Arc<dyn Device>, Precision), Failure> {
    let options = DeviceOptions { index: args.device, threads: args.threads.map(usize::from) };
    let opened = match args.backend.backend() {
        Some(backend) => ocelli_kernels::open(backend, &options)
            .map_err(|error| Failure::from(error).hint("`ocelli devices` lists what this machine has"))?,
        None => auto(&options)?,
    };
    let precision = Precision { dtype: args.dtype.on(opened.caps().backend), fast_int8: args.fast_int8 };
    Ok((opened, precision))
}

/// The first backend that has a device: CUDA, wgpu, CPU.
fn auto(options: &DeviceOptions) -> Result<Arc<dyn Device>, Failure> {
    for backend in [Backend::Cuda, Backend::Wgpu] {
        match ocelli_kernels::open(backend, options) {
            Ok(device) => return Ok(device),
            Err(error) => tracing::info!("{error}"),
        }
    }
    Ok(ocelli_kernels::open(Backend::Cpu, options)?)
}

/// The files of a model, downloaded if need be.
pub fn files(model: Option<&str>) -> Result<ModelFiles, Failure> {
    let reference = ModelRef::parse(model)?;
    let dir = match reference {
        ModelRef::Demo => None,
        _ => reference.resolve(&HubConfig::from_env()?, &mut Download::default())?,
    };
    Ok(dir.map_or(ocelli_models::demo::FILES, ModelFiles::Dir))
}

/// A model with its tokenizer, and a context to run it in.
pub fn pipeline(
    args: &ModelArgs,
    device: &dyn Device,
    precision: Precision,
) -> Result<(Pipeline, Ctx), Failure> {
    let files = files(args.model.as_deref())?;
    let mut cx = Ctx::new(device, precision)?;
    let mut model = ocelli_models::load(&files, &mut cx)?;
    set_processor(&mut *model, &args.processor)?;
    let caps = device.caps();
    let threads = match caps.backend {
        Backend::Cpu => caps.units,
        _ => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    };
    Ok((Pipeline::new(&files, model, threads)?, cx))
}

/// Overrides fields of the image processor.
pub fn set_processor(model: &mut dyn Vlm, fields: &[(String, String)]) -> Result<(), Failure> {
    for (key, value) in fields {
        model.set_processor(key, value).map_err(|error| Failure::usage(error.to_string()))?;
    }
    Ok(())
}
