//! Pictures fitted into tiles and cut into them.

use ocelli_engine::image::{Rgb8Image, Tile};

/// The tiles of `canvas`, `rows x cols` of `width x height` pixels, row by row. The canvas is that large.
#[must_use]
pub fn cut(canvas: &Rgb8Image, rows: usize, cols: usize, (width, height): (usize, usize)) -> Vec<Tile> {
    let places = (0..rows).flat_map(|row| (0..cols).map(move |col| (col * width, row * height)));
    places.filter_map(|(x, y)| canvas.crop(x, y, width, height)).map(Tile::from).collect()
}

/// A picture in the middle of a square of a colour.
pub fn in_square(image: &Rgb8Image, colour: [u8; 3]) -> Rgb8Image {
    let (width, height) = (image.width(), image.height());
    let side = width.max(height);
    let (left, top) = ((side - width) / 2, (side - height) / 2);
    let mut data = colour.repeat(side * side);
    for (row, pixels) in image.data().chunks_exact(width * 3).enumerate() {
        let at = ((top + row) * side + left) * 3;
        data[at..at + width * 3].copy_from_slice(pixels);
    }
    // As many bytes as pixels.
    Rgb8Image::from_raw(side, side, data).unwrap_or_else(|| image.clone())
}

/// How pictures are fitted into tiles: `MllamaImageProcessor` of transformers and its like.
#[derive(Clone, Copy, Debug)]
pub struct Fit {
    /// Side of a tile in pixels.
    pub side: usize,
    /// Most tiles.
    pub most: usize,
    /// Whether pictures are enlarged as much as tiles allow, and not as little.
    pub largest: bool,
    /// Whether scales are computed in f32 where torch has them in tensors.
    pub single: bool,
}

impl Fit {
    /// Rows and columns of the tiles that a picture of `(width, height)` goes into with the least enlargement, or the least reduction; the
    /// fewest of those.
    #[must_use]
    pub fn shape(&self, (width, height): (usize, usize)) -> (usize, usize) {
        let rate = |to: usize, from: usize| rate(to, from, self.single);
        let scale = |&(rows, cols): &(usize, usize)| {
            rate(rows * self.side, height).min(rate(cols * self.side, width))
        };
        let shapes = arrangements(self.most);
        let larger = if self.largest { f64::max } else { f64::min };
        let enlarged = shapes.iter().map(scale).filter(|scale| *scale >= 1.0).reduce(larger);
        let best = enlarged.or_else(|| shapes.iter().map(scale).reduce(f64::max)).unwrap_or(1.0);
        let fitting = shapes.iter().filter(|shape| scale(shape) == best);
        fitting.min_by_key(|(rows, cols)| rows * cols).copied().unwrap_or((1, 1))
    }

    /// Width and height of a picture of `(width, height)` in tiles of that shape.
    #[must_use]
    pub fn fitted(&self, (width, height): (usize, usize), (rows, cols): (usize, usize)) -> (usize, usize) {
        let (canvas_w, canvas_h) = (cols * self.side, rows * self.side);
        let target = |size: usize, canvas: usize| {
            if self.largest { canvas } else { size.max(self.side).min(canvas) }
        };
        let (target_w, target_h) = (target(width, canvas_w), target(height, canvas_h));
        let single = |size: usize, canvas: usize| self.single && (self.largest || size > canvas);
        let (single_w, single_h) = (single(width, canvas_w), single(height, canvas_h));
        let (scale_w, scale_h) = (rate(target_w, width, single_w), rate(target_h, height, single_h));
        let times = |size: usize, scale: f64, single: bool| {
            let size = if single { f64::from(size as f32 * scale as f32) } else { size as f64 * scale };
            (size.floor() as usize).max(1)
        };
        let by_width = match single_w || single_h {
            true => (scale_w as f32) < scale_h as f32,
            false => scale_w < scale_h,
        };
        if by_width {
            (target_w, times(height, scale_w, single_w).min(target_h))
        } else {
            (times(width, scale_h, single_h).min(target_w), target_h)
        }
    }
}

fn rate(to: usize, from: usize, single: bool) -> f64 {
    let rate = to as f64 / from as f64;
    if single { f64::from(rate as f32) } else { rate }
}

/// Rows and columns of at most so many tiles, rows ascending and then columns.
#[must_use]
pub fn arrangements(most: usize) -> Vec<(usize, usize)> {
    let all = (1..=most).flat_map(|rows| (1..=most / rows).map(move |cols| (rows, cols)));
    all.collect()
}

/// The picture on a larger black one, at its left upper corner.
#[must_use]
pub fn pad(image: &Rgb8Image, width: usize, height: usize) -> Rgb8Image {
    let mut data = vec![0; width * height * 3];
    let len = image.width() * 3;
    for (to, from) in data.chunks_exact_mut(width * 3).zip(image.data().chunks_exact(len)) {
        to[..len].copy_from_slice(from);
    }
    // As many bytes as pixels.
    Rgb8Image::from_raw(width, height, data).unwrap_or_else(|| image.clone())
}
