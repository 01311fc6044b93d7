//! Image processor and prompt expansion of SmolVLM, SmolVLM2 and Idefics3.
//!
//! Follows transformers' `SmolVLMImageProcessor` / `Idefics3ImageProcessor` (torchvision backend) and `SmolVLMProcessor`
//! / `Idefics3Processor`, which differ only in where the token strings come from. A picture is
//!
//! 1. resized so that its longest side is `size.longest_edge` (at most 4096), the other side even;
//! 2. with `do_image_splitting`: resized to multiples of the tile side `max_image_size.longest_edge` (sides round up
//!    separately, so the aspect changes a little), cut into rows x cols tiles, and followed by the whole picture
//!    squeezed into one tile; a picture of a single tile is that tile alone;
//! 3. without: squeezed into one tile.
//!
//! Each step rounds to 8 bits. The prompt names the tiles row by row, each followed by `image_seq_len` image tokens,
//! with a newline after each row and another before the whole picture. It must be tokenized after expansion, as
//! neighbouring newlines may be one token.
//!
//! The reference takes tiles whose values are all zero after normalization for padding, drops them, and then fails
//! because features and image tokens differ in number. With the published mean and deviation of 0.5 no grey level
//! becomes zero, so this needs other settings (`do_normalize=false` and black tiles). Here tiles are never dropped.

use std::path::Path;

use ocelli_engine::image::{Filter, ImageError, Normalize, PreparedImage, Rgb8Image, Tile, resize};
use serde_json::Value;
use thiserror::Error;

/// Longest side that the first resize may give, whatever `size` says.
const MAX_SIDE: usize = 4096;
/// Largest value of a size field that is accepted; it keeps every product of sizes far from overflow.
const MAX_FIELD: u64 = 1 << 14;

/// Why a processor could not be set up or a prompt not expanded.
#[derive(Debug, Error)]
pub enum ProcessorError {
    /// A configuration file could not be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A configuration file is not JSON.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: String,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// A field has a value of the wrong kind or out of range.
    #[error("image processor: {key}: expected {expected}, found {found}")]
    Value {
        /// Field, such as `size.longest_edge`.
        key: String,
        /// What is accepted.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// An override names a field that the processor does not have.
    #[error("image processor: unknown key {key:?}; known keys: {}", KEYS.join(", "))]
    UnknownKey {
        /// The name as given.
        key: String,
    },
    /// Pictures and their places in the prompt differ in number.
    #[error("the prompt has {places} {token} tokens, but {pictures} pictures were given")]
    PictureCount {
        /// The token that stands for a picture.
        token: String,
        /// How many the prompt has.
        places: usize,
        /// How many pictures there are.
        pictures: usize,
    },
    /// A picture could not be resized.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Fields that [`Processor::set`] takes, by their names in `preprocessor_config.json`.
pub const KEYS: [&str; 11] = [
    "do_image_splitting",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_seq_len",
    "image_std",
    "max_image_size",
    "resample",
    "rescale_factor",
    "size",
];

/// `size`: what the first resize aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// The longest side, in pixels; the aspect is kept.
    LongestEdge(usize),
    /// Both sides, in pixels.
    Exact {
        /// Rows.
        height: usize,
        /// Pixels per row.
        width: usize,
    },
}

/// The strings that mark pictures in a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageTokens {
    /// Stands for a picture in the template's output, and for one image feature after expansion.
    pub image: String,
    /// Comes before each tile's name and at the end of a picture.
    pub fake: String,
    /// Names the whole picture.
    pub global: String,
}

impl Default for ImageTokens {
    fn default() -> Self {
        Self {
            image: "<image>".to_owned(),
            fake: "<fake_token_around_image>".to_owned(),
            global: "<global-img>".to_owned(),
        }
    }
}

