//! CLIP: a tower for pictures, whose class row is taken, and a causal one for texts, whose end token is taken.
//!
//! After `CLIPModel`, `CLIPProcessor` and `CLIPImageProcessor` of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::vlm::{Chance, Scoring};
use ocelli_engine::{Ctx, Model, Result};
use serde_json::Value;

use crate::dual::{ClassRow, Dual, DualProcessor, Pictures, Row, TextPlan, TextRules, TextTower, number};
use crate::fields::{Config, Fields};
use crate::processor::SquareProcessor;
use crate::registry::{Family, Source};
use crate::vision::{Vit, VitPlan};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "clip",
    model_types: &["clip"],
    models: "CLIP (`embed`, `classify`)",
    pictures: "one square",
    file: file!(),
    processor: |files| Ok(Box::new(processor(files)?)),
    load,
    spare: &[],
};

/// The text tower of `CLIPTextConfig`.
fn text_plan(config: &Fields<'_>) -> Result<TextPlan> {
    let text = config.at("text_config");
    text.model_type(&["clip_text_model"])?;
    let default = VitPlan { d: 512, mlp: 2048, heads: 8, norm_eps: 1e-5, ..VitPlan::siglip_base() };
    let ids = match text.get::<Value>("eos_token_id")? {
        None => vec![49_407],
        Some(Value::Array(_)) => text.or("eos_token_id", Vec::new())?,
        Some(_) => vec![text.or("eos_token_id", 0)?],
    };
    Ok(TextPlan {
        vocab: text.size("vocab_size", 49_408)?,
        positions: text.size("max_position_embeddings", 77)?,
        layers: VitPlan::text(&text, default, "quick_gelu")?,
        causal: true,
        // What older files say, whatever the token is.
        row: if ids == [2] { Row::Largest } else { Row::First(ids) },
        out: config.size("projection_dim", 512)?,
        bias: false,
    })
}

/// Older files state parts twice; the second must say the same, as it is the one that the reference class takes.
fn same_twice(config: &Fields<'_>) -> Result<()> {
    for part in ["text_config", "vision_config"] {
        let again = config.at(&format!("{part}_dict"));
        for key in again.keys() {
            if let Some(value) = again.get::<Value>(key)? {
                config.at(part).only(key, value)?;
            }
        }
    }
    Ok(())
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    same_twice(&config)?;
    config.inert(&["logit_scale_init_value"]);
    let vision = config.at("vision_config");
    for part in [&vision, &config.at("text_config")] {
        part.inert(&["tie_word_embeddings", "vocab_size"]);
    }
    let mut tower = VitPlan::clip(&vision)?;
    tower.names.post_norm = None;
    let text = text_plan(&config)?;
    let root = source.checkpoint.root();
    let visual = root.at("vision_model");
    let pool =
        ClassRow::load(cx, &visual.at("post_layernorm"), &root.at("visual_projection"), &tower, text.out)?;
    let tower = Vit::load(cx, &visual, tower)?;
    let text = TextTower::load(cx, &root.at("text_model"), &root.at("text_projection"), text)?;
    let scale = number(source, "logit_scale", &[])?.exp();
    let scoring = Scoring { scale, bias: 0.0, chance: Chance::OneOf };
    Ok(Dual::of(FAMILY.name, source, tower, pool, text, scoring))
}

fn processor(files: &ModelFiles) -> Result<DualProcessor> {
    let config = Config::load(files, "config.json")?;
    let positions = text_plan(&config.root())?.positions;
    let patch = VitPlan::clip(&config.root().at("vision_config"))?.patch;
    Ok(DualProcessor {
        pictures: Pictures::Square(SquareProcessor::load(files, (patch, 0), (String::new(), 0))?),
        text: TextRules::load(files, positions, false)?,
    })
}
