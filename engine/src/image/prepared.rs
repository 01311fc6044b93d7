use blake3::Hasher;

use super::Rgb8Image;

/// A BLAKE3 hash of what something consists of.
pub type Key = [u8; 32];

/// Per-channel normalization in grey levels: `value = (level - mean) / std` with `level` in `0..=255`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalize {
    /// Mean of red, green, blue, in grey levels.
    pub mean: [f32; 3],
    /// Standard deviation of red, green, blue, in grey levels.
    pub std: [f32; 3],
}

impl Normalize {
    /// Levels as they are.
    pub const IDENTITY: Self = Self { mean: [0.0; 3], std: [1.0; 3] };
}

/// Pixels of one tile.
#[derive(Clone, Debug, PartialEq)]
pub enum Pixels {
    /// Grey levels, `[frames, height, width, 3]`, to be normalized by [`PreparedImage::normalize`].
    Rgb8(Vec<u8>),
    /// Normalized values, `[frames, 3, height, width]`, used as they are.
    F32(Vec<f32>),
}

/// One picture of the size that the vision tower takes, or several frames of a video that it takes for one.
#[derive(Clone, Debug, PartialEq)]
pub struct Tile {
    /// Rows.
    pub height: usize,
    /// Pixels per row.
    pub width: usize,
    /// The pixels.
    pub pixels: Pixels,
}

impl From<Rgb8Image> for Tile {
    fn from(image: Rgb8Image) -> Self {
        Self { height: image.height(), width: image.width(), pixels: Pixels::Rgb8(image.into_data()) }
    }
}

impl Tile {
    /// Frames of a video, at least 1; 1 for a picture.
    #[must_use]
    pub fn frames(&self) -> usize {
        let len = match &self.pixels {
            Pixels::Rgb8(levels) => levels.len(),
            Pixels::F32(values) => values.len(),
        };
        (len / (self.height * self.width * 3).max(1)).max(1)
    }

    /// Appends the normalized values, `[frames, 3, height, width]`, to `out`.
    pub fn write_values(&self, normalize: &Normalize, out: &mut Vec<f32>) {
        match &self.pixels {
            Pixels::F32(values) => out.extend_from_slice(values),
            Pixels::Rgb8(levels) => {
                for frame in levels.chunks((levels.len() / self.frames()).max(1)) {
                    for channel in 0..3 {
                        let (mean, std) = (normalize.mean[channel], normalize.std[channel]);
                        let table: [f32; 256] = std::array::from_fn(|level| (level as f32 - mean) / std);
                        out.extend(
                            frame.iter().skip(channel).step_by(3).map(|&level| table[usize::from(level)]),
                        );
                    }
                }
            }
        }
    }
}

/// A picture's rows of features as sums of rows that its tiles give, where they are not those as they come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assembly {
    /// Rows that each is the sum of, at least 1.
    pub taps: usize,
    /// Numbers of those rows, `taps` for each: the first tap of all, then the second, ... The number after the tiles' last row
    /// means the model's row for the end of a line.
    pub rows: Vec<i32>,
    /// Factors of those rows, likewise; empty: all 1.
    pub weights: Vec<f32>,
}

impl Assembly {
    /// Rows as they are, in this order.
    #[must_use]
    pub fn of_rows(rows: Vec<i32>) -> Self {
        Self { taps: 1, rows, weights: Vec::new() }
    }

    /// Rows of features.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len() / self.taps.max(1)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// What a model's image processor makes of one picture: the tiles that the vision tower sees, in the order of the
/// prompt's image tokens, and the grid that the prompt describes.
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedImage {
    /// The tiles: row by row, the whole picture last; a single one where the picture is not split.
    pub tiles: Vec<Tile>,
    /// Rows of the tile grid; 0 where the picture is not split.
    pub rows: usize,
    /// Columns of the tile grid; 0 where the picture is not split.
    pub cols: usize,
    /// Normalization of [`Pixels::Rgb8`] tiles.
    pub normalize: Normalize,
    /// What the tiles' features become; `None`: they are the picture's as they come.
    pub assembly: Option<Assembly>,
}

impl PreparedImage {
    /// Normalized values of all tiles, `[tiles, frames, 3, height, width]`: the reference's `pixel_values`.
    pub fn pixel_values(&self) -> Vec<f32> {
        let len = self.tiles.iter().map(|t| t.frames() * t.height * t.width * 3).sum();
        let mut out = Vec::with_capacity(len);
        for tile in &self.tiles {
            tile.write_values(&self.normalize, &mut out);
        }
        out
    }

    /// A hash of everything that a model sees of the picture.
    pub fn key(&self) -> Key {
        let mut hash = Hasher::new();
        let number = |hash: &mut Hasher, value: usize| {
            hash.update(&(value as u64).to_le_bytes());
        };
        for value in [self.rows, self.cols, self.tiles.len()] {
            number(&mut hash, value);
        }
        for value in self.normalize.mean.iter().chain(&self.normalize.std) {
            hash.update(&value.to_le_bytes());
        }
        for tile in &self.tiles {
            number(&mut hash, tile.height);
            number(&mut hash, tile.width);
            match &tile.pixels {
                Pixels::Rgb8(levels) => hash.update(b"8").update(levels),
                Pixels::F32(values) => hash.update(b"f").update(bytemuck::cast_slice(values)),
            };
        }
        if let Some(Assembly { taps, rows, weights }) = &self.assembly {
            number(&mut hash, *taps);
            number(&mut hash, rows.len());
            hash.update(bytemuck::cast_slice(rows)).update(bytemuck::cast_slice(weights));
        }
        hash.finalize().into()
    }

    /// The same picture with given normalized values in place of its own pixels.
    /// `values: [tiles, frames, 3, height, width]`; `None` if the length differs.
    pub fn with_pixel_values(&self, values: &[f32]) -> Option<Self> {
        let mut rest = values;
        let mut tiles = Vec::with_capacity(self.tiles.len());
        for tile in &self.tiles {
            let (own, after) = rest.split_at_checked(tile.frames() * tile.height * tile.width * 3)?;
            rest = after;
            tiles.push(Tile { pixels: Pixels::F32(own.to_vec()), ..*tile });
        }
        rest.is_empty().then(|| Self { tiles, assembly: self.assembly.clone(), ..*self })
    }
}
