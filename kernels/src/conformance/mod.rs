//! Runs every variant of every op against its f64 reference.
//!
//! Each case lies in memory with guard bytes around every operand. Before a variant runs, its outputs are filled with
//! NaN; afterwards every value must be within the oracle's bound, and every byte that the op may not write unchanged.

mod alone;
mod cases;
mod run;

pub use alone::{Kinds, alone_as_among_others};
pub use cases::{Case, CaseCx, Fill};
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub use run::Plan;
#[cfg(feature = "wgpu")]
pub use run::run_wgpu;
pub use run::{Part, Report, run_cpu};
#[cfg(feature = "cuda")]
pub use run::{cuda_kernels, run_cuda};
