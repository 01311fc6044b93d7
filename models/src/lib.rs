//! Vision language model families: compositions of towers, connectors and decoders. A family knows no backend.

pub mod blip;
pub mod blip2;
pub mod clip;
pub mod cohere_vision;
mod composed;
pub mod connector;
pub mod deepseek_ocr2;
pub mod demo;
pub mod dual;
pub mod fast_vlm;
pub mod fields;
pub mod florence2;
pub mod gemma3;
pub mod gemma4;
pub mod glm4v;
pub mod granite4_vision;
pub mod internvl;
pub mod janus;
pub mod layers;
pub mod lfm2_vl;
pub mod llama4;
pub mod llava;
pub mod llava_next;
pub mod minicpmv;
pub mod mllama;
pub mod ovis2;
pub mod paddleocr_vl;
pub mod paligemma;
pub mod pixtral;
pub mod processor;
pub mod qwen_vl;
pub mod registry;
pub mod siglip;
pub mod smolvlm;
pub mod text;
pub mod text_only;
pub mod vision;

pub use registry::{
    Anatomy, DRAW, FAMILIES, Family, Leftovers, Tensors, anatomy, family, load, load_from, load_with, owners,
    roles, tensors,
};
