//! SigLIP and SigLIP 2: towers for pictures and texts, of which a learned query and the last token are taken. SigLIP 2 takes pictures
//! of any size; those of its checkpoints that take one size are of the class of the first.
//!
//! After `SiglipModel`, `Siglip2Model` and their processors of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::vlm::{Chance, Scoring};
use ocelli_engine::{Ctx, Model, Result};

use crate::dual::{
    AttentionPool, Dual, DualProcessor, Patches, Pictures, Row, TextPlan, TextRules, TextTower, number,
};
use crate::fields::{Config, Fields};
use crate::processor::SquareProcessor;
use crate::registry::{Family, Source};
use crate::vision::{Places, Vit, VitPlan};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "siglip",
    model_types: &["siglip", "siglip2"],
    models: "SigLIP, SigLIP 2 (`embed`, `classify`)",
    pictures: "one square; any size",
    file: file!(),
    processor: |files| Ok(Box::new(processor(files)?)),
    load,
    spare: &[],
};

/// Both towers, of either version.
fn plans(config: &Fields<'_>) -> Result<(VitPlan, TextPlan)> {
    let (vision, text) = (config.at("vision_config"), config.at("text_config"));
    let tower = match config.model_type(FAMILY.model_types)? {
        "siglip2" => VitPlan::siglip2_pooled(&vision)?,
        _ => VitPlan::siglip_pooled(&vision)?,
    };
    text.model_type(&["siglip_text_model", "siglip2_text_model"])?;
    let layers = VitPlan::text(&text, VitPlan::siglip_base(), "gelu_pytorch_tanh")?;
    let out = text.size("projection_size", layers.d)?;
    if out != tower.d {
        let what = format!("expected {}, the width of the vision tower, found {out}", tower.d);
        return Err(text.bad("projection_size", what));
    }
    let plan = TextPlan {
        vocab: text.size("vocab_size", 32_000)?,
        positions: text.size("max_position_embeddings", 64)?,
        layers,
        causal: false,
        row: Row::Last,
        out,
        bias: true,
    };
    Ok((tower, plan))
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let (tower, text) = plans(&source.config.root())?;
    let root = source.checkpoint.root();
    let visual = root.at("vision_model");
    let pool = AttentionPool::load(cx, &visual.at("head"), &tower)?;
    let tower = Vit::load(cx, &visual, tower)?;
    let language = root.at("text_model");
    let text = TextTower::load(cx, &language, &language.at("head"), text)?;
    let scoring = Scoring {
        scale: number(source, "logit_scale", &[1])?.exp(),
        bias: number(source, "logit_bias", &[1])?,
        chance: Chance::Each,
    };
    Ok(Dual::of(FAMILY.name, source, tower, pool, text, scoring))
}

fn processor(files: &ModelFiles) -> Result<DualProcessor> {
    let config = Config::load(files, "config.json")?;
    let (tower, text) = plans(&config.root())?;
    let pictures = if tower.places == Places::Resized {
        Pictures::Patches(Patches::load(files)?)
    } else {
        Pictures::Square(SquareProcessor::siglip(files, (tower.patch, 0), (String::new(), 0))?)
    };
    Ok(DualProcessor { pictures, text: TextRules::load(files, text.positions, true)? })
}
