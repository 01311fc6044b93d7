//! GLM-4.1V, GLM-4.6V and GLM-OCR: towers with rotations on pictures of any size, a convolution that makes one token of a block, and
//! decoders with norms around and positions of three axes. The former two have a table of positions too.
//!
//! After `Glm4vForConditionalGeneration`, `Glm46VForConditionalGeneration`, `GlmOcrForConditionalGeneration` and
//! `Glm4vImageProcessor` of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::{Ctx, Model, Processor, Result};

use crate::composed::Composed;
use crate::connector::Downsample;
use crate::processor::{AreaDefaults, AreaProcessor, AreaRule, CLIP_MEAN, CLIP_STD, VideoRule};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan};

/// GLM-4.1V's row in the registry.
pub const GLM4V: Family = Family {
    name: "glm4v",
    model_types: &["glm4v"],
    models: "GLM-4.1V",
    pictures: "any size, three axes of positions; videos",
    file: file!(),
    processor: |files| processor(files, 151_343, VideoRule::Whole),
    load: |source, cx| load(GLM4V.name, source, cx),
    spare: &[],
};

/// GLM-4.6V's row in the registry.
pub const GLM46V: Family = Family {
    name: "glm46v",
    model_types: &["glm46v"],
    models: "GLM-4.6V",
    pictures: "any size, three axes of positions; videos",
    file: file!(),
    processor: |files| processor(files, 151_343, VideoRule::Tenths),
    load: |source, cx| load(GLM46V.name, source, cx),
    spare: &[],
};

/// GLM-OCR's row in the registry. Its files have a layer more, which guesses tokens ahead.
pub const GLM_OCR: Family = Family {
    name: "glm_ocr",
    model_types: &["glm_ocr"],
    models: "GLM-OCR",
    pictures: "any size, three axes of positions; videos",
    file: file!(),
    processor: |files| processor(files, 59_280, VideoRule::Tenths),
    load: |source, cx| load(GLM_OCR.name, source, cx),
    spare: &["language_model.layers.16."],
};

fn processor(files: &ModelFiles, image_token: u32, video: VideoRule) -> Result<Box<dyn Processor>> {
    let defaults = AreaDefaults {
        image_token,
        patch: 14,
        frames: 2,
        area: (112 * 112, 28 * 28 * 15_000),
        rule: AreaRule::Glm,
        mean: CLIP_MEAN,
        std: CLIP_STD,
        video: Some(video),
    };
    Ok(Box::new(AreaProcessor::load(files, defaults)?))
}

fn load(family: &'static str, source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["image_token_id", "video_token_id", "image_start_token_id", "image_end_token_id"]);
    config.inert(&["video_start_token_id", "video_end_token_id", "rope_scaling"]);
    let ocr = family == GLM_OCR.name;
    let tied = config.get("tie_word_embeddings")?;
    let types: &[&str] = if ocr { &["glm_ocr_text"] } else { &["glm4v_text", "glm4v"] };
    let text = TextPlan::read(&config.at_or_here("text_config"), types, tied)?;
    let vision = config.part("vision_config")?;
    let tower = VitPlan::glm(&vision, ocr)?;
    let out = vision.size("out_hidden_size", if ocr { 1536 } else { 4096 })?;
    if out != text.d {
        return Err(vision.bad("out_hidden_size", format!("expected hidden_size {}, found {out}", text.d)));
    }
    let inner = if ocr { out.saturating_mul(3) } else { vision.size("intermediate_size", 13_696)? };
    let block = vision.size("spatial_merge_size", 2)?;
    let (sizes, act) = ((tower.d, text.d), tower.act);
    let visual = source.checkpoint.at_any(&["model.visual", "visual"]);
    let tower = Vit::load(cx, &visual, tower)?;
    let connector = Downsample::load(cx, &visual, block, sizes, inner, act)?;
    let language = source.checkpoint.at_any(&["model.language_model", "model"]);
    let head = source.checkpoint.at_any(&["lm_head", "model.lm_head"]);
    let decoder = Decoder::load(cx, &language, &head, text, config.file())?;
    Ok(Composed::of(family, source, tower, connector, decoder))
}
