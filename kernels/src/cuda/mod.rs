//! CUDA kernels through the driver API of `cudarc`, compiled by NVRTC.
//!
//! - [`source`] lists `.cu` files and their headers; [`nvrtc`] finds and calls the compiler; [`cubin`] keeps what it makes;
//!   [`ahead`] has threads that compile what a dry run of a model asks for while its weights are on their way.
//! - [`Driver`] is what a device must do; `nvidia` is the real one, [`PlanDriver`] one that only notes which kernels are wanted.
//!   Tests have a third, which runs the kernels on the host.
//! - `launch` is what an op's kernels see; `stream` runs ops in order; `upload` brings weights to the device.

pub mod ahead;
mod buffer;
pub mod cubin;
mod device;
mod driver;
mod launch;
mod nvidia;
pub mod nvrtc;
mod op;
mod plan;
mod roof;
pub mod source;
mod spare;
mod stream;
mod upload;
mod weights;

/// Why there are no kernels and no devices: a build without this backend says so.
pub const ABSENT: Option<&str> = None;

pub use buffer::CudaBuf;
pub use device::{CudaDevice, list};
pub use driver::{Driver, KernelId, Launch, TensorDesc, TensorMap};
pub use launch::{CudaCx, Kernel, TensorTile, value_type};
pub use op::{CudaLaunch, CudaOp, CudaRows};
pub use plan::PlanDriver;
pub use roof::CudaArithmetic;
pub use source::KernelKey;
pub use stream::CudaStream;
pub use weights::{WeightParams, zero_kind};
