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
mod device;
mod null;
mod op;
pub mod ops;
mod oracle;
pub mod quant;
mod reference;
mod select;
pub mod spec;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod stacked;
#[cfg(feature = "wgpu")]
pub mod wgpu;

/// Digest of the sources of all kernels that this build has: figures of other kernels do not hold for them.
pub const DIGEST: &str = env!("OCELLI_KERNELS_DIGEST");

pub use buffer::{HOST_ALIGN, HostBuf, Storage, StreamId, View, WeightPart, Weights};
pub use device::{DeviceInfo, DeviceOptions, devices, open};
pub use null::{NullLog, NullRecord, NullStream};
pub use op::{
    Access, BackendOp, CpuLaunch, CpuOp, Device, Exec, Fetch, OP_NAMES, Op, OpVisitor, Queue, Recorded,
    Rehearsal, Stream, for_each_op,
};
#[cfg(feature = "cuda")]
pub use op::{CudaLaunch, CudaOp};
#[cfg(feature = "wgpu")]
pub use op::{WgpuLaunch, WgpuOp};
pub use oracle::{Expected, Oracle};
pub use reference::{ReferenceDevice, ReferenceStream};
pub use select::{Picks, Reject, Row, Variant, explain, select};
pub use spec::{
    Arch, Backend, Caps, Code, Cost, CudaCaps, DType, Element, Format, Grouped, KernelError, Layout,
    ShapeError, WgpuCaps,
};
