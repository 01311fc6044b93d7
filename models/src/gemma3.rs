//! Gemma 3: a SigLIP tower, an averaging connector and a decoder with windows, whose image tokens see each other.
//!
//! After `Gemma3ForConditionalGeneration`, `Gemma3Processor` and `Gemma3ImageProcessor` of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Filter, PreparedImage, Rgb8Image, Tile, resize};
use ocelli_engine::prompt::Span;
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Ctx, Model, Prompt, Result};

use crate::composed::Composed;
use crate::connector::Pooled;
use crate::fields::Config;
use crate::processor::{Edge, ImageFields, added_token, lay_out};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "gemma3",
    model_types: &["gemma3"],
    models: "Gemma 3",
    pictures: "one square, pan and scan",
    file: file!(),
    processor: |files| Ok(Box::new(Processor::load(files)?)),
    load,
    spare: &["vision_tower.vision_model.head."],
};

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["image_token_index", "image_token_id"]);
    let tower = VitPlan::siglip(&config.part("vision_config")?)?;
    // The reference ties head and embedding unless it is told not to.
    let tied = config.get("tie_word_embeddings")?.or(Some(true));
    let text = TextPlan::read(&config.part("text_config")?, &["gemma3_text"], tied)?;
    let tokens = config.size("mm_tokens_per_image", 256)?;
    let (side, across) = (tower.side(), tokens.isqrt());
    if across * across != tokens || !side.is_multiple_of(across) {
        let what = format!("expected the square of a divisor of {side} patches a side, found {tokens}");
        return Err(config.bad("mm_tokens_per_image", what));
    }
    let (sizes, eps) = ((tower.d, text.d), tower.norm_eps);
    let root = source.checkpoint.root();
    let root = if root.at("multi_modal_projector").exists() { root } else { root.at("model") };
    let tower = Vit::load(cx, &root.at("vision_tower").at_any(&["vision_model", ""]), tower)?;
    let connector = Pooled::load(cx, &root.at("multi_modal_projector"), side / across, sizes, eps)?;
    let language = root.at("language_model").at_any(&["model", ""]);
    let head = source.checkpoint.at_any(&["lm_head", "language_model.lm_head"]);
    let decoder = Decoder::load(cx, &language, &head, text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}

/// Fields beside the common ones.
const KEYS: &[&str] = &[
    "do_pan_and_scan",
    "image_seq_length",
    "pan_and_scan_max_num_crops",
    "pan_and_scan_min_crop_size",
    "pan_and_scan_min_ratio_to_activate",
];

/// Squeezes a picture into one tile; with pan and scan, pieces of long pictures follow as tiles of their own.
#[derive(Clone, Debug)]
struct Processor {
    fields: ImageFields,
    resize: bool,
    size: (usize, usize),
    filter: Filter,
    /// Least side of a piece, most pieces, and the ratio of sides from which on pictures are cut.
    pan_and_scan: Option<(usize, usize, f64)>,
    tokens: usize,
    /// Begins a picture; each of its features; ends it.
    marks: [String; 3],
    image_id: u32,
}

impl Processor {
    fn load(files: &ModelFiles) -> Result<Self> {
        let config = Config::load(files, "config.json")?;
        let root = config.root();
        let id =
            |keys: [&str; 2], usual: u32| Ok::<_, ocelli_engine::Error>(root.any(&keys)?.unwrap_or(usual));
        let image_id = id(["image_token_index", "image_token_id"], 262_144)?;
        let marks = [
            added_token(files, id(["boi_token_index", "boi_token_id"], 255_999)?)?,
            added_token(files, image_id)?,
            added_token(files, id(["eoi_token_index", "eoi_token_id"], 256_000)?)?,
        ];
        Self::new(ImageFields::load(files, KEYS)?, marks, image_id)
    }

    fn new(fields: ImageFields, marks: [String; 3], image_id: u32) -> Result<Self> {
        let size = match fields.edge("size", Edge::Exact { height: 224, width: 224 })? {
            Edge::Exact { height, width } => (height, width),
            Edge::Longest(side) | Edge::Shortest(side) => (side, side),
        };
        let cut = (
            fields.pixels("pan_and_scan_min_crop_size")?.unwrap_or(256),
            fields.pixels("pan_and_scan_max_num_crops")?.unwrap_or(4),
            fields.number("pan_and_scan_min_ratio_to_activate", 1.2)?,
        );
        fields.normalize([0.5; 3], [0.5; 3])?;
        Ok(Self {
            resize: fields.flag("do_resize", true)?,
            size,
            filter: fields.resample(Filter::Bilinear)?,
            pan_and_scan: fields.flag("do_pan_and_scan", false)?.then_some(cut),
            tokens: fields.pixels("image_seq_length")?.unwrap_or(256),
            fields,
            marks,
            image_id,
        })
    }

    /// Pieces of a picture: left, top, width and height.
    fn pieces(&self, width: usize, height: usize) -> Vec<[usize; 4]> {
        let Some((least, most, ratio)) = self.pan_and_scan else { return Vec::new() };
        let (long, short) = (width.max(height), width.min(height));
        if (long as f64) / (short as f64) < ratio {
            return Vec::new();
        }
        let count = ((long as f64 / short as f64 + 0.5).floor() as usize).min(long / least).max(2).min(most);
        let step = long.div_ceil(count);
        if step.min(short) < least {
            return Vec::new();
        }
        let piece = |i: usize| {
            let (start, end) = ((i * step).min(long), ((i + 1) * step).min(long));
            if width >= height { [start, 0, end - start, height] } else { [0, start, width, end - start] }
        };
        (0..count).map(piece).filter(|piece| piece[2] > 0 && piece[3] > 0).collect()
    }
}

impl ocelli_engine::Processor for Processor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut fields = self.fields.clone();
        fields.set(key, value)?;
        *self = Self::new(fields, self.marks.clone(), self.image_id)?;
        Ok(())
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        let pieces = self.pieces(image.width(), image.height());
        let crops =
            pieces.iter().filter_map(|&[left, top, width, height]| image.crop(left, top, width, height));
        let mut tiles: Vec<Tile> = Vec::with_capacity(1 + pieces.len());
        for picture in std::iter::once(image.clone()).chain(crops) {
            let (height, width) = if self.resize { self.size } else { (picture.height(), picture.width()) };
            tiles.push(resize(&picture, width, height, self.filter, threads)?.into());
        }
        let normalize = self.fields.normalize([0.5; 3], [0.5; 3])?;
        Ok(PreparedImage { tiles, rows: 0, cols: 0, normalize, assembly: None })
    }

    fn image_mark(&self) -> &str {
        &self.marks[0]
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let [begin, image, end] = &self.marks;
        let one = format!("\n\n{begin}{}{end}\n\n", image.repeat(self.tokens));
        let pictures: Vec<String> = images
            .iter()
            .map(|image| match image.tiles.len() {
                0 | 1 => one.clone(),
                tiles => format!(
                    "Here is the original image {one} and here are some crops to help you see better {}",
                    vec![one.as_str(); tiles - 1].join(" ")
                ),
            })
            .collect();
        let rows: Vec<usize> = images.iter().map(|image| image.tiles.len() * self.tokens).collect();
        let mut prompt = lay_out(tokenizer, text, begin, &pictures, self.image_id, &rows)?;
        prompt.blocks = prompt.spans.iter().map(Span::tokens).collect();
        Ok(prompt)
    }
}
