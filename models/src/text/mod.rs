//! Text decoders: one, driven by plans.

mod beside;
mod cross;
mod decoder;
mod deepseek;
mod encoder;
mod folds;
mod gated_delta;
mod gemma4;
mod glm;
mod granite;
mod head;
mod inputs;
mod lfm2;
mod llama4;
mod mllama;
mod older;
mod paged;
mod plan;
mod qwen3;
mod qwen3_5;
mod read;
mod short_conv;
mod tempered;

pub use cross::CrossPlan;
pub use decoder::{Decoder, Ends, Normalized};
pub use encoder::{BERT_NAMES, Encoder, EncoderCross, EncoderNames, EncoderPlan};
pub use head::HeadPlan;
pub use plan::{
    ConvPlan, DeltaPlan, InputsPlan, Keys, LLAMA_NAMES, LayerPlan, Learned, Mix, Names, Norms, TEXT_TYPES,
    TemperPlan, TextPlan,
};
