//! Pictures of any size whose area lies within bounds, as `Qwen2VLImageProcessor` and its like prepare them: sides are multiples of a
//! block of patches, a block is a token, and positions have three axes.

use std::ops::Range;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Filter, Pixels, PreparedImage, Rgb8Image, Tile, resize};
use ocelli_engine::parallel::try_map;
use ocelli_engine::text::Tokenizer;
use ocelli_engine::video::{Placed, VideoProcessor};
use ocelli_engine::{Error, Prompt, Result};

use super::area_video::{AreaVideo, VideoRule};
use super::{ImageFields, added_token, lay_out_kinds, place_grids};
use crate::fields::Config;

/// Fields beside the common ones. `size` holds the bounds of the area as `shortest_edge` and `longest_edge`; `min_pixels` and
/// `max_pixels` are older names of these and go before them in a file.
pub(super) const KEYS: &[&str] =
    &["min_pixels", "max_pixels", "patch_size", "merge_size", "temporal_patch_size"];

/// Largest ratio of the sides of a picture.
const MAX_ASPECT: usize = 200;

/// What differs between image processors of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AreaRule {
    /// `Qwen2VLImageProcessor`.
    Qwen,
    /// `Glm4vImageProcessor`: the pixels of a picture count once for each frame of a patch, and pictures with a side below a block are
    /// enlarged first.
    Glm,
    /// `PaddleOCRVLImageProcessor`: sides below a block are enlarged first, one after the other; patches lie row by row.
    Paddle,
}

/// What a reference class takes where the files say nothing.
#[derive(Clone, Copy, Debug)]
pub struct AreaDefaults {
    /// Token of a feature.
    pub image_token: u32,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Frames of a patch.
    pub frames: usize,
    /// Least and most pixels of a picture.
    pub area: (usize, usize),
    /// How sizes are found, and patches ordered.
    pub rule: AreaRule,
    /// Mean of each channel.
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
    /// How the class lays videos out, if it takes such.
    pub video: Option<VideoRule>,
}

/// Keeps the aspect of pictures, within bounds of their area.
#[derive(Clone, Debug)]
pub struct AreaProcessor {
    fields: ImageFields,
    defaults: AreaDefaults,
    patch: usize,
    merge: usize,
    frames: usize,
    /// Least and most pixels of a picture; `None`: pictures are taken as they are.
    area: Option<(usize, usize)>,
    filter: Filter,
    token: (String, u32),
    video: Option<AreaVideo>,
}

impl AreaProcessor {
    /// Reads the processor of a model.
    pub fn load(files: &ModelFiles, defaults: AreaDefaults) -> Result<Self> {
        let config = Config::load(files, "config.json")?;
        let id: u32 = config.root().or("image_token_id", defaults.image_token)?;
        let token = (added_token(files, id)?, id);
        let video = match defaults.video {
            Some(rule) => Some(AreaVideo::load(files, &config.root(), defaults, rule, &token)?),
            None => None,
        };
        Ok(Self { video, ..Self::new(ImageFields::load(files, KEYS)?, defaults, token)? })
    }

    pub(super) fn new(mut fields: ImageFields, defaults: AreaDefaults, token: (String, u32)) -> Result<Self> {
        // What was set last holds, by whichever name.
        fields.rename("min_pixels", "size.shortest_edge");
        fields.rename("max_pixels", "size.longest_edge");
        let bound = |key: &str, old: &str, usual: usize| {
            Ok::<_, Error>(fields.area(key)?.or(fields.area(old)?).unwrap_or(usual))
        };
        let area = (
            bound("size.shortest_edge", "size.min_pixels", defaults.area.0)?,
            bound("size.longest_edge", "size.max_pixels", defaults.area.1)?,
        );
        fields.normalize(defaults.mean, defaults.std)?;
        Ok(Self {
            patch: fields.pixels("patch_size")?.unwrap_or(defaults.patch),
            merge: fields.pixels("merge_size")?.unwrap_or(2),
            frames: fields.pixels("temporal_patch_size")?.unwrap_or(defaults.frames),
            area: fields.flag("do_resize", true)?.then_some(area),
            filter: fields.resample(Filter::Bicubic)?,
            fields,
            defaults,
            token,
            video: None,
        })
    }

