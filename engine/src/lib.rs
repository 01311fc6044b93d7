//! Tensors, weights, preprocessing, generation and scheduling.

pub mod image;
