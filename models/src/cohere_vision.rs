//! Aya Vision and Cohere's Command A Vision: a SigLIP tower, a gated projector on blocks of patches and a Cohere 2 decoder.
//!
//! After `AyaVisionForConditionalGeneration` and `Cohere2VisionForConditionalGeneration` of transformers and their processors.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::{Ctx, Error, Model, Result};
use ocelli_kernels::ops::Activation;
use serde_json::Value;

use crate::composed::Composed;
use crate::connector::{Projector, ProjectorPlan};
use crate::fields::{Config, Fields};
use crate::processor::{
    CLIP_MEAN, CLIP_STD, CanvasPlan, CanvasProcessor, ImageFields, least_enlarged, nearest_aspect,
    special_token,
};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "cohere_vision",
    model_types: &["aya_vision", "cohere2_vision"],
    models: "Aya Vision, Command A Vision",
    pictures: "tiles and the whole picture",
    file: file!(),
    processor: |files| Ok(Box::new(processor(files)?)),
    load,
    spare: &["vision_model.head.", "vision_tower.head."],
};

/// Whether the model is Aya Vision.
fn is_aya(config: &Fields<'_>) -> Result<bool> {
    Ok(config.model_type(FAMILY.model_types)? == "aya_vision")
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["image_token_id", "image_token_index", "vocab_size"]);
    let aya = is_aya(&config)?;
    let mut tower = VitPlan::siglip(&config.part("vision_config")?)?;
    if aya {
        config.only("vision_feature_select_strategy", "full")?;
        let layer: i64 = config.or("vision_feature_layer", -1)?;
        if tower.take_layer(layer).is_none() {
            let what = format!("expected one of {} layers, found {layer}", tower.layers);
            return Err(config.bad("vision_feature_layer", what));
        }
    }
    let tied = config.get("tie_word_embeddings")?.or(Some(true));
    let mut text = TextPlan::read(&config.part("text_config")?, &["cohere2"], tied)?;
    // The reference's classes for pictures give logits as they are, unlike those for text.
    text.logit_scale = 1.0;
    let block = config.size("downsample_factor", 2)?;
    let between = config.size("alignment_intermediate_size", if aya { text.d } else { 36_864 })?;
    if !tower.side().is_multiple_of(block) || !between.is_multiple_of(2) {
        let what = format!("expected a divisor of {} patches a side, found {block}", tower.side());
        return Err(config.bad("downsample_factor", what));
    }
    let plan = ProjectorPlan {
        between,
        gated: true,
        block,
        norm: if aya { Some(("layernorm", config.or("adapter_layer_norm_eps", 1e-6)?)) } else { None },
        ..ProjectorPlan::plain((tower.d, text.d), Activation::Silu, true, (0, false))
    };
    let at = source.layout();
    let tower = Vit::load(cx, &at.tower, tower)?;
    let connector = Projector::load(cx, &at.projector, plan)?;
    let decoder = Decoder::load(cx, &at.language, &at.head, text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}

/// Fields beside the common ones.
const KEYS: &[&str] = &[
    "crop_to_patches",
    "downsample_factor",
    "end_of_img_token",
    "image_token",
    "img_line_break_token",
    "img_patch_token",
    "img_size",
    "max_patches",
    "min_patches",
    "patch_size",
    "start_of_img_token",
    "tile_global_token",
    "tile_token",
];

fn processor(files: &ModelFiles) -> Result<CanvasProcessor> {
    let config = Config::load(files, "config.json")?;
    let aya = is_aya(&config.root())?;
    let fields = ImageFields::load(files, KEYS)?;
    let tokenizer = files.json::<Value>("tokenizer_config.json")?;
    let word = |key: &str, usual: &str| {
        let stated = if aya { fields.value(key).and_then(Value::as_str) } else { None };
        let known = || if aya { None } else { special_token(tokenizer.as_ref(), key) };
        stated.map(str::to_owned).or_else(known).unwrap_or_else(|| usual.to_owned())
    };
    let side = |key: &str, usual: usize| Ok::<_, Error>(fields.pixels(key)?.unwrap_or(usual));
    let (mark, patch, across, words) = if aya {
        let words = vec![
            word("start_of_img_token", "<|START_OF_IMG|>"),
            word("tile_token", "TILE"),
            word("tile_global_token", "TILE_GLOBAL"),
            word("end_of_img_token", "<|END_OF_IMG|>"),
        ];
        let across = side("img_size", 364)? / (side("patch_size", 28)? * side("downsample_factor", 1)?);
        (word("image_token", "<image>"), word("img_patch_token", "<|IMG_PATCH|>"), across, words)
    } else {
        let words = vec![
            word("boi_token", "<|START_OF_IMG|>"),
            word("img_line_break_token", "<|IMG_LINE_BREAK|>"),
            word("eoi_token", "<|END_OF_IMG|>"),
        ];
        let image = word("image_token", "<|IMG_PATCH|>");
        (image.clone(), image, side("patch_size", 16)?, words)
    };
    let id = token_id(files, &patch)?;
    let plan = CanvasPlan {
        side: if aya { 384 } else { 512 },
        cuts: true,
        grid: if aya { nearest_aspect } else { least_enlarged },
        unless: None,
        mean: CLIP_MEAN,
        std: CLIP_STD,
        mark,
        token: (patch, id),
        per_tile: across * across,
        expand: if aya { named_tiles } else { ended_tiles },
        words,
        whole_first: false,
        behind: Vec::new(),
    };
    CanvasProcessor::new(fields, plan)
}

/// Tiles by number, the whole picture last: `START TILE_1 ... TILE_GLOBAL ... END`.
fn named_tiles(tile: &str, words: &[String], rows: usize, cols: usize) -> String {
    let [start, name, whole, end] = words else { return String::new() };
    let tiles: String = (1..=rows * cols).map(|number| format!("{name}_{number}{tile}")).collect();
    format!("{start}{tiles}{whole}{tile}{end}")
}

/// Each tile ended by a token.
fn ended_tiles(tile: &str, words: &[String], rows: usize, cols: usize) -> String {
    let [start, line, end] = words else { return String::new() };
    format!("{start}{}{end}", format!("{tile}{line}").repeat(rows * cols + 1))
}

/// The id of one of `tokenizer.json`'s added tokens.
fn token_id(files: &ModelFiles, token: &str) -> Result<u32> {
    let json: Value = files.require_json("tokenizer.json")?;
    let mut added = json.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    let found = added.find(|added| added.get("content").and_then(Value::as_str) == Some(token));
    let id = found.and_then(|added| u32::try_from(added.get("id")?.as_u64()?).ok());
    id.ok_or_else(|| Error::Config {
        path: files.describe("tokenizer.json"),
        reason: format!("added_tokens: expected {token}, found none"),
    })
}
