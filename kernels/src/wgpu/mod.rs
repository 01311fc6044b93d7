//! WGSL kernels through `wgpu`: Vulkan, Metal and DX12.
//!
//! - [`source`] expands `.wgsl` files; `gpu` compiles each expansion once; `launch` is what an op's kernels see.
//! - `roof` holds loops that measure what a device can do at most; `clock` measures how long it works.
//! - `stream` encodes ops into one command buffer and submits it when a result is wanted or enough work has gathered.

mod adapter;
mod buffer;
mod clock;
mod device;
mod disk;
mod gpu;
mod launch;
mod op;
mod roof;
pub mod source;
mod stream;
mod upload;
mod weights;

/// Why there are no kernels and no devices: a build without this backend says so.
pub const ABSENT: Option<&str> = None;

pub use adapter::{AdapterDetails, Profile};
pub use buffer::WgpuBuf;
pub use device::{WgpuDevice, list, no_adapter};
pub use gpu::PARAM_BYTES;
pub use launch::{Kernel, WgpuCx};
pub use op::{WgpuLaunch, WgpuOp, WgpuRows};
pub use roof::Arithmetic;
pub use stream::WgpuStream;
pub use weights::WeightParams;
