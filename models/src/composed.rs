//! A tower, a connector and a decoder: what most families are.

use ocelli_engine::batch::Packed;
use ocelli_engine::image::PreparedImage;
use ocelli_engine::kv::KvCache;
use ocelli_engine::vlm::{ModelInfo, PartInfo};
use ocelli_engine::{Ctx, Features, Model, Result, Tensor, Vlm};

use crate::registry::Source;
use crate::text::Decoder;
use crate::vision::{Connect, Vit, encode};

/// A model of three parts.
pub struct Composed {
    info: ModelInfo,
    parts: Vec<PartInfo>,
    tower: Vit,
    connector: Box<dyn Connect + Send + Sync>,
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
        let plan = decoder.plan();
        let info = ModelInfo {
            family,
            vocab: plan.vocab,
            max_positions: plan.max_positions,
            d_model: plan.d,
            layers: plan.layers.len(),
            kv: plan.kv.clone(),
            axes: plan.axes(),
        };
        let parts = source.checkpoint.parts();
        Model::Vlm(std::sync::Arc::new(Self { info, parts, tower, connector: Box::new(connector), decoder }))
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
        encode(cx, &self.tower, &*self.connector, self.info.d_model, images)
    }

    fn forward(&self, cx: &mut Ctx, batch: &Packed, kv: &KvCache) -> Result<Tensor> {
        self.decoder.forward(cx, batch, kv)
    }
}
