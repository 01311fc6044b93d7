//! Pixtral and Mistral 3: a tower for pictures of any size, whose lines end with a token of their own, and a Mistral decoder.
//!
//! After `LlavaForConditionalGeneration` with a Pixtral tower, `Mistral3ForConditionalGeneration`, `PixtralProcessor` and
//! `PixtralImageProcessor` of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Filter, PreparedImage, Rgb8Image, resize};
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Ctx, Model, Prompt, Result};
use serde_json::Value;

use crate::composed::Composed;
use crate::connector::{Projector, ProjectorPlan, Unfold};
use crate::fields::{Config, Fields};
use crate::processor::{CLIP_MEAN, CLIP_STD, Edge, ImageFields, added_token, lay_out};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan, activation};

/// The family's row in the registry. Pixtral's own type is `llava`, whose family hands it over.
pub const FAMILY: Family = Family {
    name: "pixtral",
    model_types: &["mistral3"],
    models: "Mistral 3",
    pictures: "any size, lines that end",
    file: file!(),
    processor: |files| Ok(Box::new(Processor::load(files)?)),
    load,
    spare: &[],
};

/// Whether a configuration is that of a model with this tower.
pub fn is_tower(config: &Fields<'_>) -> Result<bool> {
    Ok(config.at("vision_config").get::<String>("model_type")?.as_deref() == Some("pixtral"))
}

/// Loads a checkpoint of either type.
pub fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    let merges = config.model_type(&["mistral3", "llava"])? == "mistral3";
    config.inert(&["ignore_index", "image_token_id", "image_token_index", "vocab_size"]);
    let mut tower = VitPlan::pixtral(&config.part("vision_config")?)?;
    let layer: i64 = config.or("vision_feature_layer", if merges { -1 } else { -2 })?;
    if tower.take_layer(layer).is_none() {
        let what = format!("expected one of {} layers, found {layer}", tower.layers);
        return Err(config.bad("vision_feature_layer", what));
    }
    let text = config.part("text_config")?;
    let eps = text.or("rms_norm_eps", 1e-6)?;
    let text = TextPlan::read(&text, &["mistral", "llama"], config.get("tie_word_embeddings")?)?;
    let act = activation(&config, "projector_hidden_act", "gelu")?;
    let bias = config.or("multimodal_projector_bias", !merges)?;
    let plan = ProjectorPlan::plain((tower.d, text.d), act, bias, (0, false));
    let at = source.layout();
    let tower = Vit::load(cx, &at.tower, tower)?;
    let decoder = |cx: &mut Ctx| Decoder::load(cx, &at.language, &at.head, text, config.file());
    if merges {
        let block = config.size("spatial_merge_size", 2)?;
        let connector = Unfold::load(cx, &at.projector, block, eps, plan)?;
        return Ok(Composed::of(FAMILY.name, source, tower, connector, decoder(cx)?));
    }
    config.only("vision_feature_select_strategy", "full")?;
    let connector = Projector::load(cx, &at.projector, plan)?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder(cx)?))
}

/// Fields beside the common ones.
const KEYS: &[&str] = &["image_break_token", "image_end_token", "patch_size", "spatial_merge_size"];

/// Keeps the aspect of pictures as far as whole patches let it.
#[derive(Clone, Debug)]
pub struct Processor {
    fields: ImageFields,
    /// Largest height and width, in pixels.
    most: Option<(usize, usize)>,
    /// Pixels of a token's side.
    step: usize,
    filter: Filter,
    /// Stands for a picture in a prompt, and for each of its features after expansion.
    token: (String, u32),
    /// End a line, and the picture.
    ends: [String; 2],
}

impl Processor {
    /// Reads the processor of a model.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let config = Config::load(files, "config.json")?;
        let id: u32 = config.root().any(&["image_token_index", "image_token_id"])?.unwrap_or(10);
        Self::new(ImageFields::load(files, KEYS)?, (added_token(files, id)?, id))
    }

    fn new(fields: ImageFields, token: (String, u32)) -> Result<Self> {
        let most = match fields.edge("size", Edge::Longest(1024))? {
            Edge::Longest(side) | Edge::Shortest(side) => (side, side),
            Edge::Exact { height, width } => (height, width),
        };
        let patch = match fields.edge("patch_size", Edge::Exact { height: 16, width: 16 })? {
            Edge::Exact { height, width } if height == width => height,
            _ => {
                let found = fields.value("patch_size").cloned().unwrap_or_default();
                return Err(fields.bad("patch_size", "a square", &found));
            }
        };
        let word = |key: &str, usual: &str| match fields.value(key) {
            None => Ok(usual.to_owned()),
            Some(Value::String(word)) => Ok(word.clone()),
            Some(other) => Err(fields.bad(key, "a string", other)),
        };
        fields.normalize(CLIP_MEAN, CLIP_STD)?;
        Ok(Self {
            most: fields.flag("do_resize", true)?.then_some(most),
            step: patch * fields.pixels("spatial_merge_size")?.unwrap_or(1),
            filter: fields.resample(Filter::Bicubic)?,
            ends: [word("image_break_token", "[IMG_BREAK]")?, word("image_end_token", "[IMG_END]")?],
            fields,
            token,
        })
    }

    /// Rows and columns of tokens of a picture.
    fn grid(&self, height: usize, width: usize) -> (usize, usize) {
        let (rows, cols) = self.most.unwrap_or((height, width));
        let ratio = (height as f64 / rows as f64).max(width as f64 / cols as f64);
        let side = |side: usize| if ratio > 1.0 { (side as f64 / ratio).floor() as usize } else { side };
        (side(height).div_ceil(self.step).max(1), side(width).div_ceil(self.step).max(1))
    }
}

impl ocelli_engine::Processor for Processor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut fields = self.fields.clone();
        fields.set(key, value)?;
        *self = Self::new(fields, self.token.clone())?;
        Ok(())
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        let (rows, cols) = self.grid(image.height(), image.width());
        let tile = match self.most {
            Some(_) => resize(image, cols * self.step, rows * self.step, self.filter, threads)?,
            None => image.clone(),
        };
        let normalize = self.fields.normalize(CLIP_MEAN, CLIP_STD)?;
        Ok(PreparedImage { tiles: vec![tile.into()], rows: 0, cols: 0, normalize, assembly: None })
    }

    fn image_mark(&self) -> &str {
        &self.token.0
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let (mark, id) = &self.token;
        let [line, end] = &self.ends;
        let grids: Vec<(usize, usize)> = images
            .iter()
            .flat_map(|image| &image.tiles)
            .map(|tile| (tile.height / self.step, tile.width / self.step))
            .collect();
        let picture = |&(rows, cols): &(usize, usize)| vec![mark.repeat(cols); rows].join(line) + end;
        let pictures: Vec<String> = grids.iter().map(picture).collect();
        let rows: Vec<usize> = grids.iter().map(|(rows, cols)| rows * cols).collect();
        lay_out(tokenizer, text, mark, &pictures, *id, &rows)
    }
}