    /// Width and height as multiples of a block, the area within the bounds; `frames`: those of a video, whose pixels count together
    /// where the rule says so.
    fn resized(&self, width: usize, height: usize, frames: Option<usize>) -> Result<(usize, usize)> {
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
        let (width, height) = self.enlarged(width, height);
        let (counted, rounded) = match (self.defaults.rule, frames) {
            (AreaRule::Glm, None) => (self.frames, self.frames),
            (AreaRule::Glm, Some(count)) => {
                let pairs = (count as f64 / self.frames as f64).round_ties_even() as usize;
                (count, pairs * self.frames)
            }
            _ => (1, 1),
        };
        if counted < self.frames && self.defaults.rule == AreaRule::Glm {
            let expected = self.frames;
            return Err(Error::Request(format!(
                "video: expected at least {expected} frames, found {counted}"
            )));
        }
        if width.max(height) > MAX_ASPECT * width.min(height) {
            let found = format!("{width} x {height}");
            return Err(Error::Request(format!(
                "picture: expected sides of a ratio up to {MAX_ASPECT}, found {found}"
            )));
        }
        let sides = [width as f64, height as f64];
        let step = factor as f64;
        let area = counted as f64 * sides[0] * sides[1];
        let of = |round: &dyn Fn(f64) -> f64| sides.map(|side| (round(side) * step) as usize);
        let mut out = of(&|side| (side / step).round_ties_even());
        if rounded * out[0] * out[1] > most {
            let beta = (area / most as f64).sqrt();
            out = of(&|side| (side / beta / step).floor().max(1.0));
        } else if rounded * out[0] * out[1] < least {
            let beta = (least as f64 / area).sqrt();
            out = of(&|side| (side * beta / step).ceil());
        }
        Ok((out[0], out[1]))
    }

    /// Sizes of pictures with sides below a block, before they are fitted into the bounds.
    fn enlarged(&self, mut width: usize, mut height: usize) -> (usize, usize) {
        let factor = self.patch * self.merge;
        let times = |side: usize, of: usize| (side * factor) as f64 / of as f64;
        match self.defaults.rule {
            AreaRule::Glm if width.min(height) < factor => {
                let scale = times(1, height).max(times(1, width));
                ((width as f64 * scale) as usize, (height as f64 * scale) as usize)
            }
            AreaRule::Paddle => {
                if height < factor {
                    (width, height) = (times(width, height).round_ties_even() as usize, factor);
                }
                if width < factor {
                    (width, height) = (factor, times(height, width).round_ties_even() as usize);
                }
                (width, height)
            }
            _ => (width, height),
        }
    }

    /// Rows and columns of tokens of a prepared picture.
    fn grid(&self, image: &PreparedImage) -> (usize, usize) {
        let step = self.patch * self.merge;
        image.tiles.first().map_or((0, 0), |tile| (tile.height / step, tile.width / step))
    }

    /// Frames `of` of a video, as many as a patch has, as the tower sees them; the last one again where some lack. All frames of a
    /// video are of one size.
    pub(super) fn joined(
        &self,
        frames: &[Rgb8Image],
        of: Range<usize>,
        threads: usize,
    ) -> Result<PreparedImage> {
        let size = |frame: &Rgb8Image| (frame.width(), frame.height());
        let (first, some) = (frames.first().map_or((0, 0), size), &frames[of]);
        if let Some(other) = some.iter().map(size).find(|other| *other != first) {
            let what = format!("frames of {} x {}, found {} x {}", first.0, first.1, other.0, other.1);
            return Err(Error::Request(format!("video: expected {what}")));
        }
        let (width, height) = self.resized(first.0, first.1, Some(frames.len()))?;
        let resized =
            try_map(some, threads, |frame, threads| resize(frame, width, height, self.filter, threads))?;
        let normalize = self.fields.normalize(self.defaults.mean, self.defaults.std)?;
        let all = resized.iter().chain(resized.last().into_iter().cycle()).take(self.frames);
        let levels = all.flat_map(|frame| frame.data().iter().copied()).collect();
        let tile = Tile { height, width, pixels: Pixels::Rgb8(levels) };
        Ok(PreparedImage { tiles: vec![tile], rows: 0, cols: 0, normalize, assembly: None })
    }

