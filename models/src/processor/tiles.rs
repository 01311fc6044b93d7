//! Pictures cut into tiles.

use ocelli_engine::image::{Rgb8Image, Tile};

/// The tiles of `canvas`, `rows x cols` squares of `side` pixels, row by row. The canvas is that large.
#[must_use]
pub fn cut(canvas: &Rgb8Image, rows: usize, cols: usize, side: usize) -> Vec<Tile> {
    let places = (0..rows).flat_map(|row| (0..cols).map(move |col| (col * side, row * side)));
    places.filter_map(|(x, y)| canvas.crop(x, y, side, side)).map(Tile::from).collect()
}
