//! Image processor and prompt layout of SmolVLM, SmolVLM2 and Idefics3.
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

use std::ops::Range;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Filter, PreparedImage, Rgb8Image, resize};
use ocelli_engine::text::Tokenizer;
use ocelli_engine::video::{VideoProcessor, in_words};
use ocelli_engine::{Error, Prompt, Result};
use serde_json::Value;

use crate::processor::{Edge, ImageFields, cut, lay_out, special_token};

/// Longest side that the first resize may give, whatever `size` says.
const MAX_SIDE: usize = 4096;

/// Fields beside the common ones.
const KEYS: &[&str] = &["do_image_splitting", "image_seq_len", "max_image_size", "processor_class"];

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

/// The longest side of frames, as the video processor of a model has it: in a file of its own, or beside the image processor's fields.
fn frame_size(files: &ModelFiles) -> Result<Option<usize>> {
    let read = |name: &str| files.json::<Value>(name);
    let (outer, own, flat) = (
        read("processor_config.json")?,
        read("video_preprocessor_config.json")?,
        read("preprocessor_config.json")?,
    );
    let places = [
        outer.as_ref().and_then(|outer| outer.pointer("/video_processor/size/longest_edge")),
        own.as_ref().and_then(|own| own.pointer("/size/longest_edge")),
        flat.as_ref().and_then(|flat| flat.pointer("/video_sampling/video_size/longest_edge")),
    ];
    let side = places.into_iter().flatten().find_map(Value::as_u64).map(|side| side as usize);
    Ok(side.filter(|side| (1..=MAX_SIDE).contains(side)))
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
}

/// The processor of one checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Processor {
    fields: ImageFields,
    split: bool,
    resize: bool,
    filter: Filter,
    size: Edge,
    /// What frames of videos are resized to before they fill a tile.
    frame_size: Edge,
    /// Whether the class takes videos.
    videos: bool,
    /// Side of a tile, in pixels.
    pub tile: usize,
    /// Image tokens per tile.
    pub image_seq_len: usize,
    /// Strings that mark pictures in a prompt.
    pub tokens: ImageTokens,
}

impl Processor {
    /// Reads the processor of a model.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let fields = ImageFields::load(files, KEYS)?;
        let tokenizer = files.json::<Value>("tokenizer_config.json")?;
        // Idefics3Processor has its token strings built in.
        let class = fields.value("processor_class").or_else(|| tokenizer.as_ref()?.get("processor_class"));
        let built_in = class.and_then(Value::as_str) == Some("Idefics3Processor");
        let named = tokenizer.as_ref().filter(|_| !built_in);
        let mut processor = Self::new(fields, named)?;
        processor.videos = !built_in;
        processor.frame_size = frame_size(files)?.map_or(processor.size, Edge::Longest);
        Ok(processor)
    }

    /// The processor of these fields; `tokenizer` may name the token strings.
    pub fn new(fields: ImageFields, tokenizer: Option<&Value>) -> Result<Self> {
        let token =
            |key: &str, usual: &str| special_token(tokenizer, key).unwrap_or_else(|| usual.to_owned());
        let tokens = ImageTokens {
            image: token("image_token", "<image>"),
            fake: token("fake_image_token", "<fake_token_around_image>"),
            global: token("global_image_token", "<global-img>"),
        };
        let max = fields.edge("max_image_size", Edge::Longest(364))?;
        let (Edge::Longest(tile) | Edge::Shortest(tile) | Edge::Exact { height: tile, .. }) = max;
        fields.normalize([0.5; 3], [0.5; 3])?;
        Ok(Self {
            split: fields.flag("do_image_splitting", true)?,
            resize: fields.flag("do_resize", true)?,
            filter: fields.resample(Filter::Lanczos)?,
            size: fields.edge("size", Edge::Longest(4 * 364))?,
            frame_size: Edge::Longest(4 * 364),
            videos: false,
            tile,
            image_seq_len: fields.pixels("image_seq_len")?.unwrap_or(169),
            fields,
            tokens,
        })
    }

    /// Where a picture of `width x height` pixels (both at least 1) ends up, without touching pixels.
    #[must_use]
    pub fn layout(&self, width: usize, height: usize) -> Layout {
        let resized = match (self.resize, self.size) {
            (false, _) => (width, height),
            (true, Edge::Exact { height, width }) => (width, height),
            (true, Edge::Longest(edge) | Edge::Shortest(edge)) => longest_edge(width, height, edge),
        };
        let tile = self.tile;
        let mut layout = Layout { resized, canvas: (tile, tile), rows: 0, cols: 0 };
        if self.split {
            let (width, height) = round_up(resized.0, resized.1, tile);
            if width > tile || height > tile {
                let (rows, cols) = (height / tile, width / tile);
                layout = Layout { resized, canvas: (width, height), rows, cols };
            }
        }
        layout
    }

    /// What stands for one picture with that grid in the prompt; 0 x 0 for one that is not split.
    #[must_use]
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
}