/// How a picture of a given size is laid out; all sizes in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Width and height after the first resize.
    pub resized: (usize, usize),
    /// Width and height of the picture that is cut into tiles (that of one tile where it is not split).
    pub canvas: (usize, usize),
    /// Rows of tiles; 0 where the picture is not split.
    pub rows: usize,
    /// Columns of tiles; 0 where the picture is not split.
    pub cols: usize,
    /// Side of the square tiles.
    pub tile: usize,
}

impl Layout {
    /// Tiles that the vision tower sees: the grid and the whole picture.
    pub fn tiles(&self) -> usize {
        self.rows * self.cols + 1
    }
}

/// The image processor of one checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Processor {
    /// Whether pictures are cut into tiles.
    pub do_image_splitting: bool,
    /// Whether the first resize takes place.
    pub do_resize: bool,
    /// Whether grey levels are multiplied by `rescale_factor`.
    pub do_rescale: bool,
    /// Whether values are normalized by `image_mean` and `image_std`.
    pub do_normalize: bool,
    /// Filter of all resizes.
    pub resample: Filter,
    /// What grey levels are multiplied by.
    pub rescale_factor: f64,
    /// Mean per channel, after rescaling.
    pub image_mean: [f32; 3],
    /// Standard deviation per channel, after rescaling.
    pub image_std: [f32; 3],
    /// Size that the first resize aims at.
    pub size: Size,
    /// Side of a tile, in pixels (`max_image_size.longest_edge`).
    pub max_image_size: usize,
    /// Image tokens per tile.
    pub image_seq_len: usize,
    /// Strings that mark pictures in a prompt.
    pub tokens: ImageTokens,
}

impl Default for Processor {
    /// The defaults of transformers' classes.
    fn default() -> Self {
        Self {
            do_image_splitting: true,
            do_resize: true,
            do_rescale: true,
            do_normalize: true,
            resample: Filter::Lanczos,
            rescale_factor: 1.0 / 255.0,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
            size: Size::LongestEdge(4 * 364),
            max_image_size: 364,
            image_seq_len: 169,
            tokens: ImageTokens::default(),
        }
    }
}

fn read_json(path: &Path) -> Result<Option<Value>, ProcessorError> {
    let name = || path.display().to_string();
    match std::fs::read(path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(source) => Err(ProcessorError::Json { path: name(), source }),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ProcessorError::Read { path: name(), source }),
    }
}

fn bad(key: &str, expected: &'static str, found: &Value) -> ProcessorError {
    ProcessorError::Value { key: key.to_owned(), expected, found: found.to_string() }
}

fn boolean(key: &str, value: &Value) -> Result<bool, ProcessorError> {
    value.as_bool().ok_or_else(|| bad(key, "true or false", value))
}

fn pixels(key: &str, value: &Value) -> Result<usize, ProcessorError> {
    match value.as_u64() {
        Some(n @ 1..=MAX_FIELD) => Ok(n as usize),
        _ => Err(bad(key, "a whole number from 1 to 16384", value)),
    }
}

fn channels(key: &str, value: &Value) -> Result<[f32; 3], ProcessorError> {
    let number = |v: &Value| v.as_f64().map(|v| v as f32).filter(|v| v.is_finite());
    let read = || match value {
        Value::Array(list) => match list[..] {
            [ref r, ref g, ref b] => Some([number(r)?, number(g)?, number(b)?]),
            _ => None,
        },
        _ => Some([number(value)?; 3]),
    };
    read().ok_or_else(|| bad(key, "a number or a list of three", value))
}

impl Processor {
    /// Reads `processor_config.json`, `preprocessor_config.json` and `tokenizer_config.json` of a model directory.
    /// Files that are absent are left out, fields that are absent have the defaults of transformers' classes.
    ///
    /// # Errors
    ///
    /// [`ProcessorError::Read`], [`ProcessorError::Json`], [`ProcessorError::Value`].
    pub fn load(dir: &Path) -> Result<Self, ProcessorError> {
        Self::from_json(
            read_json(&dir.join("processor_config.json"))?.as_ref(),
            read_json(&dir.join("preprocessor_config.json"))?.as_ref(),
            read_json(&dir.join("tokenizer_config.json"))?.as_ref(),
        )
    }

