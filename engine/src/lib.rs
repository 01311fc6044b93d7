//! Tensors, weights, preprocessing, generation and scheduling.
//!
//! A [`Ctx`] runs ops and owns their activations; a [`Vlm`] is a model family's forward pass; a
//! [`scheduler`] mixes any number of requests into batches for it.

pub mod adapter;
mod ahead;
pub mod batch;
pub mod calibration;
pub mod choices;
mod ctx;
pub mod devices;
pub mod drawing;
mod embedding;
mod error;
pub mod files;
pub mod hub;
pub mod image;
pub mod json;
pub mod kv;
pub mod parallel;
mod pipeline;
mod pooled;
pub mod prompt;
pub mod regions;
pub mod sample;
pub mod scheduler;
mod shown;
pub mod store;
pub mod tape;
mod tensor;
pub mod text;
mod timing;
mod trace;
pub mod video;
pub mod vlm;
pub mod weights;

pub use ctx::{Ctx, Observer, Precision, Probe, ReplayKey, Stage};
pub use embedding::{EmbeddingPipeline, VectorKind};
pub use error::{Error, Result};
pub use pipeline::Pipeline;
pub use pooled::PooledTower;
pub use prompt::{Features, Prompt};
pub use tensor::Tensor;
pub use timing::{Phase, Timings};
pub use trace::{OpTime, Trace};
pub use vlm::{Embedder, Gives, Loaded, Model, Processor, Vlm};
