//! Tensors, weights, preprocessing, generation and scheduling.

pub mod files;
pub mod hub;
pub mod image;
pub mod sample;
pub mod text;
pub mod weights;