    /// As [`Processor::load`], from the parsed files. Checkpoints of transformers 5 nest the image processor in
    /// `processor_config.json`, which wins over `preprocessor_config.json`, where version 4 keeps it.
    ///
    /// # Errors
    ///
    /// [`ProcessorError::Value`].
    pub fn from_json(
        processor: Option<&Value>,
        preprocessor: Option<&Value>,
        tokenizer: Option<&Value>,
    ) -> Result<Self, ProcessorError> {
        let mut out = Self::default();
        let nested = processor.and_then(|p| p.get("image_processor"));
        if let Some(fields) = nested.or(preprocessor) {
            for key in KEYS {
                match fields.get(key) {
                    None | Some(Value::Null) => {}
                    Some(value) => out.set(key, value)?,
                }
            }
        }
        let own =
            |key: &str| processor.and_then(|p| p.get(key)).or_else(|| preprocessor.and_then(|p| p.get(key)));
        if let Some(value) = own("image_seq_len").filter(|v| !v.is_null()) {
            out.set("image_seq_len", value)?;
        }
        // Idefics3Processor has its token strings built in.
        let class = own("processor_class").or_else(|| tokenizer.and_then(|t| t.get("processor_class")));
        if class.and_then(Value::as_str) != Some("Idefics3Processor") {
            out.tokens.read(tokenizer);
        }
        Ok(out)
    }

