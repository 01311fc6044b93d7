//! LLaVA-NeXT and LLaVA-OneVision: LLaVA on pictures of several resolutions, with the padding taken out of their features.
//!
//! After `LlavaNextForConditionalGeneration` and `LlavaOnevisionForConditionalGeneration` of transformers and their processors.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::{Ctx, Model, Result};

use crate::composed::Composed;
use crate::connector::{Projector, ProjectorPlan};
use crate::fields::{Config, Fields};
use crate::processor::{ANYRES_KEYS, AnyresPlan, AnyresProcessor, ImageFields, added_token};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan, activation};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "llava_next",
    model_types: &["llava_next", "llava_onevision"],
    models: "LLaVA-NeXT, LLaVA-OneVision",
    pictures: "the whole picture, and fitted into the best of several resolutions; frames of videos (OneVision)",
    file: file!(),
    processor: |files| Ok(Box::new(processor(files)?)),
    load,
    spare: &["vision_model.embeddings.position_ids", "vision_model.head."],
};

/// Most tiles that features of LLaVA-OneVision fill.
const MOST: &str = "anyres_max_9";

/// The tower, and whether the model is LLaVA-OneVision.
fn read(config: &Fields<'_>) -> Result<(VitPlan, bool)> {
    let newer = config.model_type(FAMILY.model_types)? == "llava_onevision";
    let vision = config.part("vision_config")?;
    vision.inert(&["vocab_size"]);
    let kind: Option<String> = vision.get("model_type")?;
    let clip = kind.as_deref().map_or(!newer, |kind| kind == "clip_vision_model");
    let mut tower = if clip { VitPlan::clip(&vision)? } else { VitPlan::siglip(&vision)? };
    let layer: i64 = config.or("vision_feature_layer", if newer { -1 } else { -2 })?;
    if tower.take_layer(layer).is_none() {
        let what = format!("expected one of {} layers, found {layer}", tower.layers);
        return Err(config.bad("vision_feature_layer", what));
    }
    config.only("vision_feature_select_strategy", if tower.class_row { "default" } else { "full" })?;
    Ok((tower, newer))
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&[
        "ignore_index",
        "image_grid_pinpoints",
        "image_token_id",
        "image_token_index",
        "use_image_newline_parameter",
        "video_token_id",
        "video_token_index",
        "vision_aspect_ratio",
        "vocab_size",
    ]);
    let (tower, _) = read(&config)?;
    let tied = config.get("tie_word_embeddings")?;
    let types = &["llama", "mistral", "qwen2", "qwen3"];
    let text = TextPlan::read(&config.part("text_config")?, types, tied)?;
    let act = activation(&config, "projector_hidden_act", "gelu")?;
    let bias = config.or("multimodal_projector_bias", true)?;
    let plan = ProjectorPlan::plain((tower.d, text.d), act, bias, (tower.extra_rows(), false));
    let at = source.layout();
    let tower = Vit::load(cx, &at.tower, tower)?;
    let connector = Projector::load(cx, &at.projector, plan)?;
    let connector = connector.with_newline(cx, &at.root, "image_newline")?;
    let decoder = Decoder::load(cx, &at.language, &at.head, text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}

fn processor(files: &ModelFiles) -> Result<AnyresProcessor> {
    let config = Config::load(files, "config.json")?;
    let root = config.root();
    let (tower, newer) = read(&root)?;
    let id: u32 =
        root.any(&["image_token_index", "image_token_id"])?.unwrap_or(if newer { 151_646 } else { 32_000 });
    let side = tower.image;
    let most: String = root.or("vision_aspect_ratio", MOST.into())?;
    let number = most.strip_prefix("anyres_max_").and_then(|number| number.parse().ok()).filter(|n| *n > 0);
    if newer && number.is_none() {
        return Err(root.bad("vision_aspect_ratio", format!("expected anyres_max_N, found {most}")));
    }
    let plan = AnyresPlan {
        resolutions: resolutions(&root, side, newer)?,
        side: (side, tower.side()),
        lone: newer,
        most: number.filter(|_| newer),
        token: (added_token(files, id)?, id),
        video: if newer { video(files, &root)? } else { None },
    };
    AnyresProcessor::new(ImageFields::load(files, ANYRES_KEYS)?, plan)
}

/// What prepares frames of LLaVA-OneVision, and what stands for a video; none where the tokenizer has no such token.
fn video(files: &ModelFiles, config: &Fields<'_>) -> Result<Option<(ImageFields, (String, u32))>> {
    let id: u32 = config.any(&["video_token_index", "video_token_id"])?.unwrap_or(151_647);
    let fields = ImageFields::load_video(files, ANYRES_KEYS)?;
    Ok(added_token(files, id).ok().map(|mark| (fields, (mark, id))))
}

/// Rows and columns of pixels that pictures are fitted into, multiples of `side`; `newer`: what LLaVA-OneVision takes where `config`
/// says nothing.
pub(crate) fn resolutions(config: &Fields<'_>, side: usize, newer: bool) -> Result<Vec<(usize, usize)>> {
    let resolutions = match config.get::<Vec<(usize, usize)>>("image_grid_pinpoints")? {
        Some(stated) => stated,
        None if newer => (1..=6).flat_map(|rows| (1..=6).map(move |cols| (rows * 384, cols * 384))).collect(),
        None => vec![(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)],
    };
    if resolutions.iter().any(|(rows, cols)| !rows.is_multiple_of(side) || !cols.is_multiple_of(side)) {
        return Err(config
            .bad("image_grid_pinpoints", format!("expected multiples of {side}, found {resolutions:?}")));
    }
    Ok(resolutions)
}
