//! InternVL 2.5, 3 and 3.5 in the layout of transformers: a tower with scaled layers, a pixel-shuffle projector and a Qwen or Llama
//! decoder.
//!
//! After `InternVLForConditionalGeneration`, `InternVLProcessor` and `GotOcr2ImageProcessor` of transformers.

use std::ops::Range;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{PreparedImage, Rgb8Image};
use ocelli_engine::text::Tokenizer;
use ocelli_engine::video::VideoProcessor;
use ocelli_engine::{Ctx, Model, Prompt, Result};
use serde_json::Value;

use crate::composed::Composed;
use crate::connector::{Projector, ProjectorPlan};
use crate::fields::Config;
use crate::processor::{
    CANVAS_KEYS, CLIP_MEAN, CLIP_STD, CanvasPlan, CanvasProcessor, ImageFields, added_token, nearest_aspect,
    special_token,
};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan, activation};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "internvl",
    model_types: &["internvl"],
    models: "InternVL 2.5, 3, 3.5 (as transformers has them)",
    pictures: "tiles and the whole picture; frames of videos",
    file: file!(),
    processor: |files| Ok(Box::new(Processor::load(files)?)),
    load,
    spare: &["embeddings.mask_token"],
};

/// Added to variances by the projector's norm.
const NORM_EPS: f32 = 1e-5;

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["image_token_id", "image_seq_length"]);
    let mut tower = VitPlan::internvl(&config.part("vision_config")?)?;
    config.only("vision_feature_select_strategy", "default")?;
    let layer: i64 = config.or("vision_feature_layer", -1)?;
    if tower.take_layer(layer).is_none() {
        let what = format!("expected one of {} layers, found {layer}", tower.layers);
        return Err(config.bad("vision_feature_layer", what));
    }
    let ratio: f64 = config.or("downsample_ratio", 0.5)?;
    let block = (1.0 / ratio) as usize;
    if !(block >= 1 && block as f64 * ratio == 1.0 && tower.side().is_multiple_of(block)) {
        let what =
            format!("expected the inverse of a divisor of {} patches a side, found {ratio}", tower.side());
        return Err(config.bad("downsample_ratio", what));
    }
    let tied = config.get("tie_word_embeddings")?;
    let text = TextPlan::read(&config.part("text_config")?, &["qwen2", "qwen3", "llama"], tied)?;
    let act = activation(&config, "projector_hidden_act", "gelu")?;
    let plan = ProjectorPlan {
        block,
        norm: Some(("layer_norm", NORM_EPS)),
        ..ProjectorPlan::plain((tower.d, text.d), act, true, (tower.extra_rows(), false))
    };
    let at = source.layout();
    let tower = Vit::load(cx, &at.tower, tower)?;
    let connector = Projector::load(cx, &at.projector, plan)?;
    let decoder = Decoder::load(cx, &at.language, &at.head, text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}

/// Pictures on a canvas of tiles, frames of videos in one tile each.
struct Processor {
    pictures: CanvasProcessor,
    frames: CanvasProcessor,
    video: String,
}

impl Processor {
    fn load(files: &ModelFiles) -> Result<Self> {
        let pictures = processor(files)?;
        let tokenizer = files.json::<Value>("tokenizer_config.json")?;
        let video = special_token(tokenizer.as_ref(), "video_token").unwrap_or_else(|| "<video>".into());
        Ok(Self { frames: whole(&pictures)?, pictures, video })
    }
}

/// The same processor without tiles.
fn whole(pictures: &CanvasProcessor) -> Result<CanvasProcessor> {
    let mut frames = pictures.clone();
    ocelli_engine::Processor::set(&mut frames, "crop_to_patches", "false")?;
    Ok(frames)
}

impl ocelli_engine::Processor for Processor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        self.pictures.set(key, value)?;
        self.frames = whole(&self.pictures)?;
        Ok(())
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        self.pictures.prepare(image, threads)
    }

    fn image_mark(&self) -> &str {
        self.pictures.image_mark()
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        self.pictures.lay_out(text, images, tokenizer)
    }

    fn video(&self) -> Option<&dyn VideoProcessor> {
        Some(self)
    }
}

impl VideoProcessor for Processor {
    fn mark(&self) -> &str {
        &self.video
    }

    fn picture(&self, frames: &[Rgb8Image], of: Range<usize>, threads: usize) -> Result<PreparedImage> {
        ocelli_engine::Processor::prepare(&self.frames, &frames[of.start], threads)
    }

    fn text(&self, times: &[f64], _: f64) -> String {
        let mark = ocelli_engine::Processor::image_mark(&self.pictures);
        let frames: Vec<String> = (1..=times.len()).map(|number| format!("Frame{number}: {mark}")).collect();
        frames.join("\n")
    }
}

fn processor(files: &ModelFiles) -> Result<CanvasProcessor> {
    let config = Config::load(files, "config.json")?;
    let id: u32 = config.root().or("image_token_id", 151_667)?;
    let token = added_token(files, id)?;
    let tokenizer = files.json::<Value>("tokenizer_config.json")?;
    let word =
        |key: &str, usual: &str| special_token(tokenizer.as_ref(), key).unwrap_or_else(|| usual.into());
    let fields = ImageFields::load(files, CANVAS_KEYS)?;
    let plan = CanvasPlan {
        side: 384,
        cuts: true,
        grid: nearest_aspect,
        unless: None,
        mean: CLIP_MEAN,
        std: CLIP_STD,
        mark: token.clone(),
        token: (token, id),
        per_tile: fields.pixels("image_seq_length")?.unwrap_or(256),
        expand: |tile, words, rows, cols| {
            let tiles = if rows * cols > 1 { rows * cols + 1 } else { 1 };
            words.join(&tile.repeat(tiles))
        },
        words: vec![word("start_image_token", "<img>"), word("end_image_token", "</img>")],
        whole_first: false,
        behind: Vec::new(),
    };
    CanvasProcessor::new(fields, plan)
}
