//! The decoder of DeepSeek-OCR 2: DeepSeek-V2 with plain attention.

use ocelli_engine::Result;

use super::TextPlan;
use super::plan::Sizes;
use crate::fields::Fields;
use crate::layers::{ExpertsPlan, RopeConfig, SharedPlan};

impl TextPlan {
    /// `DeepseekOcr2TextConfig`: experts by a softmax whose weights stay as they are, beside one that every token takes.
    pub(super) fn deepseek_ocr2(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 102_400,
            d: 4096,
            mlp: 11_008,
            layers: 32,
            heads: 32,
            positions: 2048,
            ..Sizes::default()
        };
        let mut plan = Self::common(text, &sizes, tied)?;
        text.only("hidden_act", "silu")?;
        text.only("head_dim", plan.d / plan.heads_q)?;
        text.only("topk_method", "greedy")?;
        text.unset("mlp_bias")?;
        text.inert(&["n_group", "topk_group", "pretraining_tp", "output_router_logits"]);
        let bias: bool = text.or("attention_bias", false)?;
        (plan.qkv_bias, plan.out_bias) = (bias, bias);
        plan.ropes = vec![RopeConfig::read(text, 10_000.0)?];
        let inner = text.size("moe_intermediate_size", 1407)?;
        let shared = text.size("n_shared_experts", 2)?;
        let experts = text.any(&["n_routed_experts", "num_experts"])?.unwrap_or(64);
        plan.experts = Some(ExpertsPlan {
            top: text.need("num_experts_per_tok")?,
            normalize: false,
            scale: text.or("routed_scaling_factor", 1.0)?,
            shared: Some(SharedPlan {
                name: "shared_experts",
                inner: inner.saturating_mul(shared),
                gate: None,
            }),
            ..ExpertsPlan::softmax(experts, plan.d, inner)
        });
        let kinds: Vec<String> = text.need("mlp_layer_types")?;
        if kinds.len() != plan.layers.len() {
            let what = format!("expected {} entries, found {}", plan.layers.len(), kinds.len());
            return Err(text.bad("mlp_layer_types", what));
        }
        for (layer, kind) in plan.layers.iter_mut().zip(&kinds) {
            layer.experts = match kind.as_str() {
                "sparse" => true,
                "dense" => false,
                other => {
                    let what = format!("expected dense or sparse, found {other}");
                    return Err(text.bad("mlp_layer_types", what));
                }
            };
        }
        Ok(plan)
    }
}
