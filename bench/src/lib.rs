//! Roofs, kernel and model benchmarks.
