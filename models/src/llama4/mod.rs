//! Llama 4: a tower whose patches have a table and a rotation, an adapter on blocks of patches, and a decoder with experts.
//!
//! After `Llama4ForConditionalGeneration` of transformers.

mod processor;

use ocelli_engine::{Ctx, Model, Result};
use ocelli_kernels::ops::Activation;

use crate::composed::Composed;
use crate::connector::{Adapter, ProjectorPlan};
use crate::fields::Fields;
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "llama4",
    model_types: &["llama4"],
    models: "Llama 4 Scout and Maverick",
    pictures: "tiles and the whole picture",
    file: file!(),
    processor: |files| Ok(Box::new(processor::Processor::load(files)?)),
    load,
    spare: &[],
};

/// Side of the blocks of patches that become one token.
fn block(vision: &Fields<'_>, tower: &VitPlan) -> Result<usize> {
    let ratio: f64 = vision.or("pixel_shuffle_ratio", 0.5)?;
    let block = if ratio > 0.0 { (1.0 / ratio).round() as usize } else { 0 };
    if block == 0 || block as f64 * ratio != 1.0 || !tower.side().is_multiple_of(block) {
        let what = format!("expected one part of {} patches a side, found {ratio}", tower.side());
        return Err(vision.bad("pixel_shuffle_ratio", what));
    }
    Ok(block)
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["boi_token_index", "eoi_token_index", "image_token_index"]);
    let vision = config.part("vision_config")?;
    let tower = VitPlan::llama4(&vision)?;
    let text = config.part("text_config")?;
    let text = TextPlan::read(&text, &["llama4_text"], config.get("tie_word_embeddings")?)?;
    let block = block(&vision, &tower)?;
    let width = vision.size("projector_output_dim", 4096)?;
    for key in ["projector_input_dim", "vision_output_dim"] {
        vision.only(key, width)?;
    }
    // The reference's layer has none, whatever the field says.
    vision.inert(&["multi_modal_projector_bias"]);
    vision.only("intermediate_size", tower.d * block * block)?;
    let plan = ProjectorPlan {
        block,
        act_after: true,
        names: ["mlp.fc1", "mlp.fc2"],
        ..ProjectorPlan::plain((tower.d, width), Activation::GeluErf, false, (tower.extra_rows(), false))
    };
    let root = source.checkpoint.at_any(&["", "model"]);
    let eye = root.at("vision_model");
    let tower = Vit::load(cx, &eye, tower)?;
    let out = root.at("multi_modal_projector.linear_1");
    let connector = Adapter::load(cx, &eye.at("vision_adapter"), plan, &out, text.d)?;
    let language = root.at("language_model").at_any(&["model", ""]);
    let head = source.checkpoint.at_any(&["language_model.lm_head", "lm_head"]);
    let decoder = Decoder::load(cx, &language, &head, text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}
