//! Pictures cut into tiles.

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
