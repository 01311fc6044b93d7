//! From pictures and texts to vectors: what a command needs around an [`Embedder`].

use std::sync::Arc;

use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::image::{DecodeOptions, PictureSource, PreparedImage, Rgb8Image};
use crate::parallel::try_map;
use crate::pooled::{PooledTower, no_texts};
use crate::tensor::Tensor;
use crate::text::Tokenizer;
use crate::vlm::{Embedder, Gives, Loaded, Model, Processor};

/// What vectors are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VectorKind {
    /// Pictures and texts have vectors of one space.
    DualEncoder,
    /// Pictures alone have vectors, which are means of what the tower of a model that gives answers makes of them.
    PooledTower,
}

impl std::fmt::Display for VectorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::DualEncoder => "dual encoder",
            Self::PooledTower => "pooled tower features",
        })
    }
}

/// A dual encoder, or a tower that stands for one, with its processor and tokenizer.
pub struct EmbeddingPipeline {
    /// What its vectors are.
    pub kind: VectorKind,
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
        let kind = VectorKind::DualEncoder;
        let tokenizer = loaded.tokenizer.wait()?;
        Ok(Self { kind, model, processor: loaded.processor, tokenizer, threads })
    }

    /// As [`new`](Self::new), with pooled features of the tower where the model gives answers. Errors if it sees no pictures.
    pub fn of_any(files: &ModelFiles, loaded: Loaded, threads: usize, cx: &mut Ctx) -> Result<Self> {
        let Loaded { model: Model::Vlm(model), processor, tokenizer } = loaded else {
            return Self::new(files, loaded, threads);
        };
        let model = Arc::new(PooledTower::new(model, &*processor, cx)?);
        let kind = VectorKind::PooledTower;
        Ok(Self { kind, model, processor, tokenizer: tokenizer.wait()?, threads })
    }

    /// Resizes a picture for the tower.
    pub fn prepare(&self, image: &Rgb8Image) -> Result<PreparedImage> {
        self.processor.prepare(image, self.threads)
    }

    /// Tokens of a text as the model wants them: cut off where it is too long, padded where that is asked for.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        if self.kind == VectorKind::PooledTower {
            return Err(no_texts(self.model.info()));
        }
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

    /// Reads and resizes pictures, several at a time; each by itself may fail.
    pub fn read(&self, sources: &[PictureSource], options: &DecodeOptions) -> Vec<Result<PreparedImage>> {
        let read = |source: &PictureSource, threads: usize| {
            let image = source.decode(options).map_err(Error::from);
            Ok::<_, std::convert::Infallible>(image.and_then(|image| self.processor.prepare(&image, threads)))
        };
        try_map(sources, self.threads, read).unwrap_or_default()
    }

    /// Unit vectors of what [`read`](Self::read) gave, in its order; whatever is wrong with one of them is not to be the end of all.
    pub fn each(&self, cx: &mut Ctx, prepared: Vec<Result<PreparedImage>>) -> Vec<Result<Vec<f32>>> {
        let good: Vec<&PreparedImage> = prepared.iter().flatten().collect();
        let mut vectors = match self.images(cx, &good) {
            Ok(vectors) => vectors.into_iter().map(Ok).collect(),
            Err(_) => good
                .iter()
                .map(|image| self.images(cx, &[image]).map(|mut all| all.pop().unwrap_or_default()))
                .collect::<Vec<_>>(),
        }
        .into_iter();
        let missing = || Err(Error::Request("a vector is missing".into()));
        prepared
            .into_iter()
            .map(|prepared| prepared.and_then(|_| vectors.next().unwrap_or_else(missing)))
            .collect()
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
