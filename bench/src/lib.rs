//! Roofs, kernel and model benchmarks.

pub mod eval;
pub mod machine;
pub mod model;
pub mod record;
pub mod roof;
pub mod stats;
pub mod verify;