impl ocelli_engine::Processor for Processor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut fields = self.fields.clone();
        fields.set(key, value)?;
        let (frame_size, videos) = (self.frame_size, self.videos);
        *self = Self { tokens: self.tokens.clone(), frame_size, videos, ..Self::new(fields, None)? };
        Ok(())
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        let layout = self.layout(image.width(), image.height());
        let to = |image: &Rgb8Image, (width, height)| resize(image, width, height, self.filter, threads);
        let canvas = to(&to(image, layout.resized)?, layout.canvas)?;
        let mut tiles = cut(&canvas, layout.rows, layout.cols, (self.tile, self.tile));
        tiles.push(to(&canvas, (self.tile, self.tile))?.into());
        let normalize = self.fields.normalize([0.5; 3], [0.5; 3])?;
        Ok(PreparedImage { tiles, rows: layout.rows, cols: layout.cols, normalize, assembly: None })
    }

    fn video(&self) -> Option<&dyn VideoProcessor> {
        self.videos.then_some(self)
    }

    fn image_mark(&self) -> &str {
        &self.tokens.image
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let mark = &self.tokens.image;
        let id = tokenizer.token_to_id(mark);
        let id = id.ok_or_else(|| Error::Request(format!("the tokenizer has no token {mark}")))?;
        let pictures: Vec<String> =
            images.iter().map(|image| self.expansion(image.rows, image.cols)).collect();
        let rows: Vec<usize> = images.iter().map(|image| image.tiles.len() * self.image_seq_len).collect();
        lay_out(tokenizer, text, mark, &pictures, id, &rows)
    }
}

/// The reference's own template for conversations with videos, which those of the models leave out.
const VIDEO_TEMPLATE: &str = "<|im_start|>{% for turn in messages %}{{ turn['role'] | capitalize }}\
    {{ ':' if turn['content'][0]['type'] == 'image' else ': ' }}\
    {% for part in turn['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}\
    {% elif part['type'] == 'image' %}{{ '<image>' }}{% elif part['type'] == 'video' %}{{ '<video>' }}{% endif %}{% endfor %}\
    <end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}";

/// Each frame is squeezed into one tile, and named by its time.
impl VideoProcessor for Processor {
    fn mark(&self) -> &str {
        "<video>"
    }

    fn template(&self) -> Option<&str> {
        Some(VIDEO_TEMPLATE)
    }

    fn picture(&self, frames: &[Rgb8Image], of: Range<usize>, threads: usize) -> Result<PreparedImage> {
        let whole = Self { split: false, size: self.frame_size, ..self.clone() };
        ocelli_engine::Processor::prepare(&whole, &frames[of.start], threads)
    }

    fn text(&self, times: &[f64], seconds: f64) -> String {
        let (count, seconds) = (in_words(times.len()), seconds as u64);
        let days = match seconds / 86_400 {
            0 => String::new(),
            1 => "1 day, ".into(),
            days => format!("{days} days, "),
        };
        let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
        let length = format!("{days}{hours}:{minutes:02}:{:02}", seconds % 60);
        let mut text = format!(
            "You are provided the following series of {count} frames from a {length} [H:MM:SS] video.\n"
        );
        for &time in times {
            let (minutes, seconds) = (time as u64 / 60, time as u64 % 60);
            text += &format!("\nFrame from {minutes:02}:{seconds:02}:{}", self.tokens.image);
        }
        text + "\n\n"
    }
}

/// Width and height with the longest side `edge`, the other one rounded down, then up to an even number, and neither
/// over [`MAX_SIDE`]. Divides by the aspect ratio in f64 as the reference does, so that rounding agrees.
fn longest_edge(width: usize, height: usize, edge: usize) -> (usize, usize) {
    let (width, height) = follow(width, height, edge, |side| side + side % 2);
    if width.max(height) > MAX_SIDE { follow(width, height, MAX_SIDE, |side| side) } else { (width, height) }
}

/// Width and height as multiples of `tile`: the longest side rounds up, the other one follows and rounds up again.
/// (Where the product with the aspect ratio falls just short of one pixel, the reference ends with a side of zero.)
fn round_up(width: usize, height: usize, tile: usize) -> (usize, usize) {
    let (width, height) = follow(width, height, width.max(height).next_multiple_of(tile), |side| side);
    (width.next_multiple_of(tile), height.next_multiple_of(tile))
}

/// Width and height with the longest side `longest`, the other one by the aspect ratio and then by `round`, at least 1.
fn follow(width: usize, height: usize, longest: usize, round: fn(usize) -> usize) -> (usize, usize) {
    let aspect = width as f64 / height as f64;
    if width >= height {
        (longest, round((longest as f64 / aspect) as usize).max(1))
    } else {
        (round((longest as f64 * aspect) as usize).max(1), longest)
    }
}
