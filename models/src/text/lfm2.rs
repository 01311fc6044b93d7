//! The plan of LFM2: short convolutions with gates between layers of attention.

use ocelli_engine::Result;
use ocelli_engine::kv::{Blocks, Keep, KvGroup, KvLayout};

use super::plan::{ConvPlan, FULL, LLAMA_NAMES, LayerPlan, Mix, Names, Sizes, TextPlan};
use crate::fields::Fields;
use crate::layers::RopeConfig;

const CONV: &str = "conv";

const NAMES: Names = Names {
    norm: "embedding_norm",
    norm1: "operator_norm",
    norm2: "ffn_norm",
    mlp: "feed_forward",
    projections: ["w1", "w3", "w2"],
    qk_norms: ["q_layernorm", "k_layernorm"],
    out: "out_proj",
    ..LLAMA_NAMES
};

impl TextPlan {
    /// `Lfm2Config`.
    pub(super) fn lfm2(text: &Fields<'_>, tied: Option<bool>) -> Result<Self> {
        let sizes = Sizes {
            vocab: 65_536,
            d: 2560,
            mlp: 12_288,
            layers: 32,
            heads: 32,
            heads_kv: Some(8),
            positions: 128_000,
            tied: true,
            ..Sizes::default()
        };
        let own: Option<bool> = text.get("tie_embedding")?;
        let mut plan = Self::common(text, &sizes, tied.or(own))?;
        let width = mlp(text, plan.mlp)?;
        plan.mlp = width;
        plan.layers.iter_mut().for_each(|layer| layer.mlp = width);
        plan.norm_eps = text.or("norm_eps", 1e-5)?;
        (plan.qk_norm, plan.names) = (true, NAMES);
        plan.ropes = vec![RopeConfig::read(text, 1_000_000.0)?];
        for key in ["block_dim", "conv_dim", "conv_dim_out"] {
            text.only(key, plan.d)?;
        }
        text.only("num_heads", plan.heads_q)?;
        for key in ["block_use_swiglu", "use_pos_enc"] {
            text.only(key, true)?;
        }
        text.inert(&["block_norm_eps", "block_mlp_init_scale", "block_out_init_scale"]);
        text.inert(&["block_use_xavier_init", "conv_use_xavier_init"]);
        let taps = text.size("conv_L_cache", 3)?;
        if !(2..=ocelli_kernels::ops::MOST_TAPS).contains(&taps) {
            let most = ocelli_kernels::ops::MOST_TAPS;
            return Err(text.bad("conv_L_cache", format!("expected 2 to {most}, found {taps}")));
        }
        plan.conv = Some(ConvPlan { taps, bias: text.or("conv_bias", false)? });

        let count = plan.layers.len();
        let attends: Option<Vec<usize>> = text.get("full_attn_idxs")?;
        let kinds: Vec<String> = match text.get("layer_types")? {
            Some(kinds) => kinds,
            None => {
                let full = |i: usize| attends.as_ref().is_none_or(|list| list.contains(&i));
                (0..count).map(|i| if full(i) { FULL } else { CONV }.to_owned()).collect()
            }
        };
        if kinds.len() != count {
            return Err(text.bad("layer_types", format!("expected {count} entries, found {}", kinds.len())));
        }
        // The first group has keys and values, the second states; a group without layers is none.
        let states = usize::from(kinds.iter().any(|kind| kind == FULL));
        let mut layers = [0, 0];
        for (layer, kind) in plan.layers.iter_mut().zip(&kinds) {
            let (of, group, mix) = match kind.as_str() {
                FULL => (0, 0, Mix::Attention),
                CONV => (1, states, Mix::ShortConv),
                other => {
                    let what = format!("expected {FULL} or {CONV}, found {other}");
                    return Err(text.bad("layer_types", what));
                }
            };
            *layer = LayerPlan { mix, kv: (group, layers[of]), ..*layer };
            layers[of] += 1;
        }
        let (heads, head_dim, blocks) = (plan.heads_kv, plan.head_dim, Blocks::Whole);
        let groups = [
            KvGroup { layers: layers[0], heads, head_dim, keep: Keep::All, blocks },
            KvGroup { layers: layers[1], heads: taps - 1, head_dim: plan.d, keep: Keep::State, blocks },
        ];
        plan.kv = KvLayout(groups.into_iter().filter(|group| group.layers > 0).collect());
        Ok(plan)
    }
}

/// Features between the layers of an MLP: what the configuration says, or two thirds of it, rounded up.
fn mlp(text: &Fields<'_>, size: usize) -> Result<usize> {
    let size = text.get("block_ff_dim")?.unwrap_or(size);
    let factor: f64 = text.or("block_ffn_dim_multiplier", 1.0)?;
    let multiple = text.size("block_multiple_of", 256)?;
    if !text.or("block_auto_adjust_ff_dim", true)? {
        return Ok(size);
    }
    let scaled = (factor * (2 * size / 3) as f64) as usize;
    match scaled.next_multiple_of(multiple) {
        size @ 1..=0x4000_0000 => Ok(size),
        found => Err(text.bad("block_ffn_dim_multiplier", format!("an MLP of {found} features"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Mix, TextPlan};
    use crate::fields::Config;

    /// LFM2 1.2B as it is published: sizes under two names, the MLP's rounded up.
    #[test]
    fn published_fields() {
        let kinds = ["conv", "conv", "full_attention", "conv"];
        let text = json!({"model_type": "lfm2", "block_auto_adjust_ff_dim": true, "block_dim": 2048, "block_ff_dim": 12288,
            "block_ffn_dim_multiplier": 1.0, "block_mlp_init_scale": 1.0, "block_multiple_of": 256, "block_norm_eps": 1e-5,
            "block_out_init_scale": 1.0, "block_use_swiglu": true, "block_use_xavier_init": true, "conv_L_cache": 3,
            "conv_bias": false, "conv_dim": 2048, "conv_dim_out": 2048, "conv_use_xavier_init": true, "hidden_size": 2048,
            "intermediate_size": 12288, "layer_types": kinds, "max_position_embeddings": 128_000, "norm_eps": 1e-5,
            "num_attention_heads": 32, "num_heads": 32, "num_hidden_layers": 4, "num_key_value_heads": 8,
            "rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"}, "use_pos_enc": true, "vocab_size": 65536});
        let config = Config::new("config.json".into(), text);
        let plan = TextPlan::read(&config.root(), &["lfm2"], Some(true)).unwrap();
        assert_eq!(config.unread(), Vec::<String>::new());
        assert_eq!((plan.mlp, plan.head_dim), (8192, 64));
        assert_eq!((plan.layers[3].mix, plan.layers[3].kv), (Mix::ShortConv, (1, 2)));
        assert_eq!((plan.kv.0[1].heads, plan.kv.0[1].head_dim, plan.kv.0[1].layers), (2, 2048, 3));
    }

    #[test]
    fn convolutions_alone_keep_no_keys() {
        let text = json!({"num_hidden_layers": 2, "full_attn_idxs": [], "conv_L_cache": 4});
        let plan = TextPlan::read(&Config::new("config.json".into(), text).root(), &["lfm2"], None).unwrap();
        assert_eq!(plan.kv.0.len(), 1);
        assert_eq!((plan.layers[1].kv, plan.kv.0[0].heads), ((0, 1), 3));
        let text = json!({"num_hidden_layers": 1, "conv_L_cache": 1});
        let read = TextPlan::read(&Config::new("config.json".into(), text).root(), &["lfm2"], None);
        assert!(read.unwrap_err().to_string().contains("conv_L_cache: expected 2 to 8, found 1"));
    }
}
