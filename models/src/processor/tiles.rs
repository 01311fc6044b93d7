//! Pictures cut into tiles.

use ocelli_engine::image::{Rgb8Image, Tile};

/// The tiles of `canvas`, `rows x cols` of `width x height` pixels, row by row. The canvas is that large.
#[must_use]
pub fn cut(canvas: &Rgb8Image, rows: usize, cols: usize, (width, height): (usize, usize)) -> Vec<Tile> {
    let places = (0..rows).flat_map(|row| (0..cols).map(move |col| (col * width, row * height)));
    places.filter_map(|(x, y)| canvas.crop(x, y, width, height)).map(Tile::from).collect()
}
