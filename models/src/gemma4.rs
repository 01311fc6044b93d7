//! Gemma 4: a tower with rotations on pictures of any size, averaged to a budget of tokens, and a decoder of windows between layers that
//! see everything; in the small kinds with inputs of each layer and shared keys, in one kind with experts.
//!
//! After `Gemma4ForConditionalGeneration`, `Gemma4Processor` and `Gemma4ImageProcessor` of transformers; pictures and text.

use std::ops::Range;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Filter, Normalize, Pixels, PreparedImage, Rgb8Image, Tile, resize};
use ocelli_engine::prompt::Span;
use ocelli_engine::text::Tokenizer;
use ocelli_engine::video::VideoProcessor;
use ocelli_engine::{Ctx, Error, Model, Prompt, Result};

use crate::composed::Composed;
use crate::connector::Averaged;
use crate::fields::Config;
use crate::processor::{ImageFields, added_token, lay_out_kinds};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan};

/// The family's row in the registry. Files may have a tower for sounds, and keys of layers that read those of others.
pub const FAMILY: Family = Family {
    name: "gemma4",
    model_types: &["gemma4"],
    models: "Gemma 4",
    pictures: "any size, within a budget of tokens; frames of videos",
    file: file!(),
    processor: |files| Ok(Box::new(Processor::load(files)?)),
    load,
    spare: &[
        "audio_tower.",
        "embed_audio.",
        "self_attn.k_proj.",
        "self_attn.v_proj.",
        "self_attn.k_norm.",
        "self_attn.v_norm.",
    ],
};

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["audio_config", "boa_token_id"]);
    config.inert(&["eoa_token_id", "eoa_token_index", "vision_soft_tokens_per_image"]);
    let vision = config.part("vision_config")?;
    let tower = VitPlan::gemma4(&vision)?;
    let block = vision.size("pooling_kernel_size", 3)?;
    let standardize = vision.or("standardize", false)?;
    let tied = config.get("tie_word_embeddings")?.or(Some(true));
    let text = config.part("text_config")?;
    let pad = text.or("pad_token_id", 0)?;
    let mut text = TextPlan::read(&text, &["gemma4_text"], tied)?;
    let marks = [IMAGE, VIDEO, AUDIO].map(|(key, id)| config.or(key, id));
    text.placeholders = Some((marks.into_iter().collect::<Result<_>>()?, pad));
    let (sizes, eps) = ((tower.d, text.d), tower.norm_eps);
    let root = source.checkpoint.root().at_any(&["model", ""]);
    let visual = root.at("vision_tower");
    let tower = Vit::load(cx, &visual, tower)?;
    let parts = (&visual, &root.at("embed_vision"));
    let connector = Averaged::load(cx, parts, block, sizes, eps, standardize)?;
    let language = root.at("language_model").at_any(&["model", ""]);
    let head = source.checkpoint.at_any(&["lm_head", "language_model.lm_head"]);
    let decoder = Decoder::load(cx, &language, &head, text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}

/// Tokens of places of features, each with its field and what it is without.
const IMAGE: (&str, u32) = ("image_token_id", 258_880);
const VIDEO: (&str, u32) = ("video_token_id", 258_884);
const AUDIO: (&str, u32) = ("audio_token_id", 258_881);

/// Fields beside the common ones.
const KEYS: &[&str] = &["max_soft_tokens", "patch_size", "pooling_kernel_size"];

/// Tokens of a frame of a video where the files say nothing.
const FRAME: usize = 70;

/// Budgets that the reference takes.
const BUDGETS: [usize; 5] = [70, 140, 280, 560, 1120];

/// Fits pictures into a budget of tokens, keeping their aspect; a token is a block of patches.
#[derive(Clone, Debug)]
struct Processor {
    fields: ImageFields,
    resize: bool,
    filter: Filter,
    patch: usize,
    /// Side of a block in patches.
    block: usize,
    /// Most tokens of a picture.
    budget: usize,
    marks: Marks,
    /// What prepares frames of videos.
    frames: Option<Box<Processor>>,
}

/// What is in a prompt for a picture.
#[derive(Clone, Debug)]
struct Marks {
    begin: String,
    image: String,
    end: String,
    image_id: u32,
    /// Stands for a video in a rendered conversation, and for a feature of its frames; none where the tokenizer has no such token.
    video: Option<(String, u32)>,
    /// Whether the tokens of a picture see each other.
    blocks: bool,
}

