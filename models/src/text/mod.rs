//! Text decoders: one, driven by plans.

mod decoder;
mod plan;
mod read;

pub use decoder::Decoder;
pub use plan::{LayerPlan, Norms, TEXT_TYPES, TextPlan};
