//! The configuration as it is published, in the spelling of transformers.

use ocelli_engine::Result;
use serde_json::json;

use crate::fields::{Config, Fields};

/// What `model_type` is in published files; those of older models have it too.
pub(super) const OLD: &str = "deepseek_vl_v2";

/// Layers, heads, heads of keys and features of an MLP of the encoder: the published class has these whatever its files say.
const ENCODER: [usize; 4] = [24, 14, 2, 4864];

/// The configuration in the spelling of transformers, if `config` has that of published files. Errors name what no file of this model
/// says.
pub(super) fn modern(config: &Fields<'_>) -> Result<Option<Config>> {
    if config.get::<String>("model_type")?.as_deref() != Some(OLD) {
        return Ok(None);
    }
    config.only("global_view_pos", "head")?;
    config.only("tile_tag", "2D")?;
    config.inert(&["candidate_resolutions"]);
    let vision = config.part("vision_config")?;
    let name: String = vision.or("model_name", String::new())?;
    if name != "deepencoderv2" {
        return Err(vision.bad("model_name", format!("expected deepencoderv2, found `{name}`")));
    }
    vision.only("model_type", "vision")?;
    // Of a tower that the model does not have.
    vision.inert(&["mlp_ratio"]);
    let sam = vision.part("width")?.part("sam_vit_b")?;
    let encoder = vision.part("width")?.part("qwen2-0-5b")?;
    let d: usize = encoder.need("dim")?;
    let projector = config.part("projector_config")?;
    projector.only("model_type", "mlp_projector")?;
    projector.only("projector_type", "linear")?;
    projector.only("input_dim", d)?;
    let text = config.part("language_config")?;
    projector.only("n_embed", text.need::<usize>("hidden_size")?)?;
    text.only("use_mla", false)?;
    text.only("rm_head", false)?;
    text.only("lm_head", true)?;
    text.only("norm_topk_prob", false)?;
    text.only("scoring_func", "softmax")?;
    text.only("moe_layer_freq", 1)?;
    for key in ["kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"] {
        text.unset(key)?;
    }
    // Text fields come at the top once more.
    text.keys().for_each(|key| config.inert(&[key]));
    let (layers, dense): (usize, usize) =
        (text.need("num_hidden_layers")?, text.or("first_k_dense_replace", 0)?);
    let kinds: Vec<&str> =
        (0..layers.min(1 << 16)).map(|layer| if layer < dense { "dense" } else { "sparse" }).collect();
    let mut decoder = json!({ "model_type": "deepseek_ocr2_text", "mlp_layer_types": kinds });
    for key in [
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "moe_intermediate_size",
        "n_group",
        "n_routed_experts",
        "n_shared_experts",
        "num_attention_heads",
        "num_experts_per_tok",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_theta",
        "routed_scaling_factor",
        "topk_group",
        "topk_method",
        "vocab_size",
    ] {
        if let Some(value) = text.get::<serde_json::Value>(key)? {
            decoder[key] = value;
        }
    }
    let [count, heads, heads_kv, inner] = ENCODER;
    // The second number of channels in the files is that of another encoder; this one takes what it has features for.
    let channels: Vec<usize> = sam.need("downsample_channels")?;
    let first = channels.first().copied().unwrap_or(0);
    let modern = json!({
        "model_type": "deepseek_ocr2",
        "tie_word_embeddings": false,
        "vision_config": {
            "model_type": "deepseek_ocr2_vision",
            "sam_config": {
                "model_type": "deepseek_ocr2_sam_vision_model",
                "downsample_channels": [first, d],
                "global_attn_indexes": sam.need::<Vec<usize>>("global_attn_indexes")?,
                "hidden_size": sam.need::<usize>("width")?,
                "image_size": vision.need::<usize>("image_size")?,
                "num_attention_heads": sam.need::<usize>("heads")?,
                "num_hidden_layers": sam.need::<usize>("layers")?,
            },
            "encoder_config": {
                "model_type": "deepseek_ocr2_encoder",
                "hidden_size": d,
                "intermediate_size": inner,
                "num_attention_heads": heads,
                "num_hidden_layers": count,
                "num_key_value_heads": heads_kv,
                "rope_theta": 1_000_000.0,
            },
        },
        "text_config": decoder,
    });
    Ok(Some(Config::new(config.file().to_owned(), modern)))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::text::TextPlan;

    /// Fields of the published file.
    fn published() -> Value {
        json!({
            "model_type": OLD, "candidate_resolutions": [[1024, 1024]], "global_view_pos": "head", "tile_tag": "2D",
            "hidden_size": 1280, "first_k_dense_replace": 1,
            "language_config": {
                "first_k_dense_replace": 1, "hidden_size": 1280, "intermediate_size": 6848, "kv_lora_rank": null,
                "lm_head": true, "max_position_embeddings": 8192, "moe_intermediate_size": 896, "n_group": 1,
                "n_routed_experts": 64, "n_shared_experts": 2, "num_attention_heads": 10, "num_experts_per_tok": 6,
                "num_hidden_layers": 12, "num_key_value_heads": 10, "q_lora_rank": null, "qk_nope_head_dim": 0,
                "qk_rope_head_dim": 0, "rm_head": false, "topk_group": 1, "topk_method": "greedy", "use_mla": false,
                "v_head_dim": 0, "vocab_size": 129_280,
            },
            "projector_config": {
                "input_dim": 896, "model_type": "mlp_projector", "n_embed": 1280, "projector_type": "linear",
            },
            "vision_config": {
                "image_size": 1024, "mlp_ratio": 3.7362, "model_name": "deepencoderv2", "model_type": "vision",
                "width": {
                    "qwen2-0-5b": { "dim": 896 },
                    "sam_vit_b": {
                        "downsample_channels": [512, 1024], "global_attn_indexes": [2, 5, 8, 11], "heads": 12,
                        "layers": 12, "width": 768,
                    },
                },
            },
        })
    }

    #[test]
    fn the_published_file_is_read() {
        let old = Config::new("config.json".into(), published());
        let modern = modern(&old.root()).expect("fields").expect("the old spelling");
        assert_eq!(old.unread(), Vec::<String>::new());
        let root = modern.root();
        let text = root.part("text_config").expect("a part");
        let plan = TextPlan::read(&text, &["deepseek_ocr2_text"], Some(false)).expect("a decoder");
        assert_eq!((plan.d, plan.layers.len(), plan.vocab, plan.heads_kv), (1280, 12, 129_280, 10));
        assert_eq!(plan.layers.iter().filter(|layer| layer.experts).count(), 11);
        let vision = root.part("vision_config").expect("a part");
        let sam = super::super::SamPlan::read(&vision.part("sam_config").expect("a part")).expect("a tower");
        let (encoder, _) =
            super::super::encoder(&vision.part("encoder_config").expect("a part")).expect("an encoder");
        assert_eq!((sam.channels(), encoder.d, encoder.layers, encoder.heads_kv()), (896, 896, 24, 2));
    }

    #[test]
    fn another_model_of_that_type_is_refused() {
        let mut other = published();
        other["vision_config"]["model_name"] = "siglip_so400m".into();
        let error =
            modern(&Config::new("config.json".into(), other).root()).err().expect("an error").to_string();
        assert!(error.contains("vision_config.model_name: expected deepencoderv2"), "{error}");
        let plain = Config::new("config.json".into(), json!({ "model_type": "deepseek_ocr2" }));
        assert!(modern(&plain.root()).expect("fields").is_none());
    }
}
