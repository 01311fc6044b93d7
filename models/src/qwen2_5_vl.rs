//! Qwen2.5-VL: a tower with windows and rotations on pictures of any size, a merger, and a Qwen2 decoder with positions of three
//! axes.
//!
//! After `Qwen2_5_VLForConditionalGeneration`, `Qwen2_5_VLProcessor` and `Qwen2VLImageProcessor` of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Filter, Pixels, PreparedImage, Rgb8Image, Tile, resize};
use ocelli_engine::prompt::Positions;
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Ctx, Error, Model, Prompt, Result};

use crate::composed::Composed;
use crate::connector::Merger;
use crate::fields::{Config, Fields};
use crate::processor::{CLIP_MEAN, CLIP_STD, ImageFields, added_token, lay_out};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "qwen2_5_vl",
    model_types: &["qwen2_5_vl"],
    processor: |files| Ok(Box::new(Processor::load(files)?)),
    load,
    spare: &[],
};

/// Fields of the tower's configuration that say how its patches are merged: block and window, in patches and blocks.
fn blocks(vision: &Fields<'_>, patch: usize) -> Result<(usize, usize)> {
    let block = vision.size("spatial_merge_size", 2)?;
    let window = vision.size("window_size", 112)?;
    match window / block / patch.max(1) {
        0 => Err(vision.bad("window_size", format!("expected at least {}, found {window}", block * patch))),
        side => Ok((block, side)),
    }
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["image_token_id", "video_token_id", "vision_token_id", "rope_scaling"]);
    let vision = config.part("vision_config")?;
    let tower = VitPlan::qwen2_5(&vision)?;
    let blocks = blocks(&vision, tower.patch)?;
    let tied = config.get("tie_word_embeddings")?;
    let text = TextPlan::read(&config.at_or_here("text_config"), &["qwen2_5_vl_text", "qwen2_5_vl"], tied)?;
    vision.only("out_hidden_size", text.d)?;
    vision.inert(&["tokens_per_second"]);
    let (sizes, eps) = ((tower.d, text.d), tower.norm_eps);
    let visual = source.checkpoint.at_any(&["visual", "model.visual"]);
    let tower = Vit::load(cx, &visual, tower)?;
    let connector = Merger::load(cx, &visual.at("merger"), blocks, sizes, eps)?;
    let language = source.checkpoint.at_any(&["model.language_model", "model", "language_model.model"]);
    let head = source.checkpoint.at_any(&["lm_head", "language_model.lm_head"]);
    let decoder = Decoder::load(cx, &language, &head, text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}

/// Fields beside the common ones. `size` holds the bounds of the area as `shortest_edge` and `longest_edge`.
const KEYS: &[&str] = &["min_pixels", "max_pixels", "patch_size", "merge_size", "temporal_patch_size"];

/// Largest ratio of the sides of a picture.
const MAX_ASPECT: usize = 200;

/// Keeps the aspect of pictures, within bounds of their area.
#[derive(Clone, Debug)]
struct Processor {
    fields: ImageFields,
    patch: usize,
    merge: usize,
    frames: usize,
    /// Least and most pixels of a picture; `None`: pictures are taken as they are.
    area: Option<(usize, usize)>,
    filter: Filter,
    token: (String, u32),
}

impl Processor {
    fn load(files: &ModelFiles) -> Result<Self> {
        let config = Config::load(files, "config.json")?;
        let id: u32 = config.root().or("image_token_id", 151_655)?;
        Self::new(ImageFields::load(files, KEYS)?, (added_token(files, id)?, id))
    }

    fn new(fields: ImageFields, token: (String, u32)) -> Result<Self> {
        let bound = |old: &str, new: &str, usual: usize| {
            Ok::<_, Error>(fields.area(old)?.or(fields.area(new)?).unwrap_or(usual))
        };
        let area = (
            bound("min_pixels", "size.shortest_edge", 56 * 56)?,
            bound("max_pixels", "size.longest_edge", 28 * 28 * 1280)?,
        );
        fields.normalize(CLIP_MEAN, CLIP_STD)?;
        Ok(Self {
            patch: fields.pixels("patch_size")?.unwrap_or(14),
            merge: fields.pixels("merge_size")?.unwrap_or(2),
            frames: fields.pixels("temporal_patch_size")?.unwrap_or(2),
            area: fields.flag("do_resize", true)?.then_some(area),
            filter: fields.resample(Filter::Bicubic)?,
            fields,
            token,
        })
    }

