//! What the engine asks of a model family: a processor, which lays requests out, and a model, which computes.

use std::sync::Arc;

use crate::batch::{Packed, Packing};
use crate::ctx::Ctx;
use crate::drawing::{DrawingProcessor, Painter};
use crate::error::Result;
use crate::image::{PreparedImage, Rgb8Image};
use crate::kv::{KvCache, KvLayout};
use crate::parallel::try_map;
use crate::prompt::{Features, Prompt};
use crate::regions::Regions;
use crate::tensor::Tensor;
use crate::text::{Reading, Tokenizer};
use crate::video::VideoProcessor;

/// Facts about a model that the scheduler needs.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Family, as the registry names it.
    pub family: &'static str,
    /// Tokens that logits are given for.
    pub vocab: usize,
    /// Tokens that prompts may have: those, and perhaps a few more that stand for pictures.
    pub embedded: usize,
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
        Packing { vocab: self.embedded, axes: self.axes }
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

    /// Whether the model takes pictures.
    fn sees(&self) -> bool {
        true
    }

    /// Resizes and tiles a picture for the tower, with at most `threads` threads.
    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage>;

    /// The same for a picture of a request that has `count`; overridden where that changes what becomes of it.
    fn prepare_one_of(&self, image: &Rgb8Image, count: usize, threads: usize) -> Result<PreparedImage> {
        let _ = count;
        self.prepare(image, threads)
    }

    /// The pictures of one request, several at once on `threads` threads.
    fn prepare_all(&self, images: &[Rgb8Image], threads: usize) -> Result<Vec<PreparedImage>> {
        try_map(images, threads, |image, threads| self.prepare_one_of(image, images.len(), threads))
    }

    /// Special tokens that the reference's processor adds to those of the files, in order.
    fn added_tokens(&self) -> Vec<String> {
        Vec::new()
    }

    /// What stands for a picture in a rendered conversation.
    fn image_mark(&self) -> &str;

    /// Tokens of a rendered conversation with the places of its pictures' features.
    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt>;

    /// What an answer says of places in a picture of `(width, height)`, of models whose answers name such; `text` is the rendered
    /// conversation.
    fn regions(
        &self,
        text: &str,
        answer: &[u32],
        size: (usize, usize),
        tokenizer: &Tokenizer,
    ) -> Result<Option<Regions>> {
        let _ = (text, answer, size, tokenizer);
        Ok(None)
    }

    /// How videos are laid out; `None` where the family takes none here.
    fn video(&self) -> Option<&dyn VideoProcessor> {
        None
    }

    /// How drawings are laid out; `None` where the family does not draw.
    fn drawing(&self) -> Option<&dyn DrawingProcessor> {
        None
    }

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

    /// The model with its head apart; `None` where they are one.
    fn apart(&self) -> Option<&dyn HeadApart> {
        None
    }

    /// The model as one that draws; `None` where it does not.
    fn painter(&self) -> Option<&dyn Painter> {
        None
    }
}

/// A model whose head can run after the rest, on a few rows at a time: so that logits of all rows never exist at once.
pub trait HeadApart {
    /// The rows that the head takes, f32 `[rows_wanted, d_model]`, in the order of the batch; as [`Vlm::forward`] else.
    fn hidden(&self, cx: &mut Ctx, batch: &Packed, kv: &KvCache) -> Result<Tensor>;

    /// `rows: f32 [rows, d_model]  ->  logits: f32 [rows, vocab]`, in the caller's scope of `cx`.
    fn head(&self, cx: &mut Ctx, rows: &Tensor) -> Result<Tensor>;
}

/// How logits of a picture become probabilities of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chance {
    /// One of all the texts fits: softmax.
    OneOf,
    /// Each fits or not by itself: sigmoid.
    Each,
}

/// What products of vectors mean: a logit is `scale * product + bias`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring {
    /// Factor of a product.
    pub scale: f32,
    /// Added to it.
    pub bias: f32,
    /// How logits become probabilities.
    pub chance: Chance,
}

impl Scoring {
    /// The logit of two unit vectors.
    #[must_use]
    pub fn logit(&self, a: &[f32], b: &[f32]) -> f32 {
        let product: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        (f64::from(self.scale) * product + f64::from(self.bias)) as f32
    }

    /// Probabilities of the texts that a picture has these logits with.
    #[must_use]
    pub fn probabilities(&self, logits: &[f32]) -> Vec<f64> {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        match self.chance {
            Chance::Each => logits.iter().map(|&logit| 1.0 / (1.0 + f64::from(-logit).exp())).collect(),
            Chance::OneOf => {
                let parts: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - most).exp()).collect();
                let sum: f64 = parts.iter().sum();
                parts.iter().map(|part| part / sum).collect()
            }
        }
    }
}

/// A model that gives pictures and texts vectors of one space. Its processor lays out texts without pictures.
pub trait Embedder: Send + Sync {
    /// Facts about the model: `d_model` is the length of its vectors, `max_positions` the most tokens of a text; `kv` is empty.
    fn info(&self) -> &ModelInfo;

    /// Parameters and formats of each part.
    fn parts(&self) -> Vec<PartInfo>;

    /// Unit vectors of pictures, f32 `[images, d_model]`, in the caller's scope of `cx`.
    fn images(&self, cx: &mut Ctx, images: &[&PreparedImage]) -> Result<Tensor>;

    /// Unit vectors of texts, f32 `[texts, d_model]`, in the caller's scope of `cx`.
    fn texts(&self, cx: &mut Ctx, texts: &[Vec<u32>]) -> Result<Tensor>;

    /// What products of vectors mean.
    fn scoring(&self) -> Scoring;
}

/// What models give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gives {
    /// Answers to messages with pictures.
    Answers,
    /// Vectors of pictures and of texts.
    Vectors,
}

impl std::fmt::Display for Gives {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Answers => "answers",
            Self::Vectors => "vectors",
        })
    }
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

    /// What it gives.
    #[must_use]
    pub fn gives(&self) -> Gives {
        match self {
            Self::Vlm(_) => Gives::Answers,
            Self::Embedder(_) => Gives::Vectors,
        }
    }
}

/// A loaded checkpoint.
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// Its processor.
    pub processor: Box<dyn Processor>,
    /// Its tokenizer.
    pub tokenizer: Reading,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_become_probabilities() {
        let of = |chance| Scoring { scale: 2.0, bias: -1.0, chance };
        assert_eq!(of(Chance::Each).logit(&[0.5, 0.75], &[1.0, 0.0]), 0.0);
        let one = of(Chance::OneOf).probabilities(&[1000.0, 1000.0, 0.0]);
        assert_eq!(one, [0.5, 0.5, 0.0]);
        let each = of(Chance::Each).probabilities(&[0.0, 1000.0, -1000.0]);
        assert_eq!(each, [0.5, 1.0, 0.0]);
    }
}