impl Processor {
    fn load(files: &ModelFiles) -> Result<Self> {
        let config = Config::load(files, "config.json")?;
        let root = config.root();
        let image_id = root.or(IMAGE.0, IMAGE.1)?;
        let video_id = root.or(VIDEO.0, VIDEO.1)?;
        let video = added_token(files, video_id).ok();
        let seen: Option<String> = root.at("text_config").get("use_bidirectional_attention")?;
        let marks = Marks {
            begin: added_token(files, root.or("boi_token_id", 255_999)?)?,
            image: added_token(files, image_id)?,
            end: added_token(files, root.or("eoi_token_id", 258_882)?)?,
            image_id,
            video: video.map(|mark| (mark, video_id)),
            blocks: seen.as_deref() == Some("vision"),
        };
        let frames = Self::new(
            ImageFields::load_video(files, KEYS)?.or("max_soft_tokens", FRAME.into()),
            marks.clone(),
        )?;
        Ok(Self { frames: Some(Box::new(frames)), ..Self::new(ImageFields::load(files, KEYS)?, marks)? })
    }

    fn new(fields: ImageFields, marks: Marks) -> Result<Self> {
        let budget = fields.pixels("max_soft_tokens")?.unwrap_or(280);
        if !BUDGETS.contains(&budget) {
            return Err(fields.bad("max_soft_tokens", "one of 70, 140, 280, 560, 1120", &budget.into()));
        }
        let own = Self {
            resize: fields.flag("do_resize", true)?,
            filter: fields.resample(Filter::Bicubic)?,
            patch: fields.pixels("patch_size")?.unwrap_or(16),
            block: fields.pixels("pooling_kernel_size")?.unwrap_or(3),
            budget,
            fields,
            marks,
            frames: None,
        };
        own.normalize()?;
        Ok(own)
    }

    /// The reference's pixels `x`, then `2 x - 1`, which its model does.
    fn normalize(&self) -> Result<Normalize> {
        let mut fields = self.fields.clone();
        if fields.value("do_normalize").is_none() {
            fields.set("do_normalize", "false")?;
        }
        let Normalize { mean, std } = fields.normalize([0.0; 3], [1.0; 3])?;
        Ok(Normalize { mean: std::array::from_fn(|i| mean[i] + 0.5 * std[i]), std: std.map(|std| 0.5 * std) })
    }

    /// Width and height of the largest picture of about the same aspect that the budget allows, in whole tokens.
    fn fitted(&self, width: usize, height: usize) -> Result<(usize, usize)> {
        let token = self.patch * self.block;
        let found = || format!("found {width} x {height}");
        if !self.resize {
            let whole = width.is_multiple_of(token) && height.is_multiple_of(token);
            let fits = whole && (width / token) * (height / token) <= self.budget;
            return if fits && width.min(height) > 0 {
                Ok((width, height))
            } else {
                let what = format!("expected multiples of {token} pixels a side, at most {}", self.budget);
                Err(Error::Request(format!("picture: {what} tokens in all, {}", found())))
            };
        }
        let area = (self.budget * token * token) as f64;
        let factor = (area / (height * width) as f64).sqrt();
        let tokens = |side: usize| (factor * side as f64 / token as f64).floor() as usize;
        let (cols, rows) = match (tokens(width), tokens(height)) {
            (0, 0) => return Err(Error::Request(format!("picture: expected some pixels, {}", found()))),
            (_, 0) => ((width / height).min(self.budget), 1),
            (0, _) => (1, (height / width).min(self.budget)),
            both => both,
        };
        Ok((cols * token, rows * token))
    }

    fn tokens(&self, image: &PreparedImage) -> usize {
        let token = self.patch * self.block;
        image.tiles.iter().map(|tile| (tile.height / token) * (tile.width / token)).sum()
    }

