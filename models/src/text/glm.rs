//! Plans of the decoders of GLM-4V, GLM-OCR and PaddleOCR-VL.

use ocelli_engine::Result;
use ocelli_kernels::ops::RopeStyle;

use super::plan::{LLAMA_NAMES, Names, Sizes};
use super::{Norms, TextPlan};
use crate::fields::Fields;
use crate::layers::RopeConfig;

impl TextPlan {
    /// `Glm4vTextConfig`, whose queries, keys and values have biases.
    pub(super) fn glm4v(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 151_552,
            d: 4096,
            mlp: 13_696,
            layers: 40,
            heads: 32,
            heads_kv: Some(2),
            positions: 32_768,
            ..Sizes::default()
        };
        let mut plan = Self::glm(text, &sizes, tied)?;
        text.only("attention_bias", true)?;
        plan.qkv_bias = true;
        Ok(plan)
    }

    /// `GlmOcrTextConfig`.
    pub(super) fn glm_ocr(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 59_392,
            d: 1024,
            mlp: 4096,
            layers: 16,
            heads: 16,
            heads_kv: Some(8),
            positions: 131_072,
            ..Sizes::default()
        };
        let plan = Self::glm(text, &sizes, tied)?;
        text.unset("attention_bias")?;
        Ok(plan)
    }

    /// `PaddleOCRTextConfig`: biases everywhere or nowhere, and a rotation with three axes.
    pub(super) fn paddle_ocr(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 103_424,
            d: 1024,
            mlp: 3072,
            layers: 18,
            heads: 16,
            heads_kv: Some(2),
            head_dim: Some(128),
            positions: 131_072,
            tied: true,
        };
        let mut plan = Self::common(text, &sizes, tied)?;
        text.only("hidden_act", "silu")?;
        plan.norm_eps = text.or("rms_norm_eps", 1e-5)?;
        let bias: bool = text.or("use_bias", false)?;
        (plan.qkv_bias, plan.out_bias, plan.mlp_bias) = (bias, bias, bias);
        plan.ropes = vec![RopeConfig::read(text, 500_000.0)?];
        text.unset("sliding_window")?;
        // Of files written for the model's own code.
        text.only("use_3d_rope", true)?;
        text.only("rope_is_neox_style", true)?;
        text.inert(&["use_flash_attention"]);
        Ok(plan)
    }

    /// Norms around, and a rotation of neighbours, of part of a head, with three axes.
    fn glm(text: &Fields<'_>, sizes: &Sizes, tied: Option<bool>) -> Result<Self> {
        let mut plan = Self::common(text, sizes, tied)?;
        text.only("hidden_act", "silu")?;
        plan.norm_eps = text.or("rms_norm_eps", 1e-5)?;
        (plan.norms, plan.rope_style) = (Norms::Around, RopeStyle::Interleaved);
        plan.names = Names {
            around: ["post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"],
            ..LLAMA_NAMES
        };
        let mut rope = RopeConfig::read(text, 10_000.0)?;
        rope.part = rope.part.or(text.get("partial_rotary_factor")?);
        if rope.sections.is_empty() {
            rope.sections = vec![8, 12, 12];
        }
        plan.ropes = vec![rope];
        Ok(plan)
    }
}
