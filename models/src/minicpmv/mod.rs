//! MiniCPM-V 4.6: a tower that merges windows of patches on its way, slices of any size, and Qwen3.5's decoder.
//!
//! After `MiniCPMV4_6ForConditionalGeneration` of transformers.

mod processor;

use ocelli_engine::{Ctx, Model, Result};
use ocelli_kernels::ops::Activation;

use crate::composed::Composed;
use crate::connector::{Halved, Projector, ProjectorPlan};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "minicpmv4_6",
    model_types: &["minicpmv4_6"],
    models: "MiniCPM-V 4.6 (`16x`)",
    pictures: "the whole picture and slices, any size; frames of videos",
    file: file!(),
    processor: |files| Ok(Box::new(processor::Processor::load(files)?)),
    load,
    spare: &["mtp."],
};

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["image_token_id", "video_token_id", "image_size", "patch_size"]);
    config.unset("drop_vision_last_layer")?;
    config.only("downsample_mode", "16x")?;
    config.only("merge_kernel_size", vec![2, 2])?;
    config.only("merger_times", 1)?;
    let vision = config.part("vision_config")?;
    let tower = VitPlan::minicpmv(&vision, config.or("insert_layer_id", 6)?)?;
    let tied = config.get("tie_word_embeddings")?;
    let text = TextPlan::read(&config.part("text_config")?, &["qwen3_5_text"], tied)?;
    let plain = ProjectorPlan::plain((tower.d, text.d), Activation::GeluErf, true, (0, false));
    let plan = ProjectorPlan { between: 4 * tower.d, block: 2, norm: Some(("pre_norm", 1e-6)), ..plain };
    let root = source.checkpoint.at_any(&["model", ""]);
    let tower = Vit::load(cx, &root.at("vision_tower"), tower)?;
    let connector = Halved(Projector::load(cx, &root.at("merger.mlp.0"), plan)?);
    let decoder =
        Decoder::load(cx, &root.at("language_model"), &source.checkpoint.at("lm_head"), text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}