    /// Sets one field as `--processor KEY=VALUE` asks: `value` is JSON (`true`, `512`, `[0.5, 0.5, 0.5]`,
    /// `{"longest_edge": 512}`; Python's `True` and `False` also do), and `size.longest_edge=512`, `size.height`,
    /// `size.width` and `max_image_size.longest_edge` name a part of a field.
    ///
    /// # Errors
    ///
    /// [`ProcessorError::UnknownKey`] with the known keys, [`ProcessorError::Value`] with what is accepted.
    pub fn set_text(&mut self, key: &str, value: &str) -> Result<(), ProcessorError> {
        let value = match value.trim() {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            text => serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())),
        };
        self.set(key, &value)
    }

    /// Sets one field from its JSON value.
    ///
    /// # Errors
    ///
    /// [`ProcessorError::UnknownKey`], [`ProcessorError::Value`].
    pub fn set(&mut self, key: &str, value: &Value) -> Result<(), ProcessorError> {
        match key {
            "do_image_splitting" => self.do_image_splitting = boolean(key, value)?,
            "do_normalize" => self.do_normalize = boolean(key, value)?,
            "do_rescale" => self.do_rescale = boolean(key, value)?,
            "do_resize" => self.do_resize = boolean(key, value)?,
            "image_mean" => self.image_mean = channels(key, value)?,
            "image_std" => {
                let std = channels(key, value)?;
                if std.contains(&0.0) {
                    return Err(bad(key, "numbers other than zero", value));
                }
                self.image_std = std;
            }
            "rescale_factor" => match value.as_f64() {
                Some(factor) if factor.is_normal() => self.rescale_factor = factor,
                _ => return Err(bad(key, "a number other than zero", value)),
            },
            "resample" => {
                let filter = value.as_u64().and_then(Filter::from_pil);
                self.resample =
                    filter.ok_or_else(|| bad(key, "1 (Lanczos), 2 (bilinear) or 3 (bicubic)", value))?;
            }
            "image_seq_len" => self.image_seq_len = pixels(key, value)?,
            "size" => self.size = Self::size(value)?,
            "size.longest_edge" => self.size = Size::LongestEdge(pixels(key, value)?),
            "size.height" | "size.width" => {
                let given = pixels(key, value)?;
                let (mut height, mut width) = match self.size {
                    Size::Exact { height, width } => (height, width),
                    Size::LongestEdge(_) => (given, given),
                };
                *(if key == "size.height" { &mut height } else { &mut width }) = given;
                self.size = Size::Exact { height, width };
            }
            "max_image_size" => {
                let side = value.get("longest_edge").unwrap_or(value);
                self.max_image_size = pixels(key, side)?;
            }
            "max_image_size.longest_edge" => self.max_image_size = pixels(key, value)?,
            _ => return Err(ProcessorError::UnknownKey { key: key.to_owned() }),
        }
        Ok(())
    }

    fn size(value: &Value) -> Result<Size, ProcessorError> {
        if let Some(edge) = value.get("longest_edge").filter(|v| !v.is_null()) {
            return Ok(Size::LongestEdge(pixels("size.longest_edge", edge)?));
        }
        match (value.get("height"), value.get("width")) {
            (Some(h), Some(w)) => {
                Ok(Size::Exact { height: pixels("size.height", h)?, width: pixels("size.width", w)? })
            }
            _ if value.is_u64() => {
                let side = pixels("size", value)?;
                Ok(Size::Exact { height: side, width: side })
            }
            _ => Err(bad("size", "{\"longest_edge\": N}, {\"height\": N, \"width\": N} or N", value)),
        }
    }

    /// Where a picture of `width x height` pixels (both at least 1) ends up, without touching pixels.
    pub fn layout(&self, width: usize, height: usize) -> Layout {
        let resized = match (self.do_resize, self.size) {
            (false, _) => (width, height),
            (true, Size::Exact { height, width }) => (width, height),
            (true, Size::LongestEdge(edge)) => longest_edge(width, height, edge),
        };
        let tile = self.max_image_size;
        let mut layout = Layout { resized, canvas: (tile, tile), rows: 0, cols: 0, tile };
        if self.do_image_splitting {
            let (width, height) = round_up(resized.0, resized.1, tile);
            if width > tile || height > tile {
                layout =
                    Layout { canvas: (width, height), rows: height / tile, cols: width / tile, ..layout };
            }
        }
        layout
    }

    /// Resizes and cuts one picture, with at most `threads` threads.
    ///
    /// # Errors
    ///
    /// [`ProcessorError::Image`] if there is no memory.
    pub fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage, ProcessorError> {
        let layout = self.layout(image.width(), image.height());
        let to = |image: &Rgb8Image, (width, height)| resize(image, width, height, self.resample, threads);
        let canvas = to(&to(image, layout.resized)?, layout.canvas)?;
        let tile = layout.tile;
        let mut tiles: Vec<Tile> = Vec::with_capacity(layout.tiles());
        for row in 0..layout.rows {
            for col in 0..layout.cols {
                // The canvas is a whole number of tiles, so every crop lies inside.
                tiles.extend(canvas.crop(col * tile, row * tile, tile, tile).map(Tile::from));
            }
        }
        tiles.push(to(&canvas, (tile, tile))?.into());
        Ok(PreparedImage { tiles, rows: layout.rows, cols: layout.cols, normalize: self.normalize() })
    }

    /// Rescaling and normalization as one step on grey levels, folded as the reference folds them (in f32).
    pub fn normalize(&self) -> Normalize {
        let per_level = (1.0 / self.rescale_factor) as f32;
        match (self.do_rescale, self.do_normalize) {
            (true, true) => Normalize {
                mean: self.image_mean.map(|v| v * per_level),
                std: self.image_std.map(|v| v * per_level),
            },
            (false, true) => Normalize { mean: self.image_mean, std: self.image_std },
            (true, false) => Normalize { mean: [0.0; 3], std: [per_level; 3] },
            (false, false) => Normalize::IDENTITY,
        }
    }

    /// Replaces each picture's place in the prompt by the names of its tiles and their image tokens.
    ///
    /// # Errors
    ///
    /// [`ProcessorError::PictureCount`] if places and pictures differ in number.
    pub fn expand_prompt(&self, prompt: &str, images: &[PreparedImage]) -> Result<String, ProcessorError> {
        let token = &self.tokens.image;
        let mut pieces = prompt.split(token.as_str());
        let places = pieces.clone().count() - 1;
        if places != images.len() {
            return Err(ProcessorError::PictureCount {
                token: token.clone(),
                places,
                pictures: images.len(),
            });
        }
        let mut out = pieces.next().unwrap_or_default().to_owned();
        for (piece, image) in pieces.zip(images) {
            out += &self.expansion(image.rows, image.cols);
            out += piece;
        }
        Ok(out)
    }

    /// What stands for one picture with that grid in the prompt; 0 x 0 for one that is not split.
    pub fn expansion(&self, rows: usize, cols: usize) -> String {
        let ImageTokens { image, fake, global } = &self.tokens;
        let features = image.repeat(self.image_seq_len);
        let mut out = String::new();
        for row in 1..=rows {
            for col in 1..=cols {
                out += &format!("{fake}<row_{row}_col_{col}>{features}");
            }
            out += "\n";
        }
        if rows > 0 || cols > 0 {
            out += "\n";
        }
        out += &format!("{fake}{global}{features}{fake}");
        out
    }

    /// Image features (and image tokens) of one prepared picture.
    pub fn image_tokens(&self, image: &PreparedImage) -> usize {
        image.tiles.len() * self.image_seq_len
    }
}