    /// For each value of the reference's `[patches, patch * patch * 3]`, channels fastest, its place in `[3, height, width]`.
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
        let (width, height) = self.fitted(image.width(), image.height())?;
        let tile = resize(image, width, height, self.filter, threads)?.into();
        Ok(PreparedImage {
            tiles: vec![tile],
            rows: 0,
            cols: 0,
            normalize: self.normalize()?,
            assembly: None,
        })
    }

    fn image_mark(&self) -> &str {
        &self.marks.image
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let Marks { begin, image, end, image_id, video, blocks } = &self.marks;
        let rows: Vec<usize> = images.iter().map(|image| self.tokens(image)).collect();
        let mut kinds = vec![(&**image, *image_id)];
        kinds.extend(video.as_ref().map(|(mark, id)| (&**mark, *id)));
        let expand =
            |picture: usize, mark: &str, _: &str| format!("{begin}{}{end}", mark.repeat(rows[picture]));
        let mut prompt = lay_out_kinds(tokenizer, text, &kinds, &rows, expand)?;
        if *blocks {
            prompt.blocks = prompt.spans.iter().map(Span::tokens).collect();
        }
        Ok(prompt)
    }

    fn video(&self) -> Option<&dyn VideoProcessor> {
        (self.marks.video.is_some() && self.frames.is_some()).then_some(self)
    }

    fn pixel_values(&self, image: &PreparedImage) -> Vec<f32> {
        // All pictures are filled up to what the budget allows.
        let each = self.budget * self.block * self.block * self.patch * self.patch * 3;
        let mut all = Vec::with_capacity(image.tiles.len() * each);
        for (number, tile) in image.tiles.iter().enumerate() {
            let mut values = Vec::new();
            tile.write_values(&image.normalize, &mut values);
            all.extend(self.places(tile).map(|place| 0.5 * values[place] + 0.5));
            all.resize(((number + 1) * each).max(all.len()), 0.0);
        }
        all
    }

    fn with_pixel_values(&self, image: &PreparedImage, values: &[f32]) -> Option<PreparedImage> {
        let tile = image.tiles.first()?;
        let mut own = vec![0f32; 3 * tile.height * tile.width];
        if values.len() < own.len() {
            return None;
        }
        self.places(tile).zip(values).for_each(|(place, &value)| own[place] = 2.0 * (value - 0.5));
        let tile = Tile { pixels: Pixels::F32(own), ..*tile };
        Some(PreparedImage { tiles: vec![tile], assembly: None, ..*image })
    }
}

/// Each frame is a picture of a smaller budget, behind its time.
impl VideoProcessor for Processor {
    fn mark(&self) -> &str {
        self.marks.video.as_ref().map_or("", |(mark, _)| mark)
    }

    fn picture(&self, frames: &[Rgb8Image], of: Range<usize>, threads: usize) -> Result<PreparedImage> {
        let own = self.frames.as_deref().unwrap_or(self);
        ocelli_engine::Processor::prepare(own, &frames[of.start], threads)
    }

    fn text(&self, times: &[f64], _: f64) -> String {
        let frame = |&time: &f64| {
            let seconds = time as u64;
            format!("{:02}:{:02} {}", seconds / 60, seconds % 60, VideoProcessor::mark(self))
        };
        times.iter().map(frame).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use ocelli_engine::Processor as _;
    use serde_json::json;

    use super::*;

    fn processor() -> Processor {
        let fields = ImageFields::of_json(String::new(), None, Some(&json!({"max_soft_tokens": 70})), KEYS);
        let text = |text: &str| text.to_owned();
        let (begin, image, end) = (text("<|image>"), text("<|image|>"), text("<image|>"));
        Processor::new(fields, Marks { begin, image, end, image_id: 1, video: None, blocks: true })
            .expect("fields")
    }

    /// Sizes as `get_aspect_ratio_preserving_size` gives them.
    #[test]
    fn sizes_within_the_budget() {
        let mut processor = processor();
        let sized = |processor: &Processor, width, height| processor.fitted(width, height).ok();
        assert_eq!(sized(&processor, 640, 480), Some((432, 336)));
        assert_eq!(sized(&processor, 20, 10), Some((528, 240)));
        assert_eq!(sized(&processor, 5000, 20), Some((3360, 48)));
        assert_eq!(sized(&processor, 10, 1000), Some((48, 3360)));
        processor.set("max_soft_tokens", "560").expect("a budget");
        assert_eq!(sized(&processor, 640, 480), Some((1296, 960)));
        let error = processor.set("max_soft_tokens", "100").unwrap_err().to_string();
        assert!(error.contains("max_soft_tokens: expected one of 70, 140"), "{error}");
        processor.set("do_resize", "false").expect("a flag");
        assert_eq!(sized(&processor, 96, 48), Some((96, 48)));
        assert_eq!(sized(&processor, 96, 40), None);
    }

    #[test]
    fn pixels_between_minus_one_and_one() {
        let Normalize { mean, std } = processor().normalize().expect("numbers");
        assert_eq!((mean, std), ([127.5; 3], [127.5; 3]));
    }
}
