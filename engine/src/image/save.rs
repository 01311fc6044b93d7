//! Pictures to files.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;

use super::{ImageError, Rgb8Image};

/// Writes a picture as a PNG file.
///
/// # Errors
/// If the file cannot be written; the text names it.
pub fn write_png(path: &Path, picture: &Rgb8Image) -> Result<(), ImageError> {
    let io = |source: io::Error| ImageError::Io { name: path.display().to_string(), source };
    let size = |side: usize| u32::try_from(side).map_err(|_| io(io::ErrorKind::FileTooLarge.into()));
    let file = BufWriter::new(File::create(path).map_err(io)?);
    let mut encoder = ::png::Encoder::new(file, size(picture.width())?, size(picture.height())?);
    encoder.set_color(::png::ColorType::Rgb);
    encoder.set_depth(::png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(|error| io(error.into()))?;
    writer.write_image_data(picture.data()).map_err(|error| io(error.into()))?;
    writer.finish().map_err(|error| io(error.into()))
}
