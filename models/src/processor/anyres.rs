//! Pictures as LLaVA-NeXT and LLaVA-OneVision take them: whole in one tile, then fitted into the best of several resolutions and
//! cut into tiles, whose features lose the padding again and get a row at the end of each line.

use std::ops::Range;

use ocelli_engine::image::{Assembly, Filter, PreparedImage, Rgb8Image, Tile, resize};
use ocelli_engine::parallel::try_map;
use ocelli_engine::text::Tokenizer;
use ocelli_engine::video::VideoProcessor;
use ocelli_engine::{Error, Prompt, Result};

use super::{CLIP_MEAN, CLIP_STD, Edge, ImageFields, cut, lay_out_kinds};

/// Fields beside the common ones that this processor knows.
pub const ANYRES_KEYS: &[&str] =
    &["crop_size", "do_center_crop", "do_pad", "image_grid_pinpoints", "vision_aspect_ratio"];

/// What a class and a model's configuration add to the fields.
#[derive(Clone, Debug)]
pub struct AnyresPlan {
    /// Resolutions where the files name none, rows and columns of pixels.
    pub resolutions: Vec<(usize, usize)>,
    /// Side of a tile in pixels, and in patches.
    pub side: (usize, usize),
    /// Whether several pictures of a request are taken whole, padded to squares.
    pub lone: bool,
    /// Most tiles that features may fill, by default; more are scaled down.
    pub most: Option<usize>,
    /// What stands for a picture in a prompt, and for each of its features after expansion.
    pub token: (String, u32),
    /// What prepares frames, and what stands for a video, of classes that take such.
    pub video: Option<(ImageFields, (String, u32))>,
}

/// A processor of one checkpoint.
#[derive(Clone, Debug)]
pub struct AnyresProcessor {
    fields: ImageFields,
    plan: AnyresPlan,
    resolutions: Vec<(usize, usize)>,
    most: Option<usize>,
    filter: Filter,
}

impl AnyresProcessor {
    /// The processor of these fields.
    pub fn new(fields: ImageFields, plan: AnyresPlan) -> Result<Self> {
        let side = plan.side.0;
        for key in ["size", "crop_size"] {
            Self::check_size(&fields, key, side)?;
        }
        let resolutions = match fields.value("image_grid_pinpoints") {
            None => plan.resolutions.clone(),
            Some(value) => resolutions(value, side).ok_or_else(|| {
                fields.bad("image_grid_pinpoints", &format!("pairs of multiples of {side}"), value)
            })?,
        };
        let most = match fields.value("vision_aspect_ratio").filter(|_| plan.most.is_some()) {
            None => plan.most,
            Some(value) => {
                let most = value.as_str().and_then(|text| text.strip_prefix("anyres_max_")?.parse().ok());
                let most = most.filter(|most| *most > 0);
                Some(most.ok_or_else(|| fields.bad("vision_aspect_ratio", "anyres_max_N", value))?)
            }
        };
        fields.normalize(CLIP_MEAN, CLIP_STD)?;
        if !fields.flag("do_resize", true)? {
            let value = fields.value("do_resize").cloned().unwrap_or_default();
            return Err(fields.bad("do_resize", "true", &value));
        }
        Ok(Self { filter: fields.resample(Filter::Bicubic)?, fields, plan, resolutions, most })
    }

    fn prepared(&self, tiles: Vec<Tile>, grid: (usize, usize), assembly: Assembly) -> Result<PreparedImage> {
        let normalize = self.fields.normalize(CLIP_MEAN, CLIP_STD)?;
        Ok(PreparedImage { tiles, rows: grid.0, cols: grid.1, normalize, assembly: Some(assembly) })
    }

    /// Errors unless a size field says the tower's side.
    fn check_size(fields: &ImageFields, key: &str, side: usize) -> Result<()> {
        let square = Edge::Exact { height: side, width: side };
        let found = fields.edge(key, square)?;
        if found == square || found == Edge::Shortest(side) {
            return Ok(());
        }
        let value = fields.value(key).cloned().unwrap_or_default();
        Err(fields.bad(key, &format!("the tower's {side} pixels a side"), &value))
    }

