//! SmolVLM, SmolVLM2 and Idefics3: a SigLIP tower, a pixel-shuffle connector and a Llama decoder.
//!
//! After `Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration` of transformers, which differ in the
//! prompt's layout alone.

pub mod processor;

use ocelli_engine::{Ctx, Model, Result};

use crate::composed::Composed;
use crate::connector::PixelShuffle;
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "smolvlm",
    model_types: &["smolvlm", "idefics3"],
    models: "SmolVLM, SmolVLM2, Idefics3",
    pictures: "tiles and the whole picture; frames of videos",
    file: file!(),
    processor: |files| Ok(Box::new(processor::Processor::load(files)?)),
    load,
    spare: &[],
};

/// Tensor names may begin with `model.` or not.
fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["image_token_id", "vocab_size", "perceiver_config", "qk_layer_norms"]);
    let tower = VitPlan::idefics(&config.part("vision_config")?)?;
    let text = config.part("text_config")?;
    text.inert(&["perceiver_config"]);
    let text = TextPlan::read(&text, &["llama", "VLlama3"], config.get("tie_word_embeddings")?)?;
    let factor = config.size("scale_factor", 2)?;
    if !tower.side().is_multiple_of(factor) {
        let what = format!("expected a divisor of {} patches a side, found {factor}", tower.side());
        return Err(config.bad("scale_factor", what));
    }
    let root = source.checkpoint.at_any(&["model", "", "model.model"]);
    let sizes = (tower.d, text.d);
    let tower = Vit::load(cx, &root.at("vision_model"), tower)?;
    let connector = PixelShuffle::load(cx, &root.at("connector"), factor, sizes.0, sizes.1)?;
    let head = source.checkpoint.at("lm_head");
    let decoder = Decoder::load(cx, &root.at("text_model"), &head, text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}
