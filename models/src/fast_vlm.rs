//! FastVLM: a tower of convolutions, two linear layers and a Qwen2 decoder.
//!
//! After `FastVlmForConditionalGeneration`, `TimmWrapperModel` and `LlavaProcessor` of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::{Ctx, Model, Processor, Result};

use crate::composed::Composed;
use crate::connector::{Projector, ProjectorPlan};
use crate::fields::{Config, Fields};
use crate::processor::{SquareProcessor, added_token};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{ByTile, FastVit, FastVitPlan, activation};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "fast_vlm",
    model_types: &["fast_vlm"],
    models: "FastVLM (as transformers has it)",
    pictures: "one square",
    file: file!(),
    processor,
    load,
    spare: &["num_batches_tracked"],
};

/// The token that stands for a picture where the configuration does not say.
const TOKEN: u32 = 151_646;

fn image_token(config: &Fields<'_>) -> Result<u32> {
    Ok(config.any(&["image_token_index", "image_token_id"])?.unwrap_or(TOKEN))
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    image_token(&config)?;
    config.inert(&["image_seq_length"]);
    config.only("vision_feature_layer", -1)?;
    config.only("vision_feature_select_strategy", "full")?;
    let tower = FastVitPlan::read(&config.part("vision_config")?)?;
    let text = TextPlan::read(&config.part("text_config")?, &["qwen2"], config.get("tie_word_embeddings")?)?;
    let act = activation(&config, "projector_hidden_act", "gelu")?;
    let bias = config.or("multimodal_projector_bias", true)?;
    let plan = ProjectorPlan::plain((tower.d(), text.d), act, bias, (0, false));
    let root = source.checkpoint.at_any(&["model", ""]);
    let tower = FastVit::load(cx, &root.at("vision_tower.timm_model"), tower)?;
    let connector = Projector::load(cx, &root.at("multi_modal_projector"), plan)?;
    let head = source.checkpoint.at_any(&["lm_head", "language_model.lm_head"]);
    let language = root.at("language_model").at_any(&["model", ""]);
    let decoder = Decoder::load(cx, &language, &head, text, config.file())?;
    Ok(Composed::of_eye(FAMILY.name, source, ByTile { tower, connector }, decoder))
}

fn processor(files: &ModelFiles) -> Result<Box<dyn Processor>> {
    let config = Config::load(files, "config.json")?;
    let root = config.root();
    let plan = FastVitPlan::read(&root.part("vision_config")?)?;
    let id = image_token(&root)?;
    let token = (added_token(files, id)?, id);
    Ok(Box::new(SquareProcessor::load(files, (plan.stride(), 0), token)?))
}
