//! A tower, a connector and a decoder: what most families are; or a decoder alone.

use std::sync::Arc;

use ocelli_engine::batch::Packed;
use ocelli_engine::image::PreparedImage;
use ocelli_engine::kv::KvCache;
use ocelli_engine::vlm::{HeadApart, ModelInfo, PartInfo};
use ocelli_engine::{Ctx, Features, Model, Result, Tensor, Vlm};

use crate::registry::Source;
use crate::text::{Decoder, Normalized};
use crate::vision::{ByTile, Connect, Vit, encode};

/// What makes features of pictures.
pub trait Eye: Send + Sync {
    /// Features of each picture, of `d` numbers a row.
    fn features(&self, cx: &mut Ctx, d: usize, images: &[&PreparedImage]) -> Result<Vec<Features>>;
}

impl Eye for (Vit, Box<dyn Connect + Send + Sync>) {
    fn features(&self, cx: &mut Ctx, d: usize, images: &[&PreparedImage]) -> Result<Vec<Features>> {
        encode(cx, &self.0, &*self.1, d, images)
    }
}

impl<C: Connect + Send + Sync> Eye for ByTile<C> {
    fn features(&self, cx: &mut Ctx, d: usize, images: &[&PreparedImage]) -> Result<Vec<Features>> {
        self.encode(cx, d, images)
    }
}

/// A model of these parts.
pub struct Composed {
    info: ModelInfo,
    parts: Vec<PartInfo>,
    /// Tower and connector; none of a model that takes text alone.
    eye: Option<Box<dyn Eye>>,
    decoder: Decoder,
}

impl Composed {
    /// The model of parts that were loaded from `source`.
    #[must_use]
    pub fn of(
        family: &'static str,
        source: &Source<'_>,
        tower: Vit,
        connector: impl Connect + Send + Sync + 'static,
        decoder: Decoder,
    ) -> Model {
        Model::Vlm(Arc::new(Self::part_of(family, source, tower, connector, decoder)))
    }

    /// As [`of`](Self::of), for a model that is more than these parts.
    #[must_use]
    pub fn part_of(
        family: &'static str,
        source: &Source<'_>,
        tower: Vit,
        connector: impl Connect + Send + Sync + 'static,
        decoder: Decoder,
    ) -> Self {
        let connector: Box<dyn Connect + Send + Sync> = Box::new(connector);
        Self::new(family, source, Some(Box::new((tower, connector))), decoder)
    }

    /// The model of another eye and a decoder that were loaded from `source`.
    #[must_use]
    pub fn of_eye(
        family: &'static str,
        source: &Source<'_>,
        eye: impl Eye + 'static,
        decoder: Decoder,
    ) -> Model {
        Model::Vlm(Arc::new(Self::new(family, source, Some(Box::new(eye)), decoder)))
    }

    /// The decoder.
    #[must_use]
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The model of a decoder alone, which was loaded from `source`.
    #[must_use]
    pub fn of_text(family: &'static str, source: &Source<'_>, decoder: Decoder) -> Model {
        Model::Vlm(Arc::new(Self::new(family, source, None, decoder)))
    }

    fn new(family: &'static str, source: &Source<'_>, eye: Option<Box<dyn Eye>>, decoder: Decoder) -> Self {
        let info = decoder.plan().info(family);
        let parts = source.checkpoint.parts();
        Self { info, parts, eye, decoder }
    }
}

impl Vlm for Composed {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn parts(&self) -> Vec<PartInfo> {
        self.parts.clone()
    }

    fn encode(&self, cx: &mut Ctx, images: &[&PreparedImage]) -> Result<Vec<Features>> {
        match &self.eye {
            Some(eye) => eye.features(cx, self.info.d_model, images),
            None if images.is_empty() => Ok(Vec::new()),
            None => Err(crate::text_only::no_pictures()),
        }
    }

    fn forward(&self, cx: &mut Ctx, batch: &Packed, kv: &KvCache) -> Result<Tensor> {
        self.decoder.forward(cx, batch, kv)
    }

    fn apart(&self) -> Option<&dyn HeadApart> {
        Some(self)
    }
}

impl HeadApart for Composed {
    fn hidden(&self, cx: &mut Ctx, batch: &Packed, kv: &KvCache) -> Result<Tensor> {
        self.decoder.forward_between(cx, batch, kv, &Normalized { d: self.info.d_model })
    }

    fn head(&self, cx: &mut Ctx, rows: &Tensor) -> Result<Tensor> {
        self.decoder.head(cx, rows)
    }
}
