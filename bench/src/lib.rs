//! Roofs, kernel and model benchmarks.

pub mod machine;
pub mod roof;