impl ImageTokens {
    /// Takes the strings that a `tokenizer_config.json` names, at the top or among its extra special tokens.
    fn read(&mut self, tokenizer: Option<&Value>) {
        let Some(config) = tokenizer else { return };
        let text = |key: &str| {
            let places = [
                Some(config),
                config.get("extra_special_tokens"),
                config.get("model_specific_special_tokens"),
            ];
            places.into_iter().flatten().find_map(|place| {
                let value = place.get(key)?;
                let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
                (!text.is_empty()).then(|| text.to_owned())
            })
        };
        for (key, own) in [
            ("image_token", &mut self.image),
            ("fake_image_token", &mut self.fake),
            ("global_image_token", &mut self.global),
        ] {
            if let Some(text) = text(key) {
                *own = text;
            }
        }
    }
}

/// Width and height with the longest side `edge`, the other one rounded down, then up to an even number, and neither
/// over [`MAX_SIDE`]. Divides by the aspect ratio in f64 as the reference does, so that rounding agrees.
fn longest_edge(width: usize, height: usize, edge: usize) -> (usize, usize) {
    let even = |side: usize| side + side % 2;
    let aspect = width as f64 / height as f64;
    let (width, height) = if width >= height {
        (edge, even((edge as f64 / aspect) as usize).max(1))
    } else {
        (even((edge as f64 * aspect) as usize).max(1), edge)
    };
    let aspect = width as f64 / height as f64;
    if width >= height && width > MAX_SIDE {
        (MAX_SIDE, ((MAX_SIDE as f64 / aspect) as usize).max(1))
    } else if height > width && height > MAX_SIDE {
        (((MAX_SIDE as f64 * aspect) as usize).max(1), MAX_SIDE)
    } else {
        (width, height)
    }
}

/// Width and height as multiples of `tile`: the longest side rounds up, the other one follows and rounds up again.
/// (Where the product with the aspect ratio falls just short of one pixel, the reference ends with a side of zero.)
fn round_up(width: usize, height: usize, tile: usize) -> (usize, usize) {
    let aspect = width as f64 / height as f64;
    if width >= height {
        let width = width.next_multiple_of(tile);
        (width, ((width as f64 / aspect) as usize).max(1).next_multiple_of(tile))
    } else {
        let height = height.next_multiple_of(tile);
        (((height as f64 * aspect) as usize).max(1).next_multiple_of(tile), height)
    }
}
