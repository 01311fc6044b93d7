//! Vectors of pictures from a model that gives answers: the mean of what its tower makes of them.

use std::sync::Arc;

use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::image::{PreparedImage, Rgb8Image};
use crate::prompt::Features;
use crate::tensor::Tensor;
use crate::vlm::{Chance, Embedder, ModelInfo, PartInfo, Processor, Scoring, Vlm};

/// A model that gives answers as one that gives vectors of pictures: the mean over all rows of a picture's features, as a unit vector.
/// It has no vectors of texts.
pub struct PooledTower {
    model: Arc<dyn Vlm>,
    info: ModelInfo,
}

impl PooledTower {
    /// Finds how wide the features are, by a pass that computes nothing.
    ///
    /// # Errors
    /// If the model sees no pictures.
    pub fn new(model: Arc<dyn Vlm>, processor: &dyn Processor, cx: &mut Ctx) -> Result<Self> {
        let (mut dry, _) = Ctx::dry(cx.stream().caps().clone(), cx.precision());
        let gray = Rgb8Image::from_raw(64, 64, vec![128; 64 * 64 * 3])
            .ok_or_else(|| Error::Request("a gray picture cannot be made".into()))?;
        let prepared = processor.prepare(&gray, 1)?;
        let features = model.encode(&mut dry, &[&prepared])?;
        let d_model = features.first().and_then(rows).map(|rows| rows.size(rows.shape().len() - 1));
        let d_model = d_model.ok_or_else(|| unseen(model.info()))?;
        let info = ModelInfo { d_model, ..model.info().clone() };
        Ok(Self { model, info })
    }
}

/// The rows that are averaged: those that stand for tokens, else those that tokens attend to.
fn rows(features: &Features) -> Option<&Tensor> {
    features.rows.as_ref().or(features.memory.as_ref()).or(features.deep.first())
}

fn unseen(info: &ModelInfo) -> Error {
    Error::Request(format!("models of family {} make no features of pictures", info.family))
}

/// The mean of rows of `d` numbers, as a unit vector; not finite where it has no direction.
fn mean(values: &[f32], d: usize) -> Vec<f32> {
    let mut sum = vec![0f64; d];
    for row in values.chunks_exact(d) {
        for (sum, value) in sum.iter_mut().zip(row) {
            *sum += f64::from(*value);
        }
    }
    let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
    sum.iter().map(|value| (value / length) as f32).collect()
}

impl Embedder for PooledTower {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn parts(&self) -> Vec<PartInfo> {
        self.model.parts()
    }

    fn images(&self, cx: &mut Ctx, images: &[&PreparedImage]) -> Result<Tensor> {
        let d = self.info.d_model;
        let mut vectors = Vec::with_capacity(images.len() * d);
        for features in self.model.encode(cx, images)? {
            let values = cx.download(rows(&features).ok_or_else(|| unseen(&self.info))?)?;
            vectors.extend(mean(&values, d));
        }
        cx.upload(&[images.len(), d], &vectors)
    }

    fn texts(&self, _: &mut Ctx, _: &[Vec<u32>]) -> Result<Tensor> {
        Err(no_texts(&self.info))
    }

    /// Products as they are.
    fn scoring(&self) -> Scoring {
        Scoring { scale: 1.0, bias: 0.0, chance: Chance::Each }
    }
}

/// Why there is no vector of a text.
pub(crate) fn no_texts(info: &ModelInfo) -> Error {
    Error::Request(format!(
        "text: a model of family {} gives pooled tower features of pictures alone; texts have vectors in dual encoders such as CLIP and SigLIP",
        info.family
    ))
}

#[cfg(test)]
mod tests {
    use super::mean;

    #[test]
    fn rows_become_one_unit_vector() {
        assert_eq!(mean(&[1.0, 0.0, 5.0, 8.0], 2), [0.6, 0.8]);
        assert!(mean(&[1.0, -1.0], 1)[0].is_nan());
    }
}
