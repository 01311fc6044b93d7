//! Granite: Llama with factors of its own for embeddings, scores, branches and logits.

use crate::fields::Fields;
use crate::layers::RopeConfig;
use ocelli_engine::Result;

use super::TextPlan;
use super::plan::Sizes;

impl TextPlan {
    /// `GraniteConfig`, and `Granite4VisionTextConfig`, which is the same.
    pub(super) fn granite(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 32_000,
            d: 4096,
            mlp: 11_008,
            layers: 32,
            heads: 32,
            positions: 2048,
            ..Sizes::default()
        };
        let mut plan = Self::common(text, &sizes, tied)?;
        text.only("hidden_act", "silu")?;
        let bias: bool = text.or("attention_bias", false)?;
        (plan.qkv_bias, plan.out_bias) = (bias, bias);
        plan.mlp_bias = text.or("mlp_bias", false)?;
        let factor = |key: &str| -> Result<f32> {
            let factor: f32 = text.or(key, 1.0)?;
            if factor.is_finite() && factor > 0.0 {
                return Ok(factor);
            }
            Err(text.bad(key, format!("expected a positive number, found {factor}")))
        };
        plan.embed_scale = factor("embedding_multiplier")?;
        plan.scale = factor("attention_multiplier")?;
        plan.residual = factor("residual_multiplier")?;
        plan.logit_scale = 1.0 / factor("logits_scaling")?;
        plan.ropes = vec![RopeConfig::read(text, 10_000.0)?];
        Ok(plan)
    }
}
