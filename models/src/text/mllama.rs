//! The plan of Llama 3.2 Vision's decoder: layers of Llama, and between them some that attend to pictures.

use ocelli_engine::Result;
use ocelli_engine::kv::{Keep, KvGroup, KvLayout};

use super::plan::{LLAMA_NAMES, Sizes};
use super::{CrossPlan, LayerPlan, Mix, TextPlan};
use crate::fields::Fields;
use crate::layers::RopeConfig;

/// Rows of the embedding beyond those that logits are given for.
const MORE: usize = 8;

impl TextPlan {
    /// `MllamaTextConfig`.
    pub fn mllama(text: &Fields<'_>) -> Result<Self> {
        text.model_type(&["mllama_text_model"])?;
        let sizes = Sizes {
            vocab: 128_256,
            d: 4096,
            mlp: 14_336,
            layers: 40,
            heads: 32,
            heads_kv: Some(8),
            positions: 131_072,
            ..Sizes::default()
        };
        let mut plan = Self::common(text, &sizes, None)?;
        text.only("hidden_act", "silu")?;
        plan.norm_eps = text.or("rms_norm_eps", 1e-5)?;
        plan.ropes = vec![RopeConfig::read(text, 500_000.0)?];
        plan.embed_more = MORE;
        let crossing: Vec<usize> = text.or("cross_attention_layers", vec![3, 8, 13, 18, 23, 28, 33, 38])?;
        let count = plan.layers.len();
        if crossing.iter().any(|&layer| layer >= count) || !crossing.is_sorted_by(|a, b| a < b) {
            let what = format!("expected ascending numbers below {count}, found {crossing:?}");
            return Err(text.bad("cross_attention_layers", what));
        }
        let own = KvGroup { layers: count - crossing.len(), ..plan.kv.0[0] };
        let memory = KvGroup { layers: crossing.len(), keep: Keep::Memory, ..own };
        plan.kv = KvLayout(vec![own, memory]);
        let mut next = [0, 0];
        for (number, layer) in plan.layers.iter_mut().enumerate() {
            let kind = usize::from(crossing.contains(&number));
            let mix = if kind == 1 { Mix::Cross } else { Mix::Attention };
            *layer = LayerPlan { mix, kv: (kind, next[kind]), ..*layer };
            next[kind] += 1;
        }
        plan.cross_qk_norm = true;
        plan.cross = Some(CrossPlan {
            memory: plan.d,
            module: "cross_attn",
            qkv: LLAMA_NAMES.qkv,
            out: LLAMA_NAMES.out,
            norm: "",
            gates: ["cross_attn_attn_gate", "cross_attn_mlp_gate"],
        });
        Ok(plan)
    }
}
