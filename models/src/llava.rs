//! LLaVA 1.5: a CLIP tower whose last layer but one is taken, two linear layers and a Llama decoder.
//!
//! After `LlavaForConditionalGeneration`, `LlavaProcessor` and `CLIPImageProcessor` of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::{Ctx, Model, Processor, Result};

use crate::composed::Composed;
use crate::connector::{Projector, ProjectorPlan};
use crate::fields::Config;
use crate::pixtral;
use crate::processor::{SquareProcessor, added_token};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan, activation};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "llava",
    model_types: &["llava"],
    models: "LLaVA 1.5 (CLIP towers); Pixtral as `llava`",
    pictures: "one square; any size, lines that end",
    file: file!(),
    processor,
    load,
    spare: &["vision_model.embeddings.position_ids"],
};

/// Whether the row before the patches is kept.
fn keeps_class_row(config: &crate::fields::Fields<'_>) -> Result<bool> {
    let strategy: String = config.or("vision_feature_select_strategy", "default".into())?;
    match strategy.as_str() {
        "default" => Ok(false),
        "full" => Ok(true),
        other => {
            Err(config
                .bad("vision_feature_select_strategy", format!("expected default or full, found {other}")))
        }
    }
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    if pixtral::is_tower(&config)? {
        return pixtral::load(source, cx);
    }
    config.inert(&["image_token_index", "image_token_id", "ignore_index", "vocab_size"]);
    let vision = config.part("vision_config")?;
    vision.inert(&["vocab_size"]);
    let mut tower = VitPlan::clip(&vision)?;
    let layer: i64 = config.or("vision_feature_layer", -2)?;
    if tower.take_layer(layer).is_none() {
        return Err(config
            .bad("vision_feature_layer", format!("expected one of {} layers, found {layer}", tower.layers)));
    }
    let text = TextPlan::read(
        &config.part("text_config")?,
        &["llama", "qwen2"],
        config.get("tie_word_embeddings")?,
    )?;
    let act = activation(&config, "projector_hidden_act", "gelu")?;
    let bias = config.or("multimodal_projector_bias", true)?;
    let rows = (tower.extra_rows(), keeps_class_row(&config)?);
    let plan = ProjectorPlan::plain((tower.d, text.d), act, bias, rows);
    let root = source.checkpoint.at_any(&["model", ""]);
    let root = if root.at("multi_modal_projector").exists() { root } else { source.checkpoint.root() };
    let tower = Vit::load(cx, &root.at("vision_tower").at_any(&["vision_model", ""]), tower)?;
    let connector = Projector::load(cx, &root.at("multi_modal_projector"), plan)?;
    let language = root.at("language_model");
    let head = source.checkpoint.at_any(&["language_model.lm_head", "lm_head"]);
    let decoder = Decoder::load(cx, &language.at_any(&["model", ""]), &head, text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}

fn processor(files: &ModelFiles) -> Result<Box<dyn Processor>> {
    let config = Config::load(files, "config.json")?;
    let root = config.root();
    if let (Some(tower), false) = (root.get::<String>("mm_vision_tower")?, root.has("vision_config")) {
        let what = format!(
            "the tower is in another checkpoint, {tower}: expected the layout of transformers, as `llava-hf` publishes it"
        );
        return Err(root.bad("mm_vision_tower", what));
    }
    if pixtral::is_tower(&root)? {
        return Ok(Box::new(pixtral::Processor::load(files)?));
    }
    let tower = VitPlan::clip(&root.part("vision_config")?)?;
    let id: u32 = root.any(&["image_token_index", "image_token_id"])?.unwrap_or(32_000);
    let extra = if keeps_class_row(&root)? { tower.extra_rows() } else { 0 };
    let token = added_token(files, id)?;
    Ok(Box::new(SquareProcessor::load(files, (tower.patch, extra), (token, id))?))
}
