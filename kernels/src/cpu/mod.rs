//! Rust SIMD on the host: instruction sets, vectors, threads, and the stream that runs CPU kernels.

pub mod gemm;
pub mod gemv;
pub mod isa;
mod op;
pub mod pool;
pub(crate) mod rows;
pub mod scratch;
pub mod simd;
mod stream;
pub(crate) mod table;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiles;

pub use op::{CpuLaunch, CpuOp, CpuRows};
pub use stream::{CpuCx, CpuDevice, CpuStream, caps};
