//! First values of a model that is trained from nothing.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::{Error, Result};
use serde_json::Value;

/// What fresh weights are drawn from, as transformers draws them: matrices and tables from a normal distribution around zero, norms
/// one, biases zero. CLIP's and SigLIP's factors of products have their own first values.
#[derive(Clone, Copy, Debug)]
pub struct Fresh {
    /// Standard deviation: `initializer_range` of the configuration.
    pub deviation: f64,
    /// Of what is drawn.
    pub seed: u64,
    /// First weights of norms: 0 where one is added to them.
    norm: f32,
    /// Logarithm of the first factor of products.
    scale: f32,
}

impl Fresh {
    /// As the configuration of a model says.
    ///
    /// # Errors
    /// If there is none, or `initializer_range` is no number from 0 to 1.
    pub fn of(files: &ModelFiles, seed: u64) -> Result<Self> {
        let config: Value = files.require_json("config.json")?;
        let range =
            config.get("initializer_range").or_else(|| config.pointer("/text_config/initializer_range"));
        let deviation = range.map_or(Some(0.02), Value::as_f64).filter(|range| (0.0..=1.0).contains(range));
        let deviation = deviation.ok_or_else(|| Error::Config {
            path: files.describe("config.json"),
            reason: "initializer_range: expected a number from 0 to 1".into(),
        })?;
        let text = config.to_string();
        let kind = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let norm = if text.contains("\"gemma") { 0.0 } else { 1.0 };
        let scale = if kind.starts_with("siglip") { 10f32.ln() } else { (1.0f32 / 0.07).ln() };
        Ok(Self { deviation, seed, norm, scale })
    }

    /// The first values of a tensor.
    #[must_use]
    pub fn values(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let len = shape.iter().product();
        let last = name.rsplit('.').next().unwrap_or(name);
        match last {
            "logit_scale" => vec![self.scale; len],
            "logit_bias" => vec![-10.0; len],
            _ if last.ends_with("bias") => vec![0.0; len],
            "weight" if shape.len() == 1 => vec![self.norm; len],
            _ => normal(self.seed, name, len).into_iter().map(|z| (z * self.deviation) as f32).collect(),
        }
    }
}

/// Numbers from above 0 to 1 that follow from a seed and a name.
fn unit(seed: u64, name: &str) -> impl FnMut() -> f64 {
    // FNV-1a of the name, then splitmix64.
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    let mut state = name.bytes().fold(0xCBF2_9CE4_8422_2325 ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15), hash);
    move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        // From 0, not included, to 1.
        (((z ^ (z >> 31)) >> 11) as f64 + 1.0) / (1u64 << 53) as f64
    }
}

/// Numbers between `-bound` and `bound`, all alike, that follow from a seed and a name.
pub(crate) fn uniform(seed: u64, name: &str, len: usize, bound: f64) -> Vec<f32> {
    let mut unit = unit(seed, name);
    (0..len).map(|_| (bound * (2.0 * unit() - 1.0)) as f32).collect()
}

/// Numbers of a normal distribution that follow from a seed and a name.
fn normal(seed: u64, name: &str, len: usize) -> Vec<f64> {
    let mut unit = unit(seed, name);
    let mut all = Vec::with_capacity(len + 1);
    while all.len() < len {
        let (radius, angle) = ((-2.0 * unit().ln()).sqrt(), std::f64::consts::TAU * unit());
        all.extend([radius * angle.cos(), radius * angle.sin()]);
    }
    all.truncate(len);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_values_are_drawn() {
        let fresh = Fresh { deviation: 0.5, seed: 1, norm: 1.0, scale: 2.0 };
        assert_eq!(fresh.values("a.norm.weight", &[2]), [1.0, 1.0]);
        assert_eq!(fresh.values("a.q_proj.bias", &[2]), [0.0, 0.0]);
        assert_eq!(fresh.values("logit_scale", &[]), [2.0]);
        let all = fresh.values("a.q_proj.weight", &[100, 101]);
        assert_eq!(all, fresh.values("a.q_proj.weight", &[100, 101]));
        assert_ne!(all, fresh.values("a.k_proj.weight", &[100, 101]));
        assert_ne!(all, Fresh { seed: 2, ..fresh }.values("a.q_proj.weight", &[100, 101]));
        let mean = |of: &dyn Fn(f64) -> f64| all.iter().map(|&v| of(f64::from(v))).sum::<f64>() / 10_100.0;
        // Five standard errors of each mean.
        assert!(mean(&|v| v).abs() < 5.0 * 0.5 / 100.0, "{}", mean(&|v| v));
        assert!((mean(&|v| v * v) - 0.25).abs() < 5.0 * 0.25 * 2f64.sqrt() / 100.0, "{}", mean(&|v| v * v));
    }
}
