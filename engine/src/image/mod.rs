//! Pictures: decoding to RGB, resizing with the reference's filters, and what a model's processor hands to its tower.
//!
//! The pixel rules follow Hugging Face transformers' image processors on the torchvision backend: pictures become
//! 8-bit RGB, every resize rounds to 8 bits, and normalization comes last. Normalization is not applied here but
//! travels with the tiles ([`Normalize`]), because the patch embedding folds it in.

mod bmp;
mod convert;
mod decode;
mod error;
mod gif;
mod jpeg;
mod memory;
mod metadata;
mod png;
mod prepared;
mod resize;
mod save;
mod sniff;
mod source;
mod webp;

pub use decode::{Alpha, DecodeOptions, decode_bytes, decode_file};
pub use error::ImageError;
pub use prepared::{Assembly, Key, Normalize, Pixels, PreparedImage, Tile};
pub use resize::{Filter, resize};
pub use save::{png, write_png};
pub use source::PictureSource;

/// Whether code compiled for AVX2 may run: the machine has it, and `OCELLI_ISA` does not forbid it.
/// The arithmetic of this module is exact, so the results are the same without it.
#[cfg(target_arch = "x86_64")]
fn may_use_avx2() -> bool {
    use ocelli_kernels::cpu::isa::{Isa, Level};
    // An `Isa` exists only for a level that the machine has.
    Isa::detect().is_ok_and(|isa| matches!(isa.level(), Level::Avx2 | Level::Avx512))
}

/// Ends of the names of files that are taken for pictures in a folder, in lower case.
pub const NAME_ENDS: [&str; 6] = ["png", "jpg", "jpeg", "webp", "gif", "bmp"];

/// An 8-bit RGB picture, `[height, width, 3]` row-major, both sides at least 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb8Image {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

impl Rgb8Image {
    /// Wraps `data: [height, width, 3]`. `None` if a side is zero or the length is not `height * width * 3`.
    pub fn from_raw(width: usize, height: usize, data: Vec<u8>) -> Option<Self> {
        let len = width.checked_mul(height)?.checked_mul(3)?;
        (len > 0 && data.len() == len).then_some(Self { width, height, data })
    }

    /// Pixels per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Grey levels, `[height, width, 3]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Gives up the grey levels, `[height, width, 3]`.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// Copies the rectangle of `width x height` pixels whose top left corner is at `(x, y)`.
    /// `None` if it is empty or does not lie inside the picture, or there is no memory for it.
    pub fn crop(&self, x: usize, y: usize, width: usize, height: usize) -> Option<Self> {
        if x.checked_add(width)? > self.width || y.checked_add(height)? > self.height {
            return None;
        }
        let mut data = Vec::new();
        data.try_reserve_exact(width * height * 3).ok()?;
        for row in self.data.chunks_exact(self.width * 3).skip(y).take(height) {
            data.extend_from_slice(&row[x * 3..(x + width) * 3]);
        }
        Self::from_raw(width, height, data)
    }
}
