//! Ops, storage formats and backends.
//!
//! An [`Op`] is a plain struct of operands; its folder under `ops/` holds its shape check, cost, f64 reference and the
//! kernels of each backend as [`Variant`] rows. A [`Stream`] runs ops in order.

mod buffer;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "cuda/absent.rs"]
pub mod cuda;
mod device;
mod null;
mod op;
mod operands;
pub mod ops;
mod oracle;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod placing;
pub mod quant;
mod reference;
mod select;
pub mod spec;
#[cfg(feature = "wgpu")]
pub mod wgpu;
#[cfg(not(feature = "wgpu"))]
#[path = "wgpu/absent.rs"]
pub mod wgpu;
mod zeroed;

/// Digest of the sources of all kernels that this build has: figures of other kernels do not hold for them.
pub const DIGEST: &str = env!("OCELLI_KERNELS_DIGEST");

pub use buffer::{HOST_ALIGN, HostBuf, Storage, StreamId, View, WeightPart, Weights};
pub use cpu::{CpuLaunch, CpuOp, CpuRows};
#[cfg(feature = "cuda")]
pub use cuda::CudaLaunch;
pub use cuda::{CudaOp, CudaRows};
pub use device::{DeviceInfo, DeviceOptions, devices, missing, open};
pub use null::{NullLog, NullRecord, NullStream};
pub use op::{Access, Device, Exec, Fetch, Op, Queue, Recorded, Rehearsal};
pub use operands::Operands;
pub use ops::{BackendOp, OP_NAMES, OpVisitor, Stream, for_each_op};
pub use oracle::{Expected, Oracle};
pub use reference::{ReferenceDevice, ReferenceStream};
pub use select::{Picks, Reject, Row, Rows, Variant, explain, select};
pub use spec::{
    Arch, Backend, Caps, Code, Cost, CudaCaps, DType, Element, Format, Grouped, KMajor, KernelError, Layout,
    ShapeError, WgpuCaps, Zero,
};
#[cfg(feature = "wgpu")]
pub use wgpu::WgpuLaunch;
pub use wgpu::{WgpuOp, WgpuRows};