    /// A picture in one tile, padded to a square with the mean colour.
    fn whole(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        let (side, patches) = self.plan.side;
        let square = image.width().max(image.height());
        let mean = self.fields.mean(CLIP_MEAN)?.map(|v| (v * 255.0) as u8);
        let padded = pad(image, square, square, mean);
        let tile = resize(&padded, side, side, self.filter, threads)?.into();
        let rows = (0..=patches * patches).map(|row| row as i32).collect();
        self.prepared(vec![tile], (0, 0), Assembly::of_rows(rows))
    }
}

/// Pairs of rows and columns of pixels, multiples of `side`.
fn resolutions(value: &serde_json::Value, side: usize) -> Option<Vec<(usize, usize)>> {
    let number = |value: &serde_json::Value| {
        let number = usize::try_from(value.as_u64()?).ok()?;
        ((1..=1 << 14).contains(&number) && number.is_multiple_of(side)).then_some(number)
    };
    let pair = |pair: &serde_json::Value| match pair.as_array()?.as_slice() {
        [rows, cols] => Some((number(rows)?, number(cols)?)),
        _ => None,
    };
    let all: Vec<_> = value.as_array()?.iter().map(pair).collect::<Option<_>>()?;
    (!all.is_empty()).then_some(all)
}

impl ocelli_engine::Processor for AnyresProcessor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut fields = self.fields.clone();
        fields.set(key, value)?;
        *self = Self::new(fields, self.plan.clone())?;
        Ok(())
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        let (side, patches) = self.plan.side;
        let size = (image.height(), image.width());
        let Some((height, width)) = best_resolution(size, &self.resolutions) else {
            let found = format!("{} x {}", image.width(), image.height());
            return Err(Error::Request(format!("picture: expected sides of a lower ratio, found {found}")));
        };
        let (rows, cols) = (height / side, width / side);
        let fitted = fit(size, (height, width));
        let fitted = resize(image, fitted.1, fitted.0, self.filter, threads)?;
        let mut tiles = vec![resize(image, side, side, self.filter, threads)?.into()];
        tiles.extend(cut(&pad(&fitted, width, height, [0; 3]), rows, cols, (side, side)));
        self.prepared(tiles, (rows, cols), assembly(size, (rows, cols), patches, self.most))
    }

    fn prepare_one_of(&self, image: &Rgb8Image, count: usize, threads: usize) -> Result<PreparedImage> {
        match self.plan.lone && count > 1 {
            true => self.whole(image, threads),
            false => self.prepare(image, threads),
        }
    }

    fn image_mark(&self) -> &str {
        &self.plan.token.0
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let rows: Vec<usize> =
            images.iter().map(|image| image.assembly.as_ref().map_or(0, Assembly::len)).collect();
        let kinds = std::iter::once(&self.plan.token).chain(self.plan.video.iter().map(|(_, token)| token));
        let kinds: Vec<(&str, u32)> = kinds.map(|(mark, id)| (&**mark, *id)).collect();
        lay_out_kinds(tokenizer, text, &kinds, &rows, |picture, mark, _| mark.repeat(rows[picture]))
    }

    fn video(&self) -> Option<&dyn VideoProcessor> {
        self.plan.video.is_some().then_some(self)
    }
}

/// All frames are the tiles of one picture, whose features are scaled down to half of each side, with one row behind them all.
impl VideoProcessor for AnyresProcessor {
    fn mark(&self) -> &str {
        self.plan.video.as_ref().map_or("", |(_, (mark, _))| mark)
    }

    fn frames_of_picture(&self, frames: usize) -> usize {
        frames
    }

    fn picture(&self, frames: &[Rgb8Image], of: Range<usize>, threads: usize) -> Result<PreparedImage> {
        let video = self.plan.video.as_ref();
        let (fields, _) = video.ok_or_else(|| Error::Request("video: none is taken".into()))?;
        let frames = &frames[of];
        let (side, patches) = self.plan.side;
        Self::check_size(fields, "size", side)?;
        let filter = fields.resample(Filter::Bicubic)?;
        let tiles = try_map(frames, threads, |frame, threads| {
            resize(frame, side, side, filter, threads).map(Tile::from)
        })?;
        let normalize = fields.normalize(CLIP_MEAN, CLIP_STD)?;
        let assembly = Some(halved(frames.len(), patches));
        Ok(PreparedImage { tiles, rows: 0, cols: 0, normalize, assembly })
    }

