//! Pictures as tiles and as a whole on a grey square.
//!
//! After `DeepseekOcr2ImageProcessor` and `DeepseekOcr2Processor` of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Filter, PreparedImage, Rgb8Image, resize};
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Prompt, Result};
use serde_json::Value;

use super::published::{self, OLD};
use crate::fields::Config;
use crate::processor::{Edge, ImageFields, added_token, cut, in_square, lay_out, nearest_aspect};

/// Fields beside the common ones.
const KEYS: &[&str] = &[
    "background_color",
    "crop_to_patches",
    "downsample_ratio",
    "max_patches",
    "min_patches",
    "patch_size",
    "tile_size",
];

/// The class's mean, which is its standard deviation too.
const HALF: [f32; 3] = [0.5; 3];

#[derive(Clone, Debug)]
pub(super) struct Processor {
    fields: ImageFields,
    /// Sides of the whole picture and of a tile, in pixels.
    side: usize,
    tile: usize,
    /// Pixels of a side that become one feature.
    step: usize,
    /// Least and most tiles.
    tiles: (usize, usize),
    background: [u8; 3],
    filter: Filter,
    /// What stands for a picture, as text and as a token.
    mark: (String, u32),
}

impl Processor {
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let config = Config::load(files, "config.json")?;
        // Another model of the published type is told as such, whatever else it lacks.
        published::modern(&config.root())?;
        let id: u32 = config.root().or("image_token_id", 128_815)?;
        let mut fields = if config.root().get::<String>("model_type")?.as_deref() == Some(OLD) {
            // The published file has the fields at its top.
            let outer = files.json::<Value>("processor_config.json")?;
            ImageFields::of_json(files.describe("processor_config.json"), None, outer.as_ref(), KEYS)
        } else {
            ImageFields::load(files, KEYS)?
        };
        // The reference's processor gives these itself with every call.
        for key in ["crop_to_patches", "min_patches", "max_patches"] {
            fields.forget(key);
        }
        Self::of(fields, (added_token(files, id)?, id))
    }

    fn of(fields: ImageFields, mark: (String, u32)) -> Result<Self> {
        // Without tiles the reference makes another number of features than it has tokens for.
        for key in ["crop_to_patches", "do_resize"] {
            if !fields.flag(key, true)? {
                return Err(fields.bad(key, "true", &Value::Bool(false)));
            }
        }
        let side = match fields.edge("size", Edge::Exact { height: 1024, width: 1024 })? {
            Edge::Exact { height, width } if height == width => height,
            _ => {
                let found = fields.value("size").cloned().unwrap_or_default();
                return Err(fields.bad("size", "a height and the same width", &found));
            }
        };
        let patch = fields.pixels("patch_size")?.unwrap_or(16);
        fields.normalize(HALF, HALF)?;
        Ok(Self {
            side,
            tile: fields.pixels("tile_size")?.unwrap_or(768),
            step: patch * fields.pixels("downsample_ratio")?.unwrap_or(4),
            tiles: (fields.pixels("min_patches")?.unwrap_or(2), fields.pixels("max_patches")?.unwrap_or(6)),
            background: background(&fields)?,
            filter: fields.resample(Filter::Bicubic)?,
            fields,
            mark,
        })
    }

    /// Features of a tile of that side.
    fn features(&self, side: usize) -> usize {
        side.div_ceil(self.step).pow(2)
    }
}

/// Three levels.
fn background(fields: &ImageFields) -> Result<[u8; 3]> {
    let Some(value) = fields.value("background_color") else { return Ok([127; 3]) };
    let levels: Option<Vec<u8>> = value.as_array().and_then(|levels| {
        levels.iter().map(|level| level.as_u64().and_then(|level| u8::try_from(level).ok())).collect()
    });
    match levels.as_deref() {
        Some(&[r, g, b]) => Ok([r, g, b]),
        _ => Err(fields.bad("background_color", "three levels", value)),
    }
}

impl ocelli_engine::Processor for Processor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut fields = self.fields.clone();
        fields.set(key, value)?;
        *self = Self::of(fields, self.mark.clone())?;
        Ok(())
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        let (width, height, tile) = (image.width(), image.height(), self.tile);
        let to = |width, height| resize(image, width, height, self.filter, threads);
        let (mut tiles, mut grid) = (Vec::new(), (0, 0));
        if width.max(height) > tile {
            let (cols, rows) = nearest_aspect((width, height), (tile, tile), self.tiles);
            tiles = cut(&to(cols * tile, rows * tile)?, rows, cols, (tile, tile));
            grid = (rows, cols);
        }
        let scale = self.side as f64 / width.max(height) as f64;
        let scaled = |side: usize| ((side as f64 * scale).round_ties_even() as usize).max(1);
        tiles.push(in_square(&to(scaled(width), scaled(height))?, self.background).into());
        let normalize = self.fields.normalize(HALF, HALF)?;
        Ok(PreparedImage { tiles, rows: grid.0, cols: grid.1, normalize, assembly: None })
    }

    fn image_mark(&self) -> &str {
        &self.mark.0
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        // A row ends the picture.
        let rows = |image: &&PreparedImage| {
            image.tiles.iter().map(|tile| self.features(tile.height)).sum::<usize>() + 1
        };
        let rows: Vec<usize> = images.iter().map(rows).collect();
        let (mark, id) = (&self.mark.0, self.mark.1);
        let pictures: Vec<String> = rows.iter().map(|&rows| mark.repeat(rows)).collect();
        lay_out(tokenizer, text, mark, &pictures, id, &rows)
    }

    /// The reference keeps the whole picture and its tiles apart: this is the whole picture.
    fn pixel_values(&self, image: &PreparedImage) -> Vec<f32> {
        whole(image).pixel_values()
    }

    fn with_pixel_values(&self, image: &PreparedImage, values: &[f32]) -> Option<PreparedImage> {
        let given = whole(image).with_pixel_values(values)?;
        let mut image = image.clone();
        image.tiles.pop();
        image.tiles.extend(given.tiles);
        Some(image)
    }
}

/// The picture without its tiles.
fn whole(image: &PreparedImage) -> PreparedImage {
    let last = image.tiles.len().saturating_sub(1);
    PreparedImage { tiles: image.tiles[last..].to_vec(), rows: 0, cols: 0, ..image.clone() }
}
