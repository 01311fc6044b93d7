//! `config.json` of SmolVLM, SmolVLM2 and Idefics3.

use serde::Deserialize;

use crate::text::llama::LlamaConfig;
use crate::vision::siglip::SiglipConfig;

/// The configuration, with the defaults of `Idefics3Config`.
#[derive(Clone, Debug, Deserialize)]
pub struct SmolVlmConfig {
    /// The tower.
    pub vision_config: SiglipConfig,
    /// The decoder.
    pub text_config: LlamaConfig,
    /// Token that stands for a row of image features.
    #[serde(default = "image_token_id")]
    pub image_token_id: u32,
    /// Side of the blocks of patches that become one token.
    #[serde(default = "scale_factor")]
    pub scale_factor: usize,
    /// Whether head and embedding are one matrix.
    pub tie_word_embeddings: Option<bool>,
}

fn image_token_id() -> u32 {
    128_257
}

fn scale_factor() -> usize {
    2
}
