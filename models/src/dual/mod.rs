//! Dual encoders: a tower for pictures and one for texts, whose pooled results are vectors of one space.

mod pool;
mod processor;
mod text;

pub use pool::{AttentionPool, ClassRow};
pub use processor::{DualProcessor, Patches, Pictures, TextRules};
pub use text::{Row, TextPlan, TextTower};

use ocelli_engine::image::PreparedImage;
use ocelli_engine::kv::KvLayout;
use ocelli_engine::vlm::{ModelInfo, PartInfo, Scoring};
use ocelli_engine::weights::Role;
use ocelli_engine::{Ctx, Embedder, Error, Model, Result, Tensor};
use ocelli_kernels::DType;

use crate::layers::copy_rows;
use crate::registry::Source;
use crate::vision::{Connect, Vit, encode};

/// A dual encoder.
pub struct Dual {
    info: ModelInfo,
    parts: Vec<PartInfo>,
    tower: Vit,
    pool: Box<dyn Connect + Send + Sync>,
    text: TextTower,
    scoring: Scoring,
}

impl Dual {
    /// The model of parts that were loaded from `source`. `pool` makes one unit vector of each picture, as long as those of texts.
    #[must_use]
    pub fn of(
        family: &'static str,
        source: &Source<'_>,
        tower: Vit,
        pool: impl Connect + Send + Sync + 'static,
        text: TextTower,
        scoring: Scoring,
    ) -> Model {
        let plan = text.plan();
        let info = ModelInfo {
            family,
            vocab: plan.vocab,
            embedded: plan.vocab,
            max_positions: plan.positions,
            d_model: plan.out,
            layers: plan.layers.layers,
            kv: KvLayout::default(),
            axes: 1,
        };
        let parts = source.checkpoint.parts();
        Model::Embedder(std::sync::Arc::new(Self { info, parts, tower, pool: Box::new(pool), text, scoring }))
    }
}

impl Embedder for Dual {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn parts(&self) -> Vec<PartInfo> {
        self.parts.clone()
    }

    fn images(&self, cx: &mut Ctx, images: &[&PreparedImage]) -> Result<Tensor> {
        let d = self.info.d_model;
        let out = cx.alloc(&[images.len(), d], DType::F32)?;
        let features = encode(cx, &self.tower, &*self.pool, d, images)?;
        for (number, features) in features.iter().enumerate() {
            let Some(row) = features.rows.as_ref().filter(|rows| rows.size(0) == 1) else {
                return Err(Error::Request(format!("picture {}: expected one tile", number + 1)));
            };
            copy_rows(cx, self.info.family, row, &out.narrow(0, number, 1)?)?;
        }
        Ok(out)
    }

    fn texts(&self, cx: &mut Ctx, texts: &[Vec<u32>]) -> Result<Tensor> {
        self.text.forward(cx, texts)
    }

    fn scoring(&self) -> Scoring {
        self.scoring
    }
}

/// One number that a checkpoint stores under `name`, in whatever shape; `usual` is that of a checkpoint that is not there yet.
pub fn number(source: &Source<'_>, name: &str, usual: &[usize]) -> Result<f32> {
    let root = source.checkpoint.root().role(Role::Connector);
    let shape = root.info(name).map_or_else(|| usual.to_vec(), |info| info.shape.to_vec());
    root.take(name, &shape)?;
    match source.checkpoint.floats(name)?[..] {
        [value] if value.is_finite() => Ok(value),
        ref found => Err(Error::Config {
            path: source.checkpoint.path().to_owned(),
            reason: format!("tensor {name}: expected one finite number, found {} values", found.len()),
        }),
    }
}
