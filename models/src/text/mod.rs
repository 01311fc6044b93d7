//! Text decoders: one, driven by plans.

mod decoder;
mod gated_delta;
mod glm;
mod lfm2;
mod plan;
mod qwen3;
mod qwen3_5;
mod read;
mod short_conv;

pub use decoder::Decoder;
pub use plan::{ConvPlan, DeltaPlan, LLAMA_NAMES, LayerPlan, Mix, Names, Norms, TEXT_TYPES, TextPlan};
