//! What an op is told before it runs: types, formats, layouts, costs, device capabilities and errors.

mod arch;
mod caps;
mod cost;
mod dtype;
mod error;
mod format;
mod layout;
pub mod text;
pub mod tolerance;

pub use crate::quant::Code;
pub use arch::Arch;
pub use caps::{Backend, Caps, CudaCaps, MANY, WgpuCaps};
pub use cost::Cost;
pub use dtype::{DType, Element};
pub use error::{KernelError, ShapeError};
pub use format::{AWQ_ORDER, Format, Grouped, KMajor, PlaneShape, Zero};
pub use layout::{Layout, MAX_RANK};

/// The bucket that a per-step size falls into, as it may enter a [`Spec`](crate::Op::Spec).
///
/// Exact up to 8, the next power of two above. A spec that held exact sizes would miss every cache at each step.
#[must_use]
pub fn bucket(size: usize) -> u32 {
    let rounded = if size <= 8 { size } else { size.next_power_of_two() };
    u32::try_from(rounded).unwrap_or(u32::MAX)
}
