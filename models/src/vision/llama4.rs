//! The plan of Llama 4's tower.

use ocelli_engine::Result;

use super::VitPlan;
use super::plan::{CLIP_NAMES, Mlp, Names, Places};
use crate::fields::Fields;
use crate::layers::{RopeConfig, RopeKind};

const NAMES: Names = Names {
    patch: "patch_embedding.linear",
    layers: "model.layers",
    norm1: "input_layernorm",
    norm2: "post_attention_layernorm",
    out: "self_attn.o_proj",
    pre_norm: Some("layernorm_pre"),
    post_norm: Some("layernorm_post"),
    class: "class_embedding",
    positions: "positional_embedding_vlm",
    ..CLIP_NAMES
};

impl VitPlan {
    /// `Llama4VisionConfig`.
    pub fn llama4(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["llama4_vision_model"])?;
        // The reference's norms have the default of their class, whatever the field says.
        vision.inert(&["norm_eps", "projector_dropout"]);
        vision.inert(&["vision_feature_layer", "vision_feature_select_strategy"]);
        let rope = RopeConfig::read(vision, 10_000.0)?;
        if rope.kind != RopeKind::Default || rope.part.is_some() {
            return Err(vision.bad("rope_parameters", "expected a rotation of the default kind"));
        }
        let default = Self {
            d: 768,
            mlp: 5632,
            layers: 34,
            heads: 16,
            image: 448,
            patch: 14,
            patch_bias: false,
            class_row: true,
            places: Places::Counted { theta: rope.theta as f32 },
            norm_eps: 1e-5,
            mlp_kind: Mlp::Plain { up: "mlp.fc1", down: "mlp.fc2" },
            normed: true,
            whole: false,
            names: NAMES,
            ..Self::siglip_base()
        };
        let plan = Self::common(vision, default, "gelu")?;
        vision.only("hidden_act", "gelu")?;
        if plan.head_dim() % 4 != 0 {
            let what = format!("expected heads of a multiple of 4 features, found {}", plan.head_dim());
            return Err(vision.bad("num_attention_heads", what));
        }
        Ok(plan)
    }
}
