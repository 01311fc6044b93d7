//! Text decoders.

pub mod llama;