    /// Width and height as multiples of a block, the area within the bounds.
    fn resized(&self, width: usize, height: usize) -> Result<(usize, usize)> {
        let factor = self.patch * self.merge;
        let Some((least, most)) = self.area else {
            return if width.is_multiple_of(factor) && height.is_multiple_of(factor) {
                Ok((width, height))
            } else {
                let found = format!("{width} x {height}");
                Err(Error::Request(format!(
                    "picture: expected multiples of {factor} pixels a side, found {found}"
                )))
            };
        };
        if width.max(height) > MAX_ASPECT * width.min(height) {
            let found = format!("{width} x {height}");
            return Err(Error::Request(format!(
                "picture: expected sides of a ratio up to {MAX_ASPECT}, found {found}"
            )));
        }
        let sides = [width as f64, height as f64];
        let step = factor as f64;
        let area = sides[0] * sides[1];
        let of = |round: &dyn Fn(f64) -> f64| sides.map(|side| (round(side) * step) as usize);
        let mut out = of(&|side| (side / step).round_ties_even());
        if out[0] * out[1] > most {
            let beta = (area / most as f64).sqrt();
            out = of(&|side| (side / beta / step).floor().max(1.0));
        } else if out[0] * out[1] < least {
            let beta = (least as f64 / area).sqrt();
            out = of(&|side| (side * beta / step).ceil());
        }
        Ok((out[0], out[1]))
    }

    /// Rows and columns of tokens of a prepared picture.
    fn grid(&self, image: &PreparedImage) -> (usize, usize) {
        let step = self.patch * self.merge;
        image.tiles.first().map_or((0, 0), |tile| (tile.height / step, tile.width / step))
    }

    /// For each value of the reference's `pixel_values`, `[patches, 3 * frames * patch * patch]` with the patches of a block side
    /// by side, its place in `[3, height, width]`.
    fn places(&self, tile: &Tile) -> impl Iterator<Item = usize> + use<> {
        let (patch, merge, frames, height, width) =
            (self.patch, self.merge, self.frames, tile.height, tile.width);
        let (rows, cols) = (height / patch, width / patch);
        let patches = (0..rows / merge).flat_map(move |row| {
            (0..cols / merge).flat_map(move |col| {
                (0..merge * merge).map(move |i| (row * merge + i / merge, col * merge + i % merge))
            })
        });
        patches.flat_map(move |(row, col)| {
            (0..3 * frames * patch * patch).map(move |i| {
                let (channel, y, x) = (i / (frames * patch * patch), i / patch % patch, i % patch);
                (channel * height + row * patch + y) * width + col * patch + x
            })
        })
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
        let (width, height) = self.resized(image.width(), image.height())?;
        let tile = resize(image, width, height, self.filter, threads)?.into();
        let normalize = self.fields.normalize(CLIP_MEAN, CLIP_STD)?;
        Ok(PreparedImage { tiles: vec![tile], rows: 0, cols: 0, normalize, assembly: None })
    }

    fn image_mark(&self) -> &str {
        &self.token.0
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let grids: Vec<(usize, usize)> = images.iter().map(|image| self.grid(image)).collect();
        let rows: Vec<usize> = grids.iter().map(|grid| grid.0 * grid.1).collect();
        let (mark, id) = (&self.token.0, self.token.1);
        let pictures: Vec<String> = rows.iter().map(|&rows| mark.repeat(rows)).collect();
        let mut prompt = lay_out(tokenizer, text, mark, &pictures, id, &rows)?;
        if images.is_empty() {
            return Ok(prompt);
        }
        // Text counts on; a picture takes the time of its first token, and as many positions as its longer side has tokens.
        let (mut at, mut next) = (Vec::with_capacity(prompt.len()), 0i32);
        for span in &prompt.spans {
            at.extend((at.len()..span.at).zip(next..).map(|(_, position)| [position; 3]));
            let first =
                at.last().map_or(0, |last: &[i32; 3]| last.iter().max().map_or(0, |most| most + 1)).max(next);
            let (rows, cols) = grids[span.media];
            at.extend(
                (0..rows * cols).map(|i| [first, first + (i / cols) as i32, first + (i % cols) as i32]),
            );
            next = first + rows.max(cols) as i32;
        }
        at.extend((at.len()..prompt.len()).zip(next..).map(|(_, position)| [position; 3]));
        next += prompt.len() as i32 - prompt.spans.last().map_or(0, |span| span.tokens().end) as i32;
        prompt.positions = Positions::Axes { at, next };
        Ok(prompt)
    }

    fn pixel_values(&self, image: &PreparedImage) -> Vec<f32> {
        let values = image.pixel_values();
        let tile = image.tiles.first();
        tile.map_or(Vec::new(), |tile| self.places(tile).map(|place| values[place]).collect())
    }

    fn with_pixel_values(&self, image: &PreparedImage, values: &[f32]) -> Option<PreparedImage> {
        let tile = image.tiles.first()?;
        let mut own = vec![0f32; 3 * tile.height * tile.width];
        let mut places = 0;
        for (place, &value) in self.places(tile).zip(values) {
            own[place] = value;
            places += 1;
        }
        let tile = Tile { pixels: Pixels::F32(own), ..*tile };
        (places == values.len()).then(|| PreparedImage { tiles: vec![tile], assembly: None, ..*image })
    }
}
