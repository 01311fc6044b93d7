//! What the engine asks of a model family.

use crate::batch::Batch;
use crate::ctx::Ctx;
use crate::error::Result;
use crate::image::{PreparedImage, Rgb8Image};
use crate::kv::{KvCache, KvLayout};
use crate::tensor::Tensor;

/// Facts about a model that the generation loop needs.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Family, as the registry names it.
    pub family: &'static str,
    /// Tokens that logits are given for.
    pub vocab: usize,
    /// Most tokens of a sequence.
    pub max_positions: usize,
    /// What the KV cache keeps for each token.
    pub kv: KvLayout,
    /// Token that stands for a row of image features.
    pub image_token: u32,
}

/// Parameters and bytes of one part of a model.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PartInfo {
    /// Tower, connector, decoder, ...
    pub name: &'static str,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes of weights as stored.
    pub bytes: u64,
    /// Formats of its matrices, with the number of each.
    pub formats: Vec<(String, usize)>,
}

/// A vision language model. Implementations hold weights and no state of requests.
pub trait Vlm: Send + Sync {
    /// Facts about the model.
    fn info(&self) -> &ModelInfo;

    /// Parameters and formats of each part.
    fn parts(&self) -> Vec<PartInfo>;

    /// Sets a field of the image processor, as transformers' processor kwargs do. Errors name the fields that exist.
    fn set_processor(&mut self, key: &str, value: &str) -> Result<()>;

    /// Resizes and tiles a picture for the tower.
    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage>;

    /// The prompt with each picture's place filled with the tokens that it takes.
    fn expand_prompt(&self, prompt: &str, images: &[PreparedImage]) -> Result<String>;

    /// Features of each picture, `[image_tokens, d_model]`, on memory of their own.
    fn encode_images(&self, cx: &mut Ctx, images: &[PreparedImage]) -> Result<Vec<Tensor>>;

    /// Logits of the wanted rows, f32 `[rows_wanted, vocab]`, in the order of the batch. New keys and values go to `kv`.
    /// The result lives in the caller's scope of `cx`.
    fn forward(&self, cx: &mut Ctx, batch: &Batch<'_>, kv: &mut KvCache) -> Result<Tensor>;
}
