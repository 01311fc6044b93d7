//! Plans of the decoders of Qwen3-VL.

use ocelli_engine::Result;

use super::TextPlan;
use super::plan::{Sizes, full_layers_only};
use crate::fields::Fields;
use crate::layers::{ExpertsPlan, RopeConfig};

impl TextPlan {
    /// `Qwen3VLTextConfig`: normalized queries and keys, and a rotation whose axes take turns.
    pub(super) fn qwen3_vl(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 151_936,
            d: 4096,
            mlp: 22_016,
            layers: 32,
            heads: 32,
            heads_kv: Some(32),
            head_dim: Some(128),
            positions: 128_000,
            ..Sizes::default()
        };
        Self::qwen3_of(text, &sizes, tied)
    }

    /// `Qwen3VLMoeTextConfig`: the same with experts.
    pub(super) fn qwen3_vl_moe(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 151_936,
            d: 2048,
            mlp: 5632,
            layers: 24,
            heads: 16,
            heads_kv: Some(16),
            positions: 128_000,
            tied: true,
            ..Sizes::default()
        };
        let mut plan = Self::qwen3_of(text, &sizes, tied)?;
        // The reference divides by the sum whatever the field says.
        text.only("norm_topk_prob", true)?;
        text.inert(&["router_aux_loss_coef", "output_router_logits"]);
        let inner = text.size("moe_intermediate_size", 1408)?;
        let experts = text.any(&["num_experts", "num_local_experts"])?.unwrap_or(60);
        plan.experts = Some(ExpertsPlan {
            top: text.size("num_experts_per_tok", 4)?,
            ..ExpertsPlan::softmax(experts, plan.d, inner)
        });
        let step = text.size("decoder_sparse_step", 1)?;
        let dense: Vec<usize> = text.or("mlp_only_layers", Vec::new())?;
        for (i, layer) in plan.layers.iter_mut().enumerate() {
            layer.experts = experts > 0 && !dense.contains(&i) && (i + 1).is_multiple_of(step);
        }
        Ok(plan)
    }

    fn qwen3_of(text: &Fields<'_>, sizes: &Sizes, tied: Option<bool>) -> Result<Self> {
        let mut plan = Self::common(text, sizes, tied)?;
        text.only("hidden_act", "silu")?;
        let bias: bool = text.or("attention_bias", false)?;
        (plan.qkv_bias, plan.out_bias, plan.qk_norm) = (bias, bias, true);
        let mut rope = RopeConfig::read(text, 500_000.0)?;
        // The reference interleaves whatever the field says.
        rope.interleaved = true;
        if rope.sections.is_empty() {
            rope.sections = vec![24, 20, 20];
        }
        plan.ropes = vec![rope];
        text.unset("use_sliding_window")?;
        text.inert(&["sliding_window", "max_window_layers"]);
        full_layers_only(text)?;
        Ok(plan)
    }
}
