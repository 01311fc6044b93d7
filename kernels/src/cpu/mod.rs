//! Rust SIMD on the host: instruction sets, vectors, threads, and the stream that runs CPU kernels.

pub mod gemm;
pub mod gemv;
pub mod isa;
pub mod pool;
pub(crate) mod rows;
pub mod scratch;
pub mod simd;
mod stream;
pub(crate) mod table;

pub use stream::{CpuCx, CpuDevice, CpuStream, caps};
