//! From pictures and texts to vectors: what a command needs around an [`Embedder`].

use std::sync::Arc;

use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::image::{PreparedImage, Rgb8Image};
use crate::tensor::Tensor;
use crate::text::Tokenizer;
use crate::vlm::{Embedder, Gives, Loaded, Model, Processor};

/// A dual encoder with its processor and tokenizer.
pub struct EmbeddingPipeline {
    /// The model.
    pub model: Arc<dyn Embedder>,
    /// What prepares pictures and texts for it.
    pub processor: Box<dyn Processor>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Threads that prepare pictures.
    pub threads: usize,
}

impl EmbeddingPipeline {
    /// Loads the tokenizer of a model. Errors if the model gives no vectors.
    pub fn new(files: &ModelFiles, loaded: Loaded, threads: usize) -> Result<Self> {
        let Model::Embedder(model) = loaded.model else {
            return Err(Error::other_kind(files, &loaded.model, Gives::Vectors));
        };
        Ok(Self { model, processor: loaded.processor, tokenizer: Tokenizer::load(files)?, threads })
    }

    /// Resizes a picture for the tower.
    pub fn prepare(&self, image: &Rgb8Image) -> Result<PreparedImage> {
        self.processor.prepare(image, self.threads)
    }

    /// Tokens of a text as the model wants them: cut off where it is too long, padded where that is asked for.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let prompt = self.processor.lay_out(text, &[], &self.tokenizer)?;
        let info = self.model.info();
        prompt.check(0, info.vocab)?;
        if prompt.is_empty() || prompt.len() > info.max_positions {
            let (most, found) = (info.max_positions, prompt.len());
            return Err(Error::Request(format!("text: expected 1 to {most} tokens, found {found}")));
        }
        Ok(prompt.tokens)
    }

    /// Unit vectors of pictures.
    pub fn images(&self, cx: &mut Ctx, images: &[&PreparedImage]) -> Result<Vec<Vec<f32>>> {
        self.rows(cx, |cx| self.model.images(cx, images))
    }

    /// Unit vectors of texts, given as [`tokens`](Self::tokens).
    pub fn texts(&self, cx: &mut Ctx, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        self.rows(cx, |cx| self.model.texts(cx, texts))
    }

    /// The rows of a result. Errors if one is no vector.
    fn rows(&self, cx: &mut Ctx, run: impl FnOnce(&mut Ctx) -> Result<Tensor>) -> Result<Vec<Vec<f32>>> {
        let values = cx.scope(|cx| {
            let vectors = run(cx)?;
            cx.download(&vectors)
        })?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::NotNumbers);
        }
        Ok(values.chunks_exact(self.model.info().d_model.max(1)).map(<[f32]>::to_vec).collect())
    }
}
