//! The layout of Microsoft's own files: another spelling of the tower's configuration, other names, tokens that code adds.

use ocelli_engine::Result;
use serde_json::{Value, json};

use crate::fields::{Config, Fields};

/// The tower's configuration in the spelling of transformers, if `config` is of Microsoft's layout.
pub(super) fn vision(config: &Fields<'_>) -> Result<Option<Config>> {
    let vision = config.part("vision_config")?;
    if !vision.has("dim_embed") {
        return Ok(None);
    }
    vision.model_type(&["davit"])?;
    // Of the trainer, and of the loss.
    vision.inert(&["enable_checkpoint"]);
    config.inert(&["ignore_index", "vocab_size"]);
    let text = config.part("text_config")?;
    text.inert(&["classif_dropout"]);
    for key in ["add_bias_logits", "add_final_layer_norm", "normalize_before"] {
        text.unset(key)?;
    }
    let frames = vision.part("visual_temporal_embedding")?;
    frames.only("type", "COSINE")?;
    let places = vision.part("image_pos_embed")?;
    places.only("type", "learned_abs_2d")?;
    // The mean of all places, then each of them: of one frame the mean over time is the frame.
    vision.only("image_feature_source", vec!["spatial_avg_pool", "temporal_avg_pool"])?;
    let mut modern = json!({
        "embed_dim": vision.need::<Vec<usize>>("dim_embed")?,
        "max_position_embeddings": places.size("max_pos_embeddings", 50)?,
        "max_temporal_embeddings": frames.size("max_temporal_embeddings", 100)?,
    });
    for key in [
        "depths",
        "drop_path_rate",
        "mlp_ratio",
        "num_groups",
        "num_heads",
        "patch_padding",
        "patch_prenorm",
        "patch_size",
        "patch_stride",
        "projection_dim",
        "qkv_bias",
        "window_size",
    ] {
        if let Some(value) = vision.get::<Value>(key)? {
            modern[key] = value;
        }
    }
    Ok(Some(Config::new(config.file().to_owned(), modern)))
}

/// What the processor of that layout adds to the tokenizer, in the order of ids.
pub(super) fn added_tokens() -> Vec<String> {
    let pair = |name: &str| [format!("<{name}>"), format!("</{name}>")];
    let places = (0..1000).map(|bin| format!("<loc_{bin}>"));
    // One of these is misspelt there.
    let kinds = ["cap", "ncap", "dcap", "grounding", "seg"].into_iter().flat_map(pair);
    let regions = ["region_cap", "region_to_desciption", "proposal", "poly"].into_iter().flat_map(pair);
    let before = ["od", "ocr"].into_iter().flat_map(pair).chain(places).chain(kinds);
    before.chain(["<sep>".to_owned()]).chain(regions).chain(["<and>".to_owned()]).collect()
}

/// Phrases that have no place, which that layout has in its code.
pub(super) fn banned() -> Vec<String> {
    BANNED.split(", ").map(str::to_owned).collect()
}

const BANNED: &str = "I, a, a group, a set, all, an, another, any, anybody, anyone, anything, each, each other, everybody, everyone, \
    everything, few, he, her, hers, herself, him, himself, his, image, images, it, its, itself, lots, many, me, mine, \
    myself, nobody, none, one, one another, oneself, other objects, our, ours, ourselves, several, she, some, somebody, \
    someone, something, that, the, the image, their, theirs, them, themselves, these, they, this, those, us, we, what, \
    which, who, whom, whose, you, your, yours, yourself, yourselves";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_end_with_the_vocabulary() {
        let tokens = added_tokens();
        // BART has 50265 tokens, and the published embeddings have 51289 rows.
        assert_eq!(50_265 + tokens.len(), 51_289);
        let id = |token: &str| 50_265 + tokens.iter().position(|known| known == token).unwrap_or(0);
        assert_eq!(
            (id("</od>"), id("<loc_0>"), id("<loc_999>"), id("<cap>")),
            (50_266, 50_269, 51_268, 51_269)
        );
        assert_eq!((id("<sep>"), id("<region_cap>"), id("<and>")), (51_279, 51_280, 51_288));
    }

    #[test]
    fn another_tower_is_refused() {
        let told = |vision: Value| {
            let config = json!({ "vision_config": vision, "text_config": {} });
            super::vision(&Config::new("config.json".into(), config).root()).err().map(|e| e.to_string())
        };
        assert_eq!(told(json!({ "embed_dim": [16] })), None);
        let part = |kind: &str| {
            json!({ "dim_embed": [16], "visual_temporal_embedding": { "type": "COSINE" },
                    "image_pos_embed": { "type": kind } })
        };
        assert_eq!(told(part("learned_abs_2d")), None);
        let error = told(part("sine")).expect("an error");
        assert!(error.contains("vision_config.image_pos_embed.type: expected \"learned_abs_2d\""), "{error}");
        let mut other = part("learned_abs_2d");
        other["image_feature_source"] = json!(["last_frame"]);
        let error = told(other).expect("an error");
        assert!(error.contains("vision_config.image_feature_source: expected"), "{error}");
    }
}
