//! Image processor and prompt layout of LFM2-VL.
//!
//! After `Lfm2VlImageProcessor` and `Lfm2VlProcessor` of transformers. A picture whose area is within a tolerance of the tokens
//! that one may take is resized to multiples of a token; a larger one is resized to the grid of tiles whose aspect is nearest, and
//! the whole picture follows in its own size. Tokens name each tile.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Filter, Pixels, PreparedImage, Rgb8Image, Tile, resize};
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Error, Prompt, Result};
use serde_json::Value;

use crate::processor::{ImageFields, cut, lay_out, special_token};

/// Fields beside the common ones.
const KEYS: &[&str] = &[
    "do_image_splitting",
    "do_pad",
    "downsample_factor",
    "encoder_patch_size",
    "max_image_tokens",
    "max_pixels_tolerance",
    "max_tiles",
    "min_image_tokens",
    "min_tiles",
    "tile_size",
    "use_image_special_tokens",
    "use_thumbnail",
];

/// Mean and standard deviation that the class takes.
const MEAN: [f32; 3] = [0.5; 3];

/// Strings around pictures and their tiles.
#[derive(Clone, Debug)]
struct Marks {
    image: String,
    start: String,
    end: String,
    thumbnail: String,
}

/// The processor of one checkpoint.
#[derive(Clone, Debug)]
pub struct Processor {
    fields: ImageFields,
    filter: Filter,
    /// Side of a patch in pixels, and of a token in patches.
    patch: usize,
    factor: usize,
    /// Least and most tokens of a picture that is not cut.
    tokens: (usize, usize),
    tolerance: f64,
    /// Least and most tiles.
    tiles: (usize, usize),
    /// Side of a tile in pixels.
    tile: usize,
    thumbnail: bool,
    /// Whether tokens name pictures and tiles.
    named: bool,
    marks: Marks,
}

impl Processor {
    /// Reads the processor of a model.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let tokenizer = files.json::<Value>("tokenizer_config.json")?;
        let mark = |key: &str, usual: &str| {
            special_token(tokenizer.as_ref(), key).unwrap_or_else(|| usual.to_owned())
        };
        let marks = Marks {
            image: mark("image_token", "<image>"),
            start: mark("image_start_token", "<|image_start|>"),
            end: mark("image_end_token", "<|image_end|>"),
            thumbnail: mark("image_thumbnail_token", "<|img_thumbnail|>"),
        };
        Self::new(ImageFields::load(files, KEYS)?, marks)
    }

    fn new(fields: ImageFields, marks: Marks) -> Result<Self> {
        let size = |key: &str, usual: usize| Ok::<_, Error>(fields.pixels(key)?.unwrap_or(usual));
        let split = fields.flag("do_image_splitting", true)?;
        let tiles = if split { (size("min_tiles", 2)?, size("max_tiles", 10)?) } else { (1, 1) };
        if tiles.0 > tiles.1 || tiles.1 > 1024 {
            let found = Value::from(tiles.0);
            return Err(fields.bad("min_tiles", "at most max_tiles, which is at most 1024", &found));
        }
        let (patch, factor) = (size("encoder_patch_size", 16)?, size("downsample_factor", 2)?);
        let tile = size("tile_size", 512)?;
        if split && !tile.is_multiple_of(patch * factor) {
            let expected = format!("a multiple of {}", patch * factor);
            return Err(fields.bad("tile_size", &expected, &Value::from(tile)));
        }
        fields.normalize(MEAN, MEAN)?;
        Ok(Self {
            filter: fields.resample(Filter::Bilinear)?,
            patch,
            factor,
            tokens: (size("min_image_tokens", 64)?, size("max_image_tokens", 256)?),
            tolerance: fields.number("max_pixels_tolerance", 2.0)?,
            tiles,
            tile,
            thumbnail: fields.flag("use_thumbnail", true)?,
            named: fields.flag("use_image_special_tokens", true)?,
            fields,
            marks,
        })
    }

    /// Side of a token in pixels.
    fn step(&self) -> usize {
        self.patch * self.factor
    }

    /// Width and height of a picture that is not cut: multiples of a token, the area within bounds.
    fn whole(&self, width: usize, height: usize) -> (usize, usize) {
        let step = self.step() as f64;
        let sides = [width as f64, height as f64];
        let area = |tokens: usize| tokens as f64 * step * step;
        let of = |least: f64, round: &dyn Fn(f64) -> f64| sides.map(|side| (round(side) * step).max(least));
        let mut out = of(step, &|side| (side / step).round_ties_even());
        if out[0] * out[1] > area(self.tokens.1) {
            let beta = (sides[0] * sides[1] / area(self.tokens.1)).sqrt();
            out = of(step, &|side| (side / beta / step).floor());
        } else if out[0] * out[1] < area(self.tokens.0) {
            let beta = (area(self.tokens.0) / (sides[0] * sides[1])).sqrt();
            out = of(0.0, &|side| (side * beta / step).ceil());
        }
        (out[0] as usize, out[1] as usize)
    }

    /// Columns and rows of tiles; one where the picture is not cut.
    fn grid(&self, width: usize, height: usize) -> (usize, usize) {
        let step = self.step() as f64;
        let rounded = |side: usize| ((side as f64 / step).round_ties_even() * step).max(self.patch as f64);
        let most = (self.tokens.1 as f64 * step * step) * self.tolerance;
        if self.tiles == (1, 1) || rounded(width) * rounded(height) <= most {
            return (1, 1);
        }
        let aspect = width as f64 / height as f64;
        let (least, most) = self.tiles;
        let mut grids: Vec<(usize, usize)> = (1..=most)
            .flat_map(|cols| (1..=most / cols).map(move |rows| (cols, rows)))
            .filter(|(cols, rows)| cols * rows >= least)
            .collect();
        grids.sort_by_key(|(cols, rows)| cols * rows);
        let (mut best, mut nearest) = ((1, 1), f64::INFINITY);
        for (cols, rows) in grids {
            let off = (aspect - cols as f64 / rows as f64).abs();
            let area = (self.tile * self.tile * cols * rows) as f64;
            if off < nearest || (off == nearest && (width * height) as f64 > 0.5 * area) {
                (best, nearest) = ((cols, rows), off);
            }
        }
        best
    }

    /// Tokens of a tile.
    fn tokens(&self, tile: &Tile) -> usize {
        (tile.height / self.step()) * (tile.width / self.step())
    }

    /// What stands for a picture in the prompt.
    fn expansion(&self, image: &PreparedImage) -> String {
        let Marks { image: mark, start, end, thumbnail } = &self.marks;
        let named = |text: &str| if self.named { text.to_owned() } else { String::new() };
        let mut out = named(start);
        let cut = image.rows * image.cols;
        for (i, tile) in image.tiles.iter().enumerate() {
            out += &match cut {
                0 => String::new(),
                _ if i < cut => {
                    named(&format!("<|img_row_{}_col_{}|>", i / image.cols + 1, i % image.cols + 1))
                }
                _ => named(thumbnail),
            };
            out += &mark.repeat(self.tokens(tile));
        }
        out + &named(end)
    }

    /// For each value of a tile's `[patches, patch * patch * 3]`, channels fastest, its place in `[3, height, width]`.
    fn places(&self, tile: &Tile) -> impl Iterator<Item = usize> + use<> {
        let (patch, height, width) = (self.patch, tile.height, tile.width);
        let cols = width / patch;
        (0..(height / patch) * cols).flat_map(move |at| {
            (0..patch * patch * 3).map(move |i| {
                let (y, x, channel) = (i / 3 / patch, i / 3 % patch, i % 3);
                (channel * height + at / cols * patch + y) * width + at % cols * patch + x
            })
        })
    }

    /// Patches that the reference fills tiles up to.
    fn padded(&self) -> usize {
        let tile = if self.tiles == (1, 1) { 0 } else { (self.tile / self.patch).pow(2) };
        (self.tokens.1 * self.factor * self.factor).max(tile)
    }
}

