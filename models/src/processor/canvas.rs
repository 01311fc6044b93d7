//! Pictures on a canvas of whole tiles whose aspect is nearest to theirs, and the whole picture in one tile, before or behind:
//! `GotOcr2ImageProcessor` of transformers and its like.

use ocelli_engine::Prompt;
use ocelli_engine::Result;
use ocelli_engine::image::{Filter, PreparedImage, Rgb8Image, resize};
use ocelli_engine::prompt::Span;
use ocelli_engine::text::Tokenizer;

use super::{Edge, ImageFields, cut, lay_out};

/// Fields beside the common ones that these processors know.
pub const CANVAS_KEYS: &[&str] = &["crop_to_patches", "min_patches", "max_patches", "image_seq_length"];

/// Columns and rows for a picture of `(width, height)` in tiles of `(width, height)`, `(least, most)` of them.
pub type ChooseGrid = fn((usize, usize), (usize, usize), (usize, usize)) -> (usize, usize);

/// What a class takes where its files say nothing, and how it lays pictures out.
#[derive(Clone, Debug)]
pub struct CanvasPlan {
    /// Side of a tile in pixels.
    pub side: usize,
    /// Whether pictures are cut into tiles.
    pub cuts: bool,
    /// The grid of a picture.
    pub grid: ChooseGrid,
    /// A field that is true unless it says otherwise, and the grid of a picture where it is false.
    pub unless: Option<(&'static str, ChooseGrid)>,
    /// Mean of each channel where the files say nothing.
    pub mean: [f32; 3],
    /// Standard deviation of each channel, likewise.
    pub std: [f32; 3],
    /// Stands for a picture in the template's output.
    pub mark: String,
    /// The token that stands for one feature.
    pub token: (String, u32),
    /// Tokens of a tile.
    pub per_tile: usize,
    /// What stands for a picture with that grid in the prompt, made of the tokens of a tile and of `words`.
    pub expand: fn(tile: &str, words: &[String], rows: usize, cols: usize) -> String,
    /// Strings that `expand` uses.
    pub words: Vec<String>,
    /// Whether the whole picture comes before its tiles.
    pub whole_first: bool,
    /// Tokens that rows behind the features of a picture stand for, in the order of those rows; the last is part of every picture.
    pub behind: Vec<u32>,
}

/// A processor of one checkpoint.
#[derive(Clone, Debug)]
pub struct CanvasProcessor {
    fields: ImageFields,
    plan: CanvasPlan,
    resize: bool,
    cuts: bool,
    grid: ChooseGrid,
    /// Width and height of a tile.
    tile: (usize, usize),
    filter: Filter,
    /// Least and most tiles.
    tiles: (usize, usize),
}

impl CanvasProcessor {
    /// The processor of these fields.
    pub fn new(fields: ImageFields, plan: CanvasPlan) -> Result<Self> {
        let tile = match fields.edge("size", Edge::Exact { height: plan.side, width: plan.side })? {
            Edge::Exact { height, width } => (width, height),
            Edge::Longest(side) | Edge::Shortest(side) => (side, side),
        };
        fields.normalize(plan.mean, plan.std)?;
        Ok(Self {
            resize: fields.flag("do_resize", true)?,
            cuts: fields.flag("crop_to_patches", plan.cuts)?,
            grid: match plan.unless {
                Some((key, grid)) if !fields.flag(key, true)? => grid,
                _ => plan.grid,
            },
            tile,
            filter: fields.resample(Filter::Bicubic)?,
            tiles: (fields.pixels("min_patches")?.unwrap_or(1), fields.pixels("max_patches")?.unwrap_or(12)),
            fields,
            plan,
        })
    }
}

impl ocelli_engine::Processor for CanvasProcessor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut fields = self.fields.clone();
        fields.set(key, value)?;
        *self = Self::new(fields, self.plan.clone())?;
        Ok(())
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        let (width, height) = self.tile;
        let to = |width, height| resize(image, width, height, self.filter, threads);
        let size = (image.width(), image.height());
        let (cols, rows) = if self.cuts { (self.grid)(size, self.tile, self.tiles) } else { (1, 1) };
        let mut tiles = Vec::with_capacity(cols * rows + 1);
        if cols * rows > 1 {
            tiles = cut(&to(cols * width, rows * height)?, rows, cols, (width, height));
        }
        let whole = if self.resize || self.cuts { to(width, height)? } else { image.clone() };
        tiles.insert(if self.plan.whole_first { 0 } else { tiles.len() }, whole.into());
        let normalize = self.fields.normalize(self.plan.mean, self.plan.std)?;
        let (rows, cols) = if tiles.len() > 1 { (rows, cols) } else { (0, 0) };
        Ok(PreparedImage { tiles, rows, cols, normalize, assembly: None })
    }

    fn image_mark(&self) -> &str {
        &self.plan.mark
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let CanvasPlan { mark, token, per_tile, expand, words, .. } = &self.plan;
        let tile = token.0.repeat(*per_tile);
        let pictures: Vec<String> =
            images.iter().map(|image| expand(&tile, words, image.rows, image.cols)).collect();
        let rows: Vec<usize> = images.iter().map(|image| image.tiles.len() * per_tile).collect();
        let mut prompt = lay_out(tokenizer, text, mark, &pictures, token.1, &rows)?;
        if !images.is_empty() {
            add_behind(&mut prompt, &rows, &self.plan.behind);
        }
        Ok(prompt)
    }
}

