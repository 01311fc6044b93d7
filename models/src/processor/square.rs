//! Pictures resized and cropped to one size: `CLIPImageProcessor` and its like, with one image token for each patch.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Filter, PreparedImage, Rgb8Image, resize};
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Prompt, Result};

use super::{Edge, ImageFields, lay_out};

/// Fields beside the common ones.
const KEYS: &[&str] = &["crop_size", "do_center_crop"];

/// CLIP's mean and standard deviation.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// See [`CLIP_MEAN`].
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// What a class of image processors takes where the fields say nothing.
#[derive(Clone, Copy, Debug)]
struct Class {
    size: Edge,
    crop: bool,
    mean: [f32; 3],
    std: [f32; 3],
}

/// `CLIPImageProcessor`.
const CLIP: Class = Class { size: Edge::Shortest(224), crop: true, mean: CLIP_MEAN, std: CLIP_STD };

/// `SiglipImageProcessor`.
const SIGLIP: Class =
    Class { size: Edge::Exact { height: 224, width: 224 }, crop: false, mean: [0.5; 3], std: [0.5; 3] };

/// `BlipImageProcessor`.
const BLIP: Class =
    Class { size: Edge::Exact { height: 384, width: 384 }, crop: false, mean: CLIP_MEAN, std: CLIP_STD };

/// A processor of one checkpoint.
#[derive(Clone, Debug)]
pub struct SquareProcessor {
    class: Class,
    fields: ImageFields,
    resize: Option<Edge>,
    crop: Option<(usize, usize)>,
    filter: Filter,
    /// Side of a patch in pixels, and tokens beside those of patches.
    patch: (usize, usize),
    /// What stands for a picture in a prompt, and for each of its features after expansion.
    token: (String, u32),
}

impl SquareProcessor {
    /// Reads the processor of a model whose tower has patches of `patch.0` pixels and gives `patch.1` rows beside them.
    pub fn load(files: &ModelFiles, patch: (usize, usize), token: (String, u32)) -> Result<Self> {
        Self::new(CLIP, ImageFields::load(files, KEYS)?, patch, token)
    }

    /// The same of `SiglipImageProcessor`, which squeezes pictures.
    pub fn siglip(files: &ModelFiles, patch: (usize, usize), token: (String, u32)) -> Result<Self> {
        Self::new(SIGLIP, ImageFields::load(files, KEYS)?, patch, token)
    }

    /// The same of `BlipImageProcessor`, which squeezes pictures.
    pub fn blip(files: &ModelFiles, patch: (usize, usize), token: (String, u32)) -> Result<Self> {
        Self::new(BLIP, ImageFields::load(files, KEYS)?, patch, token)
    }

    fn new(class: Class, fields: ImageFields, patch: (usize, usize), token: (String, u32)) -> Result<Self> {
        let size = fields.edge("size", class.size)?;
        let crop = match fields.edge("crop_size", Edge::Exact { height: 224, width: 224 })? {
            Edge::Exact { height, width } => (height, width),
            Edge::Longest(side) | Edge::Shortest(side) => (side, side),
        };
        fields.normalize(class.mean, class.std)?;
        Ok(Self {
            class,
            resize: fields.flag("do_resize", true)?.then_some(size),
            crop: fields.flag("do_center_crop", class.crop)?.then_some(crop),
            filter: fields.resample(Filter::Bicubic)?,
            fields,
            patch,
            token,
        })
    }

    /// Width and height after the resize.
    fn resized(&self, width: usize, height: usize) -> (usize, usize) {
        let (short, long) = (width.min(height), width.max(height));
        let scaled = |short_side: usize, long_side: usize| {
            if width <= height { (short_side, long_side) } else { (long_side, short_side) }
        };
        match self.resize {
            None => (width, height),
            Some(Edge::Exact { height, width }) => (width, height),
            Some(Edge::Shortest(edge)) => scaled(edge, (edge * long / short).max(1)),
            Some(Edge::Longest(edge)) => scaled((edge * short / long).max(1), edge),
        }
    }
}

impl ocelli_engine::Processor for SquareProcessor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut fields = self.fields.clone();
        fields.set(key, value)?;
        *self = Self::new(self.class, fields, self.patch, self.token.clone())?;
        Ok(())
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        let (width, height) = self.resized(image.width(), image.height());
        let mut out = resize(image, width, height, self.filter, threads)?;
        if let Some((rows, cols)) = self.crop {
            out = crop_or_pad(&out, rows, cols);
        }
        let normalize = self.fields.normalize(self.class.mean, self.class.std)?;
        Ok(PreparedImage { tiles: vec![out.into()], rows: 0, cols: 0, normalize, assembly: None })
    }

    fn image_mark(&self) -> &str {
        &self.token.0
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let (patch, extra) = self.patch;
        let of_image = |image: &&PreparedImage| {
            image.tiles.iter().map(|tile| (tile.height / patch) * (tile.width / patch) + extra).sum()
        };
        let rows: Vec<usize> = images.iter().map(of_image).collect();
        let (mark, id) = (&self.token.0, self.token.1);
        let pictures: Vec<String> = rows.iter().map(|&rows| mark.repeat(rows)).collect();
        lay_out(tokenizer, text, mark, &pictures, id, &rows)
    }
}

/// The middle of a picture, `rows x cols`; black beyond its edges.
fn crop_or_pad(image: &Rgb8Image, rows: usize, cols: usize) -> Rgb8Image {
    let (width, height) = (image.width(), image.height());
    let start =
        |have: usize, want: usize| (have.saturating_sub(want) / 2, want.saturating_sub(have).div_ceil(2));
    let ((top, down), (left, right)) = (start(height, rows), start(width, cols));
    let mut data = vec![0; rows * cols * 3];
    for row in 0..rows.min(height) {
        let from = ((top + row) * width + left) * 3;
        let to = ((down + row) * cols + right) * 3;
        let len = cols.min(width) * 3;
        data[to..to + len].copy_from_slice(&image.data()[from..from + len]);
    }
    // As many bytes as pixels.
    Rgb8Image::from_raw(cols, rows, data).unwrap_or_else(|| image.clone())
}
