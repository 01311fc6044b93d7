//! LFM2-VL: a SigLIP 2 tower for tiles of any size, a pixel unshuffle and a decoder of short convolutions and attention.
//!
//! After `Lfm2VlForConditionalGeneration` of transformers.

mod processor;

use ocelli_engine::{Ctx, Model, Result};

use crate::composed::Composed;
use crate::connector::{Projector, ProjectorPlan};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan, activation};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "lfm2_vl",
    model_types: &["lfm2_vl"],
    models: "LFM2-VL, LFM2.5-VL",
    pictures: "tiles and the whole picture, any size",
    file: file!(),
    processor: |files| Ok(Box::new(processor::Processor::load(files)?)),
    load,
    spare: &["vision_tower.vision_model.head.", "vision_tower.head."],
};

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    // Of the image processor, which has a file of its own.
    config.inert(&[
        "do_image_splitting",
        "encoder_patch_size",
        "tile_size",
        "use_thumbnail",
        "max_pixels_tolerance",
    ]);
    config.inert(&["min_image_tokens", "max_image_tokens", "min_tiles", "max_tiles", "max_num_patches"]);
    config.inert(&["image_token_id", "image_token_index", "use_image_special_tokens"]);
    let tower = VitPlan::siglip2(&config.part("vision_config")?)?;
    // The reference ties head and embedding unless it is told not to.
    let tied = config.any(&["tie_embedding", "tie_word_embeddings"])?.or(Some(true));
    let text = TextPlan::read(&config.part("text_config")?, &["lfm2"], tied)?;
    let act = activation(&config, "projector_hidden_act", "gelu")?;
    let bias = config.or("projector_bias", true)?;
    let normed = config.or("projector_use_layernorm", true)?;
    let connector = ProjectorPlan {
        between: config.size("projector_hidden_size", 2560)?,
        block: config.size("downsample_factor", 2)?,
        norm: normed.then_some(("layer_norm", 1e-5)),
        ..ProjectorPlan::plain((tower.d, text.d), act, bias, (0, false))
    };
    let root = source.checkpoint.at_any(&["model", ""]);
    let tower = Vit::load(cx, &root.at("vision_tower").at_any(&["vision_model", ""]), tower)?;
    let connector = Projector::load(cx, &root.at("multi_modal_projector"), connector)?;
    let language = root.at("language_model").at_any(&["model", ""]);
    let head = source.checkpoint.at_any(&["lm_head", "language_model.lm_head"]);
    let decoder = Decoder::load(cx, &language, &head, text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}