    /// Frames of a patch.
    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    /// For each value of the reference's `pixel_values`, `[patches, 3 * frames * patch * patch]` with the patches of a block side
    /// by side or row by row, its place in `[frames, 3, height, width]`.
    fn places(&self, tile: &Tile) -> impl Iterator<Item = usize> + use<> {
        let merge = if self.defaults.rule == AreaRule::Paddle { 1 } else { self.merge };
        let (patch, frames, height, width) = (self.patch, self.frames, tile.height, tile.width);
        let own = tile.frames();
        let (rows, cols) = (height / patch, width / patch);
        let patches = (0..rows / merge).flat_map(move |row| {
            (0..cols / merge).flat_map(move |col| {
                (0..merge * merge).map(move |i| (row * merge + i / merge, col * merge + i % merge))
            })
        });
        patches.flat_map(move |(row, col)| {
            (0..3 * frames * patch * patch).map(move |i| {
                let (channel, y, x) = (i / (frames * patch * patch), i / patch % patch, i % patch);
                let frame = i / (patch * patch) % frames % own;
                ((frame * 3 + channel) * height + row * patch + y) * width + col * patch + x
            })
        })
    }
}

impl ocelli_engine::Processor for AreaProcessor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut fields = self.fields.clone();
        fields.set(key, value)?;
        *self = Self { video: self.video.clone(), ..Self::new(fields, self.defaults, self.token.clone())? };
        Ok(())
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        let (width, height) = self.resized(image.width(), image.height(), None)?;
        let tile = resize(image, width, height, self.filter, threads)?.into();
        let normalize = self.fields.normalize(self.defaults.mean, self.defaults.std)?;
        Ok(PreparedImage { tiles: vec![tile], rows: 0, cols: 0, normalize, assembly: None })
    }

    fn image_mark(&self) -> &str {
        &self.token.0
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let grids: Vec<(usize, usize)> = images.iter().map(|image| self.grid(image)).collect();
        let rows: Vec<usize> = grids.iter().map(|grid| grid.0 * grid.1).collect();
        let mut kinds = vec![(&*self.token.0, self.token.1)];
        kinds.extend(self.video.as_ref().and_then(AreaVideo::kind));
        let mut prompt =
            lay_out_kinds(tokenizer, text, &kinds, &rows, |picture, mark, _| mark.repeat(rows[picture]))?;
        place_grids(&mut prompt, &grids, &[]);
        Ok(prompt)
    }

    fn video(&self) -> Option<&dyn VideoProcessor> {
        self.video.is_some().then_some(self)
    }

    fn pixel_values(&self, image: &PreparedImage) -> Vec<f32> {
        let values = image.pixel_values();
        let tile = image.tiles.first();
        tile.map_or(Vec::new(), |tile| self.places(tile).map(|place| values[place]).collect())
    }

    fn with_pixel_values(&self, image: &PreparedImage, values: &[f32]) -> Option<PreparedImage> {
        let tile = image.tiles.first()?;
        let mut own = vec![0f32; tile.frames() * 3 * tile.height * tile.width];
        let mut places = 0;
        for (place, &value) in self.places(tile).zip(values) {
            own[place] = value;
            places += 1;
        }
        let tile = Tile { pixels: Pixels::F32(own), ..*tile };
        (places == values.len()).then(|| PreparedImage { tiles: vec![tile], assembly: None, ..*image })
    }
}

impl VideoProcessor for AreaProcessor {
    fn mark(&self) -> &str {
        self.video.as_ref().map_or("", AreaVideo::mark)
    }

    fn frames_of_picture(&self, _: usize) -> usize {
        self.video.as_ref().map_or(1, AreaVideo::frames_of_picture)
    }

