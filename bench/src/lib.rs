//! Roofs, kernel and model benchmarks, and the plans of requests.

pub mod compare;
pub mod diff;
pub mod eval;
pub mod kernels;
pub mod machine;
pub mod model;
pub mod observe;
pub mod page;
pub mod plan;
pub mod record;
pub mod roof;
pub mod shapes;
pub mod stats;
pub mod trained;
pub mod tune;
pub mod verify;
