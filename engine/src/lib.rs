//! Tensors, weights, preprocessing, generation and scheduling.
//!
//! A [`Ctx`] runs ops and owns their activations; a [`Vlm`] is a model family's forward pass; [`generate`] mixes any
//! number of requests into batches for it.

pub mod batch;
mod ctx;
mod error;
pub mod files;
pub mod generate;
pub mod hub;
pub mod image;
pub mod kv;
mod pipeline;
pub mod sample;
mod tensor;
pub mod text;
mod timing;
pub mod vlm;
pub mod weights;

pub use ctx::{Ctx, Observer, Precision, ReplayKey, Stage};
pub use error::{Error, Result};
pub use pipeline::Pipeline;
pub use tensor::Tensor;
pub use timing::{Phase, Timings};
pub use vlm::Vlm;
