//! Image processor and prompt layout of MiniCPM-V 4.6.
//!
//! After `MiniCPMV4_6ImageProcessor` and `MiniCPMV4_6Processor` of transformers. The whole picture comes first, in a size of its
//! own aspect; one that is larger is also cut into slices, of a grid whose aspect is nearest, which have a size of theirs.

use std::ops::Range;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Filter, Pixels, PreparedImage, Rgb8Image, Tile, resize};
use ocelli_engine::text::Tokenizer;
use ocelli_engine::video::VideoProcessor;
use ocelli_engine::{Error, Prompt, Result};
use serde_json::Value;

use crate::processor::{ImageFields, cut, lay_out_kinds, special_token};

/// Fields beside the common ones.
const KEYS: &[&str] =
    &["downsample_mode", "max_slice_nums", "patch_size", "scale_resolution", "slice_mode", "use_image_id"];

/// Patches along a side of a token: two merges of two.
const MERGED: usize = 4;

/// Strings in a prompt: what stands for a picture and each of its features; around the whole picture, a slice, a number.
#[derive(Clone, Debug)]
struct Marks {
    image: String,
    /// The same of videos and their frames.
    video: String,
    whole: [String; 2],
    slice: [String; 2],
    number: [String; 2],
}

/// The processor of one checkpoint.
#[derive(Clone, Debug)]
pub struct Processor {
    fields: ImageFields,
    filter: Filter,
    patch: usize,
    /// Side of the square whose area a slice has, in pixels.
    scale: usize,
    /// Most slices; 1: pictures are not cut.
    most: usize,
    numbered: bool,
    marks: Marks,
    /// What prepares frames of videos.
    frames: Option<Box<Processor>>,
}

/// The multiple of `divisor` that is nearest, at least one.
fn nearest(length: f64, divisor: usize) -> usize {
    (((length / divisor as f64).round_ties_even() as usize) * divisor).max(divisor)
}

impl Processor {
    /// Reads the processor of a model.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let tokenizer = files.json::<Value>("tokenizer_config.json")?;
        let mark = |key: &str, usual: &str| {
            special_token(tokenizer.as_ref(), key).unwrap_or_else(|| usual.to_owned())
        };
        let marks = Marks {
            image: mark("image_token", "<|image_pad|>"),
            video: mark("video_token", "<|video_pad|>"),
            whole: [mark("image_start_token", "<image>"), mark("image_end_token", "</image>")],
            slice: [mark("slice_start_token", "<slice>"), mark("slice_end_token", "</slice>")],
            number: [mark("image_id_start_token", "<image_id>"), mark("image_id_end_token", "</image_id>")],
        };
        let frames = Self::new(ImageFields::load_video(files, KEYS)?, marks.clone())?;
        Ok(Self { frames: Some(Box::new(frames)), ..Self::new(ImageFields::load(files, KEYS)?, marks)? })
    }

    fn new(fields: ImageFields, marks: Marks) -> Result<Self> {
        let size = |key: &str, usual: usize| Ok::<_, Error>(fields.pixels(key)?.unwrap_or(usual));
        if let Some(mode) = fields.value("downsample_mode").filter(|mode| mode.as_str() != Some("16x")) {
            return Err(fields.bad("downsample_mode", "16x", mode));
        }
        let (most, slices) = (size("max_slice_nums", 9)?, fields.flag("slice_mode", true)?);
        fields.normalize([0.5; 3], [0.5; 3])?;
        Ok(Self {
            filter: fields.resample(Filter::Bicubic)?,
            patch: size("patch_size", 14)?,
            scale: size("scale_resolution", 448)?,
            most: if slices { most } else { 1 },
            numbered: fields.flag("use_image_id", true)?,
            fields,
            marks,
            frames: None,
        })
    }

    /// Width and height, multiples of a token, for a picture or a slice; enlarged to the area of a slice with `enlarge`.
    fn best(&self, width: f64, height: f64, enlarge: bool) -> (usize, usize) {
        let (mut width, mut height) = (width, height);
        if width * height > (self.scale * self.scale) as f64 || enlarge {
            let aspect = width / height;
            height = (self.scale as f64 / aspect.sqrt()).trunc();
            width = (height * aspect).trunc();
        }
        (nearest(width, self.patch * MERGED), nearest(height, self.patch * MERGED))
    }

    /// Rows and columns of slices; `None` where a picture is not cut.
    fn grid(&self, width: usize, height: usize) -> Option<(usize, usize)> {
        let aspect = (width as f64 / height as f64).ln();
        let slices = ((width * height) as f64 / (self.scale * self.scale) as f64).ceil() as usize;
        let slices = slices.min(self.most);
        if slices <= 1 {
            return None;
        }
        let (mut best, mut least) = ((1, 1), f64::INFINITY);
        for count in (slices - 1..=slices + 1).filter(|count| *count != 1 && *count <= self.most) {
            for rows in (1..=count).filter(|rows| count.is_multiple_of(*rows)) {
                let cols = count / rows;
                let off = (aspect - (cols as f64 / rows as f64).ln()).abs();
                if off < least || (off == least && rows > best.0) {
                    (best, least) = ((rows, cols), off);
                }
            }
        }
        Some(best)
    }

    /// Tokens of a tile.
    fn tokens(&self, tile: &Tile) -> usize {
        (tile.height / self.patch) * (tile.width / self.patch) / (MERGED * MERGED)
    }

    /// What stands for a picture or a frame in a prompt: `mark` for each of its features. What has a `number` begins with it.
    fn expansion(&self, number: Option<usize>, mark: &str, image: &PreparedImage) -> String {
        let around = |[start, end]: &[String; 2], inside: &str| format!("{start}{inside}{end}");
        let features = |tile: &Tile| mark.repeat(self.tokens(tile));
        let mut tiles = image.tiles.iter();
        let mut out = String::new();
        if let Some(number) = number.filter(|_| self.numbered) {
            out += &around(&self.marks.number, &number.to_string());
        }
        out += &around(&self.marks.whole, &tiles.next().map_or(String::new(), features));
        let slices: Vec<String> = tiles.map(|tile| around(&self.marks.slice, &features(tile))).collect();
        let lines: Vec<String> = slices.chunks(image.cols.max(1)).map(<[String]>::concat).collect();
        out + &lines.join("\n")
    }

    /// For each value of a tile's `[patches, 3, patch, patch]`, its place in `[3, height, width]`.
    fn places(&self, tile: &Tile) -> impl Iterator<Item = usize> + use<> {
        let (patch, height, width) = (self.patch, tile.height, tile.width);
        let cols = width / patch;
        (0..(height / patch) * cols).flat_map(move |at| {
            (0..3 * patch * patch).map(move |i| {
                let (channel, y, x) = (i / patch / patch, i / patch % patch, i % patch);
                (channel * height + at / cols * patch + y) * width + at % cols * patch + x
            })
        })
    }
}