/// Lets each token of `behind`, wherever it is, stand for its row behind the features of the picture that came last, or of the first;
/// pictures have `rows` of features.
fn add_behind(prompt: &mut Prompt, rows: &[usize], behind: &[u32]) {
    let mut spans = std::mem::take(&mut prompt.spans).into_iter().peekable();
    let mut media = 0;
    for (at, token) in prompt.tokens.iter().enumerate() {
        if let Some(span) = spans.next_if(|span| span.at == at) {
            media = span.media;
            prompt.spans.push(span);
        } else if let Some(place) = behind.iter().position(|other| other == token) {
            let row = rows.get(media).copied().unwrap_or(0) + place;
            prompt.spans.push(Span { media, rows: row..row + 1, at });
        }
    }
}

/// Grids of `least..=most` tiles, columns and rows, by their number of tiles and then by columns.
pub fn grids((least, most): (usize, usize)) -> Vec<(usize, usize)> {
    let of_width = |cols: usize| (1..=most / cols).map(move |rows| (cols, rows));
    let mut all: Vec<(usize, usize)> =
        (1..=most).flat_map(of_width).filter(|(cols, rows)| cols * rows >= least).collect();
    all.sort_by_key(|(cols, rows)| cols * rows);
    all
}

/// The grid whose aspect is nearest to the picture's; of equal ones the one with most tiles, as long as tiles are not more than
/// twice the picture's area.
pub fn nearest_aspect(
    (width, height): (usize, usize),
    (tile_w, tile_h): (usize, usize),
    tiles: (usize, usize),
) -> (usize, usize) {
    let aspect = width as f64 / height as f64;
    let area = (width * height) as f64;
    let (mut best, mut least) = ((1, 1), f64::INFINITY);
    for (cols, rows) in grids(tiles) {
        let difference = (aspect - cols as f64 / rows as f64).abs();
        let fills = area > 0.5 * (tile_w * tile_h) as f64 * (cols * rows) as f64;
        if difference < least || (difference == least && fills) {
            (best, least) = ((cols, rows), difference);
        }
    }
    best
}

/// The grid that enlarges a picture least; where all would make it smaller, the one that does so least.
pub fn least_enlarged(
    (width, height): (usize, usize),
    (_, tile): (usize, usize),
    (_, most): (usize, usize),
) -> (usize, usize) {
    let scale = |&(cols, rows): &(usize, usize)| {
        ((cols * tile) as f64 / width as f64).min((rows * tile) as f64 / height as f64)
    };
    let all = grids((1, most));
    let enlarges = all.iter().any(|grid| scale(grid) >= 1.0);
    let (mut best, mut least) = ((1, 1), f64::INFINITY);
    for grid in &all {
        let cost = match scale(grid) {
            // The others count as enlarging without end, and the first of equals wins.
            scale if enlarges => {
                if scale < 1.0 {
                    10e9
                } else {
                    scale
                }
            }
            scale => -scale,
        };
        if cost < least {
            (best, least) = (*grid, cost);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_by_area() {
        let wanted = [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (2, 2), (4, 1)];
        assert_eq!(grids((1, 4)), wanted);
        assert_eq!(grids((3, 3)), [(1, 3), (3, 1)]);
    }

    #[test]
    fn as_little_larger_as_can_be() {
        let table = [((100, 100), (2, 2)), ((131, 87), (3, 2)), ((100, 30), (2, 1)), ((4000, 1000), (4, 1))];
        for (size, grid) in table {
            let tile = if size.0 > 1000 { 512 } else { 50 };
            assert_eq!(least_enlarged(size, (tile, tile), (1, 6)), grid, "{size:?}");
        }
    }

    #[test]
    fn the_nearest_aspect_and_no_more_tiles_than_pixels() {
        let table = [
            ((100, 100), (1, 1)),
            ((900, 900), (2, 2)),
            ((131, 87), (3, 2)),
            ((1000, 100), (6, 1)),
            ((100, 340), (1, 3)),
        ];
        for (size, grid) in table {
            assert_eq!(nearest_aspect(size, (448, 448), (1, 6)), grid, "{size:?}");
        }
    }
}