    fn picture(&self, frames: &[Rgb8Image], of: Range<usize>, threads: usize) -> Result<PreparedImage> {
        let video = self.video.as_ref().ok_or_else(|| Error::Request("video: none is taken".into()))?;
        video.picture(frames, of, threads)
    }

    fn text(&self, times: &[f64], _: f64) -> String {
        self.video.as_ref().map_or(String::new(), |video| video.text(times, &self.token.0))
    }

    fn place(&self, prompt: &mut Prompt, pictures: &[&PreparedImage], videos: &[Placed<'_>]) {
        let Some(video) = &self.video else { return };
        let grids: Vec<(usize, usize)> = pictures.iter().map(|image| self.grid(image)).collect();
        place_grids(prompt, &grids, &video.later(pictures.len(), videos));
    }
}

#[cfg(test)]
mod tests {
    use ocelli_engine::Processor as _;
    use serde_json::{Value, json};

    use super::*;

    fn processor(fields: Value, rule: AreaRule, area: (usize, usize)) -> AreaProcessor {
        let fields = ImageFields::of_json(String::new(), None, Some(&fields), KEYS);
        let (mean, std) = ([0.5; 3], [0.5; 3]);
        let defaults =
            AreaDefaults { image_token: 1, patch: 14, frames: 2, area, rule, mean, std, video: None };
        AreaProcessor::new(fields, defaults, ("<image>".into(), 1)).expect("fields")
    }

    /// Sizes as the reference's functions give them.
    #[test]
    fn sizes_within_bounds() {
        let sized = |rule, area, (width, height)| {
            processor(Value::Null, rule, area).resized(width, height, None).ok()
        };
        for (rule, area, from, to) in [
            (AreaRule::Qwen, (3136, 1_003_520), (4000, 3000), (1148, 840)),
            (AreaRule::Qwen, (3136, 1_003_520), (20, 10), (84, 56)),
            (AreaRule::Glm, (12_544, 11_760_000), (21, 10), (140, 56)),
            (AreaRule::Glm, (12_544, 11_760_000), (4000, 3000), (2800, 2100)),
            (AreaRule::Glm, (12_544, 100_000), (4000, 3000), (252, 168)),
            (AreaRule::Paddle, (147_456, 2_359_296), (21, 10), (560, 280)),
            (AreaRule::Paddle, (784, 2_359_296), (21, 10), (56, 28)),
            (AreaRule::Paddle, (147_456, 2_359_296), (4000, 3000), (1764, 1316)),
        ] {
            assert_eq!(sized(rule, area, from), Some(to), "{rule:?} {area:?} {from:?}");
        }
        assert_eq!(sized(AreaRule::Qwen, (1, 1), (2001, 10)), None);
    }

    #[test]
    fn what_was_set_last_holds_by_either_name() {
        let usual = (3136, 1_003_520);
        let area = |fields| processor(fields, AreaRule::Qwen, usual).area;
        assert_eq!(area(json!({"size": {"shortest_edge": 5000, "longest_edge": 9000}})), Some((5000, 9000)));
        assert_eq!(area(json!({"size": {"min_pixels": 5000, "max_pixels": 9000}})), Some((5000, 9000)));
        let both = json!({"min_pixels": 5000, "size": {"shortest_edge": 1, "longest_edge": 9000}});
        assert_eq!(area(both.clone()), Some((5000, 9000)));
        assert_eq!(area(json!({"min_pixels": null})), Some(usual));
        let mut processor = processor(both, AreaRule::Qwen, usual);
        for (key, value, to) in [
            ("max_pixels", "100000", (5000, 100_000)),
            ("size.longest_edge", "200000", (5000, 200_000)),
            ("min_pixels", "50000", (50_000, 200_000)),
            ("size", r#"{"shortest_edge": 7000, "longest_edge": 8000}"#, (7000, 8000)),
        ] {
            processor.set(key, value).expect(key);
            assert_eq!(processor.area, Some(to), "{key}");
        }
        assert!(processor.set("max_pixels", "0").is_err() && processor.set("pixels", "1").is_err());
        assert_eq!(processor.area, Some((7000, 8000)), "a refused field changes nothing");
    }
}
