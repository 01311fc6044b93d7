//! What the engine asks of a model family: a processor, which lays requests out, and a model, which computes.

use std::sync::Arc;

use crate::batch::{Packed, Packing};
use crate::ctx::Ctx;
use crate::error::Result;
use crate::image::{PreparedImage, Rgb8Image};
use crate::kv::{KvCache, KvLayout};
use crate::prompt::{Features, Prompt};
use crate::tensor::Tensor;
use crate::text::Tokenizer;

/// Facts about a model that the scheduler needs.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Family, as the registry names it.
    pub family: &'static str,
    /// Tokens that logits are given for.
    pub vocab: usize,
    /// Most tokens of a sequence.
    pub max_positions: usize,
    /// Features of a token.
    pub d_model: usize,
    /// Text layers.
    pub layers: usize,
    /// What the KV cache keeps of a sequence.
    pub kv: KvLayout,
    /// Axes of positions: 1, or 3 for time, row and column.
    pub axes: usize,
}

impl ModelInfo {
    /// How batches are packed for the model.
    #[must_use]
    pub fn packing(&self) -> Packing {
        Packing { vocab: self.vocab, axes: self.axes }
    }
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

/// Makes requests of pictures and texts as a model wants them. It has no weights and may be used on any thread.
pub trait Processor: Send + Sync {
    /// Sets a field of the image processor, as transformers' processor kwargs do. `value` is JSON or plain text. Errors name the
    /// fields that exist.
    fn set(&mut self, key: &str, value: &str) -> Result<()>;

    /// Resizes and tiles a picture for the tower, with at most `threads` threads.
    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage>;

    /// The pictures of one request, where that is not each by itself.
    fn prepare_all(&self, images: &[Rgb8Image], threads: usize) -> Result<Vec<PreparedImage>> {
        images.iter().map(|image| self.prepare(image, threads)).collect()
    }

    /// What stands for a picture in a rendered conversation.
    fn image_mark(&self) -> &str;

    /// Tokens of a rendered conversation with the places of its pictures' features.
    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt>;

    /// The values that the reference's processor gives for a picture, in its order.
    fn pixel_values(&self, image: &PreparedImage) -> Vec<f32> {
        image.pixel_values()
    }

    /// The same picture with given values of the reference's processor in place of its own pixels; `None` if the number differs.
    fn with_pixel_values(&self, image: &PreparedImage, values: &[f32]) -> Option<PreparedImage> {
        image.with_pixel_values(values)
    }
}

/// A vision language model. Implementations hold weights and no state of requests.
pub trait Vlm: Send + Sync {
    /// Facts about the model.
    fn info(&self) -> &ModelInfo;

    /// Parameters and formats of each part.
    fn parts(&self) -> Vec<PartInfo>;

    /// Features of each picture, on memory of their own.
    fn encode(&self, cx: &mut Ctx, images: &[&PreparedImage]) -> Result<Vec<Features>>;

    /// Logits of the wanted rows, f32 `[rows_wanted, vocab]`, in the order of the batch. New keys and values go to `kv`.
    /// The result lives in the caller's scope of `cx`.
    fn forward(&self, cx: &mut Ctx, batch: &Packed, kv: &KvCache) -> Result<Tensor>;
}

/// A model that gives pictures and texts vectors of one space.
pub trait Embedder: Send + Sync {
    /// Facts about the model; `kv` is empty.
    fn info(&self) -> &ModelInfo;

    /// Parameters and formats of each part.
    fn parts(&self) -> Vec<PartInfo>;

    /// Unit vectors of pictures, f32 `[images, d]`.
    fn images(&self, cx: &mut Ctx, images: &[&PreparedImage]) -> Result<Tensor>;

    /// Unit vectors of texts, f32 `[texts, d]`.
    fn texts(&self, cx: &mut Ctx, texts: &[Vec<u32>]) -> Result<Tensor>;

    /// What products of vectors are multiplied with, and what is added, to give logits.
    fn scale(&self) -> (f32, f32);
}

/// What a checkpoint turned out to be.
#[derive(Clone)]
pub enum Model {
    /// It answers.
    Vlm(Arc<dyn Vlm>),
    /// It embeds.
    Embedder(Arc<dyn Embedder>),
}

impl Model {
    /// Facts about the model.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        match self {
            Self::Vlm(model) => model.info(),
            Self::Embedder(model) => model.info(),
        }
    }

    /// Parameters and formats of each part.
    #[must_use]
    pub fn parts(&self) -> Vec<PartInfo> {
        match self {
            Self::Vlm(model) => model.parts(),
            Self::Embedder(model) => model.parts(),
        }
    }
}

/// A loaded checkpoint.
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// Its processor.
    pub processor: Box<dyn Processor>,
}
