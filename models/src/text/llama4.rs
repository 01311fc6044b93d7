//! The plan of Llama 4: layers that turn queries and keys and see a chunk of positions alone, between layers that do neither; experts
//! beside one that every token takes, in some layers or all.

use ocelli_engine::Result;
use ocelli_engine::kv::Keep;
use ocelli_kernels::ops::{RopeStyle, Scores};

use super::plan::{LLAMA_NAMES, Names, Sizes};
use super::read::layer_kinds_of;
use super::{TemperPlan, TextPlan};
use crate::fields::Fields;
use crate::layers::{ExpertsPlan, RopeConfig, RopeKind, SharedPlan};

const CHUNKED: &str = "chunked_attention";

/// Most positions that factors of queries are kept for.
const MOST_POSITIONS: usize = 1 << 26;

impl TextPlan {
    /// `Llama4TextConfig`.
    pub(super) fn llama4(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 202_048,
            d: 5120,
            mlp: 8192,
            layers: 48,
            heads: 40,
            heads_kv: Some(8),
            head_dim: Some(128),
            positions: 131_072,
            ..Sizes::default()
        };
        let mut plan = Self::common(text, &sizes, tied)?;
        text.only("hidden_act", "silu")?;
        text.inert(&["router_aux_loss_coef", "output_router_logits", "router_jitter_noise"]);
        // Fields that the reference class does not have.
        text.inert(&["for_llm_compressor", "nope_layer_interval"]);
        let bias: bool = text.or("attention_bias", false)?;
        (plan.qkv_bias, plan.out_bias) = (bias, bias);
        plan.norm_eps = text.or("rms_norm_eps", 1e-5)?;
        plan.rope_style = RopeStyle::Interleaved;
        plan.names = Names { mlp: "feed_forward", ..LLAMA_NAMES };
        let rope = RopeConfig::read(text, 500_000.0)?;
        plan.ropes = vec![RopeConfig { kind: RopeKind::Still, ..rope.clone() }, rope];
        plan.qk_bare = text.or("use_qk_norm", true)?;
        let (floor, scale) = (text.size("floor_scale", 8192)?, text.or("attn_scale", 0.1)?);
        if text.or("attn_temperature_tuning", true)? {
            if plan.max_positions > MOST_POSITIONS {
                let what = format!("expected at most {MOST_POSITIONS}, found {}", plan.max_positions);
                return Err(text.bad("max_position_embeddings", what));
            }
            plan.temper = Some(TemperPlan { floor, scale });
        }
        plan.read_turns(text)?;
        plan.read_sparse(text)?;
        Ok(plan)
    }

    /// Which layers turn queries and keys, and which see chunks alone.
    fn read_turns(&mut self, text: &Fields<'_>) -> Result<()> {
        let count = self.layers.len();
        let interval = text.size("no_rope_layer_interval", 4)?;
        let stated: Vec<u8> = text.or("no_rope_layers", Vec::new())?;
        let turns: Vec<bool> = if stated.is_empty() {
            (0..count).map(|i| !(i + 1).is_multiple_of(interval)).collect()
        } else {
            stated.iter().map(|&turns| turns != 0).collect()
        };
        if turns.len() < count {
            let what = format!("expected {count} entries, found {}", turns.len());
            return Err(text.bad("no_rope_layers", what));
        }
        let chunked = layer_kinds_of(text, count, CHUNKED, |i| turns[i])?;
        let size = text.size("attention_chunk_size", 8192)?;
        self.split_by(&chunked, Keep::Chunk(size), 0);
        for (layer, turns) in self.layers.iter_mut().zip(turns) {
            layer.rope = usize::from(turns);
        }
        Ok(())
    }

    /// Which layers have experts, and what these are.
    fn read_sparse(&mut self, text: &Fields<'_>) -> Result<()> {
        let (inner, step) = (self.mlp, text.size("interleave_moe_layer_step", 1)?);
        self.mlp = text.size("intermediate_size_mlp", 16_384)?;
        self.experts = Some(ExpertsPlan {
            top: text.size("num_experts_per_tok", 1)?,
            scores: Scores::Sigmoid,
            normalize: false,
            scale_input: true,
            transposed: Some(true),
            router: "router",
            stack: "experts",
            shared: Some(SharedPlan { name: "shared_expert", inner, gate: None }),
            ..ExpertsPlan::softmax(text.size("num_local_experts", 16)?, self.d, inner)
        });
        let sparse: Option<Vec<usize>> = text.get("moe_layers")?;
        for (i, layer) in self.layers.iter_mut().enumerate() {
            layer.mlp = self.mlp;
            layer.experts = match &sparse {
                Some(sparse) => sparse.contains(&i),
                None => (i + 1).is_multiple_of(step),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ocelli_engine::kv::Keep;
    use serde_json::json;

    use super::super::TextPlan;
    use crate::fields::Config;
    use crate::layers::RopeKind;

    fn read(text: serde_json::Value) -> ocelli_engine::Result<TextPlan> {
        let config = Config::new("config.json".into(), text);
        let plan = TextPlan::read(&config.root(), &["llama4_text"], Some(false))?;
        assert_eq!(config.unread(), Vec::<String>::new());
        Ok(plan)
    }

    /// As Maverick's: experts in every other layer, every fourth one without a rotation.
    #[test]
    fn layers_take_turns() {
        let plan = read(json!({"model_type": "llama4_text", "num_hidden_layers": 8, "interleave_moe_layer_step": 2, "use_qk_norm": false,
            "no_rope_layers": [], "nope_layer_interval": 4, "rope_scaling": null, "rope_theta": 500_000.0}))
        .unwrap();
        let of = |i: usize| (plan.layers[i].experts, plan.layers[i].rope, plan.layers[i].kv);
        assert_eq!((of(0), of(3), of(4)), ((false, 1, (1, 0)), (true, 0, (0, 0)), (false, 1, (1, 3))));
        assert_eq!((plan.kv.0[0].keep, plan.kv.0[1].keep), (Keep::All, Keep::Chunk(8192)));
        assert_eq!((plan.kv.0[0].layers, plan.kv.0[1].layers, plan.layers[0].mlp), (2, 6, 16_384));
        assert_eq!((plan.ropes[0].kind == RopeKind::Still, plan.qk_bare), (true, false));
    }

    #[test]
    fn errors_name_the_field() {
        let error = |text: serde_json::Value| read(text).unwrap_err().to_string();
        assert!(
            error(json!({"no_rope_layers": [1, 0]})).contains("no_rope_layers: expected 48 entries, found 2")
        );
        let kinds = json!({"num_hidden_layers": 1, "layer_types": ["sliding_attention"]});
        assert!(error(kinds).contains("found sliding_attention"));
        assert!(error(json!({"max_position_embeddings": 1_u64 << 40})).contains("max_position_embeddings"));
    }
}