impl ocelli_engine::Processor for Processor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut fields = self.fields.clone();
        fields.set(key, value)?;
        let own = Self::new(fields, self.marks.clone())?;
        *self = Self { frames: self.frames.take(), ..own };
        Ok(())
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        let to = |(width, height)| resize(image, width, height, self.filter, threads);
        let (width, height) = (image.width(), image.height());
        let grid = self.grid(width, height);
        let mut tiles = vec![Tile::from(to(self.best(width as f64, height as f64, grid.is_none()))?)];
        let (rows, cols) = grid.unwrap_or((0, 0));
        if grid.is_some() {
            let (wide, high) = (nearest(width as f64, cols), nearest(height as f64, rows));
            let (wide, high) = self.best(wide as f64 / cols as f64, high as f64 / rows as f64, true);
            tiles.extend(cut(&to((wide * cols, high * rows))?, rows, cols, (wide, high)));
        }
        let normalize = self.fields.normalize([0.5; 3], [0.5; 3])?;
        Ok(PreparedImage { tiles, rows, cols, normalize, assembly: None })
    }

    fn image_mark(&self) -> &str {
        &self.marks.image
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let Marks { image: mark, video, .. } = &self.marks;
        let id = tokenizer.token_to_id(mark);
        let id = id.ok_or_else(|| Error::Request(format!("the tokenizer has no token {mark}")))?;
        let mut kinds = vec![(&**mark, id)];
        kinds.extend(tokenizer.token_to_id(video).map(|id| (&**video, id)));
        let of_image = |image: &&PreparedImage| image.tiles.iter().map(|tile| self.tokens(tile)).sum();
        let rows: Vec<usize> = images.iter().map(of_image).collect();
        // Pictures and videos are counted apart; the frames of one video follow each other.
        let (mut pictures, mut videos, mut within) = (0, 0, false);
        let expand = |picture: usize, mark: &str, before: &str| {
            let is_video = mark == video;
            let count = if is_video { &mut videos } else { &mut pictures };
            let number = (!(is_video && within && before.is_empty())).then_some(*count);
            *count += usize::from(number.is_some());
            within = is_video;
            self.expansion(number, mark, images[picture])
        };
        lay_out_kinds(tokenizer, text, &kinds, &rows, expand)
    }

    fn video(&self) -> Option<&dyn VideoProcessor> {
        self.frames.is_some().then_some(self)
    }

    fn pixel_values(&self, image: &PreparedImage) -> Vec<f32> {
        let mut all = Vec::new();
        for tile in &image.tiles {
            let mut values = Vec::new();
            tile.write_values(&image.normalize, &mut values);
            all.extend(self.places(tile).map(|place| values[place]));
        }
        all
    }

    fn with_pixel_values(&self, image: &PreparedImage, values: &[f32]) -> Option<PreparedImage> {
        let mut rest = values;
        let mut tiles = Vec::with_capacity(image.tiles.len());
        for tile in &image.tiles {
            let mut own = vec![0f32; 3 * tile.height * tile.width];
            let (values, after) = rest.split_at_checked(own.len())?;
            self.places(tile).zip(values).for_each(|(place, &value)| own[place] = value);
            tiles.push(Tile { pixels: Pixels::F32(own), ..*tile });
            rest = after;
        }
        rest.is_empty().then_some(PreparedImage { tiles, assembly: None, ..*image })
    }
}

/// Each frame is a picture, cut into slices as the video processor's fields say.
impl VideoProcessor for Processor {
    fn mark(&self) -> &str {
        &self.marks.video
    }

    fn picture(&self, frames: &[Rgb8Image], of: Range<usize>, threads: usize) -> Result<PreparedImage> {
        let own = self.frames.as_deref().unwrap_or(self);
        if let Some(value) = own.fields.value("stack_frames").filter(|value| **value != 1) {
            return Err(own.fields.bad("stack_frames", "1", value));
        }
        ocelli_engine::Processor::prepare(own, &frames[of.start], threads)
    }

    fn text(&self, times: &[f64], _: f64) -> String {
        self.marks.video.repeat(times.len())
    }
}
