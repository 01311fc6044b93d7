//! Plans of towers that differ from CLIP's in names and sizes alone: BLIP's, BLIP-2's, Janus's and Ovis 2's.

use ocelli_engine::Result;
use ocelli_kernels::ops::NormKind;

use super::plan::{CLIP_NAMES, Mlp, Names, VitPlan, activation, side};
use crate::fields::Fields;

impl VitPlan {
    /// `BlipVisionConfig`.
    pub fn blip(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["blip_vision_model"])?;
        Self::blips(vision, Self { image: 384, norm_eps: 1e-5, ..Self::siglip_base() })
    }

    /// `JanusVisionConfig`, whose text part takes the rows after the last norm.
    pub fn janus(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["janus_vision_model"])?;
        vision.unset("use_qk_norm")?;
        vision.inert(&["hidden_dropout_rate", "projection_dropout"]);
        let d = vision.size("hidden_size", 1024)?;
        let ratio: f64 = vision.or("mlp_ratio", 4.0)?;
        if !(f64::MIN_POSITIVE..=64.0).contains(&ratio) {
            return Err(vision.bad("mlp_ratio", format!("expected more than 0, at most 64, found {ratio}")));
        }
        let names = Names { out: "self_attn.projection_layer", ..CLIP_NAMES };
        let default = Self {
            d,
            mlp: (d as f64 * ratio) as usize,
            layers: 24,
            heads: 16,
            image: 384,
            qkv_bias: vision.or("attention_bias", true)?,
            names,
            ..Self::siglip_base()
        };
        Self::common(vision, default, "gelu")
    }

    /// `Blip2VisionConfig`.
    pub fn blip2(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["blip_2_vision_model"])?;
        vision.only("qkv_bias", true)?;
        let default = Self { d: 1408, mlp: 6144, layers: 39, heads: 16, patch: 14, ..Self::siglip_base() };
        Self::blips(vision, default)
    }

    fn blips(vision: &Fields<'_>, default: Self) -> Result<Self> {
        let names = Names {
            qkv: &["self_attn.qkv"],
            out: "self_attn.projection",
            positions: "embeddings.position_embedding",
            batched: true,
            ..CLIP_NAMES
        };
        Self::common(vision, Self { class_row: true, names, ..default }, "gelu")
    }

    /// `Ovis2VisionConfig`.
    pub fn ovis2(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["ovis2_vision", "ovis2"])?;
        vision.only("num_channels", 3)?;
        let names = Names {
            norm1: "rms_norm1",
            norm2: "rms_norm2",
            qkv: &["attention.q_proj", "attention.k_proj", "attention.v_proj"],
            out: "attention.out_proj",
            pre_norm: Some("embeddings.rms_norm"),
            post_norm: Some("rms_norm"),
            ..CLIP_NAMES
        };
        let layers = vision.or("num_hidden_layers", 24)?;
        let bias = vision.or("qkv_bias", false)?;
        Self {
            d: vision.size("hidden_size", 1024)?,
            mlp: vision.size("intermediate_size", 2816)?,
            layers,
            used: layers,
            heads: vision.size("num_attention_heads", 8)?,
            image: side(vision, "image_size", 224)?,
            patch: side(vision, "patch_size", 14)?,
            norm: NormKind::Rms,
            norm_eps: vision.or("rms_norm_eps", 1e-5)?,
            qkv_bias: bias,
            out_bias: bias,
            mlp_bias: vision.or("mlp_bias", false)?,
            act: activation(vision, "hidden_act", "silu")?,
            mlp_kind: Mlp::Gated { module: "ffn" },
            norm_first: true,
            whole: false,
            names,
            ..Self::siglip_base()
        }
        .check(vision)
    }
}
