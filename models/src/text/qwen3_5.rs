//! The plan of Qwen3.5: layers of the gated delta rule, and every fourth one attention with gates.

use ocelli_engine::Result;
use ocelli_engine::kv::{Blocks, Keep, KvGroup, KvLayout};

use super::plan::{DeltaPlan, FULL, LayerPlan, Mix, Sizes, TextPlan};
use crate::fields::Fields;
use crate::layers::{ExpertsPlan, RopeConfig, SharedPlan};

const LINEAR: &str = "linear_attention";

impl TextPlan {
    /// `Qwen3_5TextConfig`.
    pub(super) fn qwen3_5(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 248_320,
            d: 4096,
            mlp: 12_288,
            layers: 32,
            heads: 16,
            heads_kv: Some(4),
            head_dim: Some(256),
            positions: 32_768,
            ..Sizes::default()
        };
        Self::qwen3_5_of(text, &sizes, tied)
    }

    /// `Qwen3_5MoeTextConfig`: the same with experts in every layer, and one that every row takes, with a gate.
    pub(super) fn qwen3_5_moe(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 248_320,
            d: 2048,
            layers: 40,
            heads: 16,
            heads_kv: Some(2),
            head_dim: Some(256),
            positions: 32_768,
            // No layer has an MLP alone.
            mlp: 1,
            ..Sizes::default()
        };
        let mut plan = Self::qwen3_5_of(text, &sizes, tied)?;
        // The reference divides by the sum whatever the field says.
        text.only("norm_topk_prob", true)?;
        text.inert(&["router_aux_loss_coef", "output_router_logits"]);
        let experts = text.size("num_experts", 256)?;
        let inner = text.size("shared_expert_intermediate_size", 512)?;
        plan.experts = Some(ExpertsPlan {
            top: text.size("num_experts_per_tok", 8)?,
            shared: Some(SharedPlan { name: "shared_expert", inner, gate: Some("shared_expert_gate") }),
            transposed: Some(false),
            ..ExpertsPlan::softmax(experts, plan.d, text.size("moe_intermediate_size", 512)?)
        });
        plan.layers.iter_mut().for_each(|layer| layer.experts = true);
        Ok(plan)
    }

    /// What both have.
    fn qwen3_5_of(text: &Fields<'_>, sizes: &Sizes, tied: Option<bool>) -> Result<Self> {
        let mut plan = Self::common(text, sizes, tied)?;
        text.only("hidden_act", "silu")?;
        text.only("attn_output_gate", true)?;
        text.only("mamba_ssm_dtype", "float32")?;
        // What the rows of the delta rule are multiplied by.
        let gate: String = text.or("output_gate_type", "swish".into())?;
        if !matches!(&*gate, "swish" | "silu") {
            return Err(text.bad("output_gate_type", format!("expected swish, found {gate}")));
        }
        text.unset("mlp_only_layers")?;
        // Layers that guess several tokens are not run.
        text.inert(&["mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"]);
        let bias: bool = text.or("attention_bias", false)?;
        (plan.qkv_bias, plan.out_bias) = (bias, bias);
        (plan.qk_norm, plan.norm_offset, plan.output_gate) = (true, 1.0, true);
        let mut rope = RopeConfig::read(text, 10_000_000.0)?;
        let part: f64 = text.or("partial_rotary_factor", 0.25)?;
        if !(part > 0.0 && part <= 1.0) {
            return Err(
                text.bad("partial_rotary_factor", format!("expected more than 0, at most 1, found {part}"))
            );
        }
        rope.part = rope.part.or(Some(part));
        // The reference interleaves whatever the field says.
        rope.interleaved = true;
        if rope.sections.is_empty() {
            rope.sections = vec![11, 11, 10];
        }
        plan.ropes = vec![rope];
        let delta = DeltaPlan {
            heads_k: text.size("linear_num_key_heads", 16)?,
            heads_v: text.size("linear_num_value_heads", 32)?,
            d_k: text.size("linear_key_head_dim", 128)?,
            d_v: text.size("linear_value_head_dim", 128)?,
            taps: text.size("linear_conv_kernel_dim", 4)?,
        };
        if !delta.heads_v.is_multiple_of(delta.heads_k) {
            let what = format!("expected a multiple of linear_num_key_heads {}", delta.heads_k);
            return Err(text.bad("linear_num_value_heads", format!("{what}, found {}", delta.heads_v)));
        }
        let most = ocelli_kernels::ops::MOST_TAPS;
        if !(2..=most).contains(&delta.taps) {
            let what = format!("expected 2 to {most}, found {}", delta.taps);
            return Err(text.bad("linear_conv_kernel_dim", what));
        }
        plan.delta = Some(delta);
        plan.place(text, delta)?;
        Ok(plan)
    }

    /// Which layers attend and which follow the delta rule, and where each keeps what it keeps.
    fn place(&mut self, text: &Fields<'_>, delta: DeltaPlan) -> Result<()> {
        let count = self.layers.len();
        let interval = text.size("full_attention_interval", 4)?;
        let kinds: Vec<String> = match text.get("layer_types")? {
            Some(kinds) => kinds,
            None => {
                let full = |i: usize| (i + 1).is_multiple_of(interval);
                (0..count).map(|i| if full(i) { FULL } else { LINEAR }.to_owned()).collect()
            }
        };
        if kinds.len() != count {
            return Err(text.bad("layer_types", format!("expected {count} entries, found {}", kinds.len())));
        }
        // Keys and values, inputs of convolutions, states; a group without layers is none.
        let first = usize::from(kinds.iter().any(|kind| kind == FULL));
        let (mut attending, mut linear) = (0, 0);
        for (layer, kind) in self.layers.iter_mut().zip(&kinds) {
            match kind.as_str() {
                FULL => {
                    *layer = LayerPlan { kv: (0, attending), ..*layer };
                    attending += 1;
                }
                LINEAR => {
                    let mix = Mix::Delta { state: (first + 1, linear) };
                    *layer = LayerPlan { mix, kv: (first, linear), ..*layer };
                    linear += 1;
                }
                other => {
                    let what = format!("expected {FULL} or {LINEAR}, found {other}");
                    return Err(text.bad("layer_types", what));
                }
            }
        }
        let blocks = Blocks::Whole;
        let state = |heads: usize, head_dim: usize| KvGroup {
            layers: linear,
            heads,
            head_dim,
            keep: Keep::State,
            blocks,
        };
        let (heads, head_dim) = (self.heads_kv, self.head_dim);
        let groups = [
            KvGroup { layers: attending, heads, head_dim, keep: Keep::All, blocks },
            state(delta.taps - 1, delta.channels()),
            state(delta.heads_v * delta.d_k, delta.d_v),
        ];
        self.kv = KvLayout(groups.into_iter().filter(|group| group.layers > 0).collect());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ocelli_engine::kv::{Blocks, Keep, KvGroup};
    use serde_json::json;

    use super::super::{Mix, TextPlan};
    use crate::fields::Config;

    /// A small one of the published kind: sections left to the class, the share that is turned beside the rotation too.
    #[test]
    fn every_fourth_layer_attends() {
        let text = json!({"model_type": "qwen3_5_text", "num_hidden_layers": 8, "full_attention_interval": 4, "hidden_size": 1024,
            "intermediate_size": 3584, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "attn_output_gate": true,
            "linear_num_key_heads": 16, "linear_num_value_heads": 16, "mamba_ssm_dtype": "float32", "mlp_only_layers": [],
            "mtp_num_hidden_layers": 1, "partial_rotary_factor": 0.25,
            "rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 10_000_000, "rope_type": "default"}});
        let config = Config::new("config.json".into(), text);
        let plan = TextPlan::read(&config.root(), &["qwen3_5_text"], Some(true)).unwrap();
        assert_eq!(config.unread(), Vec::<String>::new());
        assert_eq!(plan.layers[3].mix, Mix::Attention);
        assert_eq!((plan.layers[4].mix, plan.layers[4].kv), (Mix::Delta { state: (2, 3) }, (1, 3)));
        assert_eq!((plan.layers[7].kv, plan.axes()), ((0, 1), 3));
        let blocks = Blocks::Whole;
        let state = |heads, head_dim| KvGroup { layers: 6, heads, head_dim, keep: Keep::State, blocks };
        assert_eq!(plan.kv.0[1..], [state(3, 6144), state(2048, 128)]);
        assert_eq!((plan.ropes[0].part, &plan.ropes[0].sections[..]), (Some(0.25), &[11, 11, 10][..]));
    }

    #[test]
    fn errors_name_the_field() {
        let read = |text: serde_json::Value| {
            let config = Config::new("config.json".into(), text);
            TextPlan::read(&config.root(), &["qwen3_5_text"], None).unwrap_err().to_string()
        };
        let error = read(json!({"linear_num_value_heads": 24}));
        assert!(error.contains("linear_num_value_heads: expected a multiple"), "{error}");
        let error = read(json!({"linear_conv_kernel_dim": 9}));
        assert!(error.contains("linear_conv_kernel_dim: expected 2 to 8, found 9"), "{error}");
        let error = read(json!({"output_gate_type": "sigmoid"}));
        assert!(error.contains("output_gate_type: expected swish, found sigmoid"), "{error}");
        let error = read(json!({"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}));
        assert!(error.contains("found sliding_attention"), "{error}");
        let error = read(json!({"rope_parameters": {"partial_rotary_factor": 2.0}}));
        assert!(error.contains("partial_rotary_factor: expected more than 0"), "{error}");
    }
}