    fn text(&self, _: &[f64], _: f64) -> String {
        VideoProcessor::mark(self).to_owned()
    }
}

/// Features of `frames` tiles of `patches` a side scaled down to half of these, frame by frame, and the row for the end of a line.
fn halved(frames: usize, patches: usize) -> Assembly {
    let area = patches * patches;
    let places = taps(patches, patches.div_ceil(2));
    let (mut rows, mut weights) = (Vec::new(), Vec::new());
    for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        for (frame, row) in (0..frames).flat_map(|frame| places.iter().map(move |row| (frame, row))) {
            for col in &places {
                rows.push((frame * area + row[i].0 * patches + col[j].0) as i32);
                weights.push(row[i].1 * col[j].1);
            }
        }
        rows.push((frames * area) as i32);
        weights.push(if (i, j) == (0, 0) { 1.0 } else { 0.0 });
    }
    Assembly { taps: 4, rows, weights }
}

/// The resolution in which most of a picture's pixels are kept; of equal ones the one with least left over. All are rows and
/// columns.
fn best_resolution((height, width): (usize, usize), all: &[(usize, usize)]) -> Option<(usize, usize)> {
    let (mut best, mut most, mut least) = (None, 0, usize::MAX);
    for &(rows, cols) in all {
        let scale = (cols as f64 / width as f64).min(rows as f64 / height as f64);
        let scaled = (width as f64 * scale) as usize * (height as f64 * scale) as usize;
        let kept = scaled.min(width * height);
        let left = (rows * cols).saturating_sub(kept);
        if kept > most || (kept == most && kept > 0 && left < least) {
            (best, most, least) = (Some((rows, cols)), kept, left);
        }
    }
    best
}

/// Rows and columns of a picture that is fitted into `within` with its aspect kept.
fn fit((height, width): (usize, usize), within: (usize, usize)) -> (usize, usize) {
    let (across, down) = (within.1 as f64 / width as f64, within.0 as f64 / height as f64);
    if across < down {
        (((height as f64 * across).ceil() as usize).clamp(1, within.0), within.1)
    } else {
        (within.0, ((width as f64 * down).ceil() as usize).clamp(1, within.1))
    }
}

/// A picture in the middle of one of `width x height` that is at least as large, on `colour`.
fn pad(image: &Rgb8Image, width: usize, height: usize, colour: [u8; 3]) -> Rgb8Image {
    let (left, top) = ((width - image.width().min(width)) / 2, (height - image.height().min(height)) / 2);
    let mut data = colour.repeat(width * height);
    let len = image.width().min(width) * 3;
    for (row, pixels) in image.data().chunks_exact(image.width() * 3).take(height).enumerate() {
        let to = ((top + row) * width + left) * 3;
        if let (Some(to), Some(from)) = (data.get_mut(to..to + len), pixels.get(..len)) {
            to.copy_from_slice(from);
        }
    }
    // As many bytes as pixels.
    Rgb8Image::from_raw(width, height, data).unwrap_or_else(|| image.clone())
}

/// The whole picture's features, then those of `grid` tiles of `patches` a side line by line, less the lines or columns that
/// padding fills, scaled down where they fill more than `most` tiles. `size`: rows and columns of the picture.
fn assembly(size: (usize, usize), grid: (usize, usize), patches: usize, most: Option<usize>) -> Assembly {
    let area = patches * patches;
    let (height, width) = (grid.0 * patches, grid.1 * patches);
    // Rounded to seven digits first, so that a whole number stays one.
    let scaled = |side: usize, to: usize, from: usize| {
        ((side as f64 * (to as f64 / from as f64) * 1e7).round_ties_even() / 1e7) as usize
    };
    let (mut top, mut left) = (0, 0);
    if size.1 as f64 / size.0 as f64 > width as f64 / height as f64 {
        top = (height.saturating_sub(scaled(size.0, width, size.1))) / 2;
    } else {
        left = (width.saturating_sub(scaled(size.1, height, size.0))) / 2;
    }
    let (rows, cols) = (height - 2 * top, width - 2 * left);
    let newline = area * (1 + grid.0 * grid.1);
    let at = |row: usize, col: usize| {
        let (row, col) = (top + row, left + col);
        let tile = 1 + row / patches * grid.1 + col / patches;
        (tile * area + row % patches * patches + col % patches) as i32
    };
    let ratio = most.map_or(0.0, |most| (rows as f64 * cols as f64 / (most * area) as f64).sqrt());
    if ratio <= 1.1 {
        let lines = (0..rows)
            .flat_map(|row| (0..cols).map(move |col| at(row, col)).chain(std::iter::once(newline as i32)));
        return Assembly::of_rows((0..area).map(|row| row as i32).chain(lines).collect());
    }
    let down = taps(rows, (rows as f64 / ratio) as usize);
    let across = taps(cols, (cols as f64 / ratio) as usize);
    let (mut numbers, mut weights) = (Vec::new(), Vec::new());
    for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let alone = if (i, j) == (0, 0) { 1.0 } else { 0.0 };
        numbers.extend((0..area).map(|row| row as i32));
        weights.extend(std::iter::repeat_n(alone, area));
        for row in &down {
            for col in &across {
                numbers.push(at(row[i].0, col[j].0));
                weights.push(row[i].1 * col[j].1);
            }
            numbers.push(newline as i32);
            weights.push(alone);
        }
    }
    Assembly { taps: 4, rows: numbers, weights }
}

