//! PaddleOCR-VL: a SigLIP tower with a rotation and an interpolated table of positions on pictures of any size, blocks of patches as
//! tokens, and a decoder with positions of three axes.
//!
//! After `PaddleOCRVLForConditionalGeneration` and `PaddleOCRVLImageProcessor` of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::{Ctx, Model, Processor, Result};

use crate::composed::Composed;
use crate::connector::Joined;
use crate::processor::{AreaDefaults, AreaProcessor, AreaRule, CLIP_MEAN, CLIP_STD};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "paddleocr_vl",
    model_types: &["paddleocr_vl"],
    models: "PaddleOCR-VL",
    pictures: "any size, three axes of positions",
    file: file!(),
    processor,
    load,
    spare: &["packing_position_embedding", "vision_model.head."],
};

fn processor(files: &ModelFiles) -> Result<Box<dyn Processor>> {
    let defaults = AreaDefaults {
        image_token: 100_295,
        patch: 14,
        frames: 1,
        area: (384 * 384, 1536 * 1536),
        rule: AreaRule::Paddle,
        mean: CLIP_MEAN,
        std: CLIP_STD,
        video: None,
    };
    Ok(Box::new(AreaProcessor::load(files, defaults)?))
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["image_token_id", "video_token_id", "rope_scaling"]);
    // Either configuration may tie head and embedding.
    let text = config.at_or_here("text_config");
    let tied = [&config, &text].map(|fields| fields.get::<bool>("tie_word_embeddings"));
    let [outer, own] = tied;
    let tied = match (outer?, own?) {
        (None, None) => None,
        (outer, own) => Some(outer.unwrap_or(false) || own.unwrap_or(false)),
    };
    let text = TextPlan::read(&text, &["paddleocr_vl_text", "paddleocr_vl"], tied)?;
    let vision = config.part("vision_config")?;
    let tower = VitPlan::paddle_ocr(&vision)?;
    let block = vision.size("spatial_merge_size", 2)?;
    let sizes = (tower.d, text.d);
    let root = source.checkpoint.root();
    let visual = root.at_any(&["visual.vision_model", "model.visual.vision_model", "model.visual", "visual"]);
    let tower = Vit::load(cx, &visual, tower)?;
    let connector =
        Joined::load(cx, &root.at_any(&["mlp_AR", "model.projector", "model.mlp_AR"]), block, sizes)?;
    let language = source.checkpoint.at_any(&["model.language_model", "model"]);
    let decoder = Decoder::load(cx, &language, &source.checkpoint.at("lm_head"), text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}
