//! Pictures and texts as dual encoders take them.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Filter, Pixels, PreparedImage, Rgb8Image, Tile, resize};
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Error, Processor, Prompt, Result};
use serde_json::Value;

use crate::processor::{ImageFields, SquareProcessor};

/// What is done with the tokens of a text.
#[derive(Clone, Debug)]
pub struct TextRules {
    /// Most tokens; of a longer text the first ones and the very last are taken.
    pub most: usize,
    /// Whether texts are filled up to that many.
    pub padded: bool,
    /// Whether letters are made small first.
    pub lower: bool,
}

impl TextRules {
    /// The rules of a model's files for texts of at most `most` tokens. The tokenizer class of SigLIP 2 makes letters small.
    pub fn load(files: &ModelFiles, most: usize, padded: bool) -> Result<Self> {
        let config: Option<Value> = files.json("tokenizer_config.json")?;
        let class = config.as_ref().and_then(|config| config.get("tokenizer_class")).and_then(Value::as_str);
        Ok(Self { most, padded, lower: class == Some("Siglip2Tokenizer") })
    }

    fn tokens(&self, text: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids =
            if self.lower { tokenizer.encode(&text.to_lowercase())? } else { tokenizer.encode(text)? };
        if ids.len() > self.most {
            tracing::warn!("a text of {} tokens is cut to {}: {text:?}", ids.len(), self.most);
            let last = ids.last().copied();
            ids.truncate(self.most.saturating_sub(1));
            ids.extend(last);
        }
        if self.padded && ids.len() < self.most {
            let Some(pad) = tokenizer.named_id("pad_token") else {
                return Err(Error::Request(
                    "tokenizer: expected a pad_token to fill texts up with, found none".into(),
                ));
            };
            ids.resize(self.most, pad);
        }
        Ok(ids)
    }
}

/// A processor of pictures or texts, never of both in one.
#[derive(Clone, Debug)]
pub struct DualProcessor {
    /// The pictures' part.
    pub pictures: Pictures,
    /// The texts' part.
    pub text: TextRules,
}

/// How pictures are prepared.
#[derive(Clone, Debug)]
pub enum Pictures {
    /// All to one size.
    Square(SquareProcessor),
    /// Each as large as its patches may be many.
    Patches(Patches),
}

impl Processor for DualProcessor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match &mut self.pictures {
            Pictures::Square(square) => square.set(key, value),
            Pictures::Patches(patches) => patches.set(key, value),
        }
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        match &self.pictures {
            Pictures::Square(square) => square.prepare(image, threads),
            Pictures::Patches(patches) => patches.prepare(image, threads),
        }
    }

    fn image_mark(&self) -> &str {
        ""
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        if !images.is_empty() {
            return Err(Error::Request("a dual encoder takes a text without pictures".into()));
        }
        Ok(Prompt::text(self.text.tokens(text, tokenizer)?))
    }

    fn pixel_values(&self, image: &PreparedImage) -> Vec<f32> {
        match &self.pictures {
            Pictures::Square(_) => image.pixel_values(),
            Pictures::Patches(patches) => patches.pixel_values(image),
        }
    }

    fn with_pixel_values(&self, image: &PreparedImage, values: &[f32]) -> Option<PreparedImage> {
        match &self.pictures {
            Pictures::Square(_) => image.with_pixel_values(values),
            Pictures::Patches(patches) => patches.with_pixel_values(image, values),
        }
    }
}

/// Fields beside the common ones.
const KEYS: &[&str] = &["max_num_patches", "patch_size"];

/// `Siglip2ImageProcessor`: pictures keep their aspect and become as large as a number of patches allows.
#[derive(Clone, Debug)]
pub struct Patches {
    fields: ImageFields,
    resize: bool,
    patch: usize,
    most: usize,
    filter: Filter,
}

/// Half an interval of scales that is found by halving ends when it is this small.
const EPS: f64 = 1e-5;

impl Patches {
    /// Reads the processor of a model.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        Self::new(ImageFields::load(files, KEYS)?)
    }

    fn new(fields: ImageFields) -> Result<Self> {
        fields.normalize([0.5; 3], [0.5; 3])?;
        Ok(Self {
            resize: fields.flag("do_resize", true)?,
            patch: fields.pixels("patch_size")?.unwrap_or(16),
            most: fields.pixels("max_num_patches")?.unwrap_or(256),
            filter: fields.resample(Filter::Bilinear)?,
            fields,
        })
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut fields = self.fields.clone();
        fields.set(key, value)?;
        *self = Self::new(fields)?;
        Ok(())
    }

    /// Rows and columns of patches: those of the largest scale, found by halving as the reference does, that gives few enough.
    fn grid(&self, width: usize, height: usize) -> (usize, usize) {
        let along = |side: usize, scale: f64| (side as f64 * scale / self.patch as f64).ceil().max(1.0);
        let (mut low, mut high) = (EPS / 10.0, 100.0);
        while high - low >= EPS {
            let scale = f64::midpoint(low, high);
            if along(height, scale) * along(width, scale) <= self.most as f64 {
                low = scale;
            } else {
                high = scale;
            }
        }
        (along(height, low) as usize, along(width, low) as usize)
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        let (width, height) = (image.width(), image.height());
        let normalize = self.fields.normalize([0.5; 3], [0.5; 3])?;
        let tile: Tile = if self.resize {
            let (rows, cols) = self.grid(width, height);
            resize(image, cols * self.patch, rows * self.patch, self.filter, threads)?.into()
        } else {
            let (rows, cols) = (height / self.patch, width / self.patch);
            if rows * cols == 0 || rows * cols > self.most {
                return Err(Error::Request(format!(
                    "picture: expected 1 to {} patches of {} pixels a side, found {width} x {height} pixels",
                    self.most, self.patch
                )));
            }
            image.clone().into()
        };
        Ok(PreparedImage { tiles: vec![tile], rows: 0, cols: 0, normalize, assembly: None })
    }

    /// For each value of the reference's `pixel_values`, `[patches, patch * patch * 3]`, its place in `[3, height, width]`.
    fn places(&self, tile: &Tile) -> impl Iterator<Item = usize> + use<> {
        let (patch, height, width) = (self.patch, tile.height, tile.width);
        let (rows, cols) = (height / patch, width / patch);
        (0..rows * cols * patch * patch * 3).map(move |i| {
            let (place, inner) = (i / (patch * patch * 3), i % (patch * patch * 3));
            let (y, x) = (place / cols * patch + inner / 3 / patch, place % cols * patch + inner / 3 % patch);
            (inner % 3 * height + y) * width + x
        })
    }

    /// The patches, filled up with zeros.
    fn pixel_values(&self, image: &PreparedImage) -> Vec<f32> {
        let values = image.pixel_values();
        let tile = image.tiles.first();
        let mut out: Vec<f32> =
            tile.map_or(Vec::new(), |tile| self.places(tile).map(|place| values[place]).collect());
        out.resize(self.most * self.patch * self.patch * 3, 0.0);
        out
    }

    fn with_pixel_values(&self, image: &PreparedImage, values: &[f32]) -> Option<PreparedImage> {
        let tile = image.tiles.first()?;
        let mut own = vec![0f32; 3 * tile.height * tile.width];
        for (place, &value) in self.places(tile).zip(values) {
            *own.get_mut(place)? = value;
        }
        let tile = Tile { pixels: Pixels::F32(own), ..*tile };
        (values.len() == self.most * self.patch * self.patch * 3).then(|| PreparedImage {
            tiles: vec![tile],
            assembly: None,
            ..*image
        })
    }
}