/// The two places, with their weights, of each of `to` values that `from` are scaled down to linearly; ends are not aligned.
fn taps(from: usize, to: usize) -> Vec<[(usize, f32); 2]> {
    let scale = from as f32 / to.max(1) as f32;
    let of = |i: usize| {
        let place = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
        let first = (place as usize).min(from.saturating_sub(1));
        let second = place - first as f32;
        [(first, 1.0 - second), ((first + 1).min(from.saturating_sub(1)), second)]
    };
    (0..to).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_pixels_then_least_waste() {
        let all = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)];
        let table = [
            ((300, 300), Some((336, 672))),
            ((100, 1000), Some((336, 1008))),
            ((1000, 250), Some((1008, 336))),
            ((400, 800), Some((336, 672))),
            ((16_000, 1), None),
        ];
        for (size, wanted) in table {
            assert_eq!(best_resolution(size, &all), wanted, "{size:?}");
        }
        assert_eq!((fit((87, 131), (64, 64)), fit((300, 200), (64, 96))), ((43, 64), (64, 43)));
    }

    /// 2 x 2 tiles of 2 x 2 patches; of a picture twice as wide as high the two middle lines stay.
    #[test]
    fn padding_goes_and_lines_end() {
        let rows = |assembly: &Assembly| assembly.rows.clone();
        let wide = assembly((50, 100), (2, 2), 2, None);
        assert_eq!(rows(&wide), [0, 1, 2, 3, 6, 7, 10, 11, 20, 12, 13, 16, 17, 20]);
        assert_eq!((wide.len(), wide.taps), (14, 1));
        let high = assembly((100, 50), (2, 2), 2, Some(9));
        assert_eq!(rows(&high), [0, 1, 2, 3, 5, 8, 20, 7, 10, 20, 13, 16, 20, 15, 18, 20]);
    }

    /// Two frames of 3 x 3 patches become 2 x 2 each: places 0.25 and 1.75 along each side.
    #[test]
    fn frames_are_halved() {
        let small = halved(2, 3);
        assert_eq!((small.len(), small.taps), (9, 4));
        let of = |row: usize| -> Vec<(i32, f32)> {
            (0..4).map(|tap| (small.rows[tap * 9 + row], small.weights[tap * 9 + row])).collect()
        };
        assert_eq!(of(4), [(9, 0.5625), (10, 0.1875), (12, 0.1875), (13, 0.0625)]);
        assert_eq!(of(8), [(18, 1.0), (18, 0.0), (18, 0.0), (18, 0.0)]);
    }

    #[test]
    fn too_many_features_are_scaled_down() {
        assert_eq!(taps(4, 2), [[(0, 0.5), (1, 0.5)], [(2, 0.5), (3, 0.5)]]);
        let small = assembly((100, 100), (2, 2), 2, Some(1));
        assert_eq!((small.len(), small.taps), (4 + 2 * 3, 4));
        let sums: Vec<f32> =
            (0..small.len()).map(|i| (0..4).map(|tap| small.weights[tap * small.len() + i]).sum()).collect();
        assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-6), "{sums:?}");
    }
}