impl ocelli_engine::Processor for Processor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut fields = self.fields.clone();
        fields.set(key, value)?;
        *self = Self::new(fields, self.marks.clone())?;
        Ok(())
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        let to = |width, height| resize(image, width, height, self.filter, threads);
        let (width, height) = self.whole(image.width(), image.height());
        let (cols, rows) = self.grid(image.width(), image.height());
        let normalize = self.fields.normalize(MEAN, MEAN)?;
        if cols * rows == 1 {
            let tiles = vec![to(width, height)?.into()];
            return Ok(PreparedImage { tiles, rows: 0, cols: 0, normalize, assembly: None });
        }
        let mut tiles = cut(&to(cols * self.tile, rows * self.tile)?, rows, cols, (self.tile, self.tile));
        if self.thumbnail {
            tiles.push(to(width, height)?.into());
        }
        Ok(PreparedImage { tiles, rows, cols, normalize, assembly: None })
    }

    fn image_mark(&self) -> &str {
        &self.marks.image
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let mark = &self.marks.image;
        let id = tokenizer.token_to_id(mark);
        let id = id.ok_or_else(|| Error::Request(format!("the tokenizer has no token {mark}")))?;
        let pictures: Vec<String> = images.iter().map(|image| self.expansion(image)).collect();
        let of_image = |image: &&PreparedImage| image.tiles.iter().map(|tile| self.tokens(tile)).sum();
        let rows: Vec<usize> = images.iter().map(of_image).collect();
        lay_out(tokenizer, text, mark, &pictures, id, &rows)
    }

    fn pixel_values(&self, image: &PreparedImage) -> Vec<f32> {
        let each = self.padded() * self.patch * self.patch * 3;
        let mut all = Vec::with_capacity(image.tiles.len() * each);
        for (number, tile) in image.tiles.iter().enumerate() {
            let mut values = Vec::new();
            tile.write_values(&image.normalize, &mut values);
            all.extend(self.places(tile).map(|place| values[place]));
            all.resize(((number + 1) * each).max(all.len()), 0.0);
        }
        all
    }

    fn with_pixel_values(&self, image: &PreparedImage, values: &[f32]) -> Option<PreparedImage> {
        let each = values.len().checked_div(image.tiles.len())?;
        let mut tiles = Vec::with_capacity(image.tiles.len());
        for (tile, values) in image.tiles.iter().zip(values.chunks(each.max(1))) {
            let mut own = vec![0f32; 3 * tile.height * tile.width];
            if values.len() < own.len() {
                return None;
            }
            self.places(tile).zip(values).for_each(|(place, &value)| own[place] = value);
            tiles.push(Tile { pixels: Pixels::F32(own), ..*tile });
        }
        (tiles.len() == image.tiles.len()).then_some(PreparedImage { tiles, assembly: None, ..*image })
    }
}
