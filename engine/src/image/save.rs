//! Pictures to files.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::{ImageError, Rgb8Image};

/// Writes a picture as a PNG file.
///
/// # Errors
/// If the file cannot be written; the text names it.
pub fn write_png(path: &Path, picture: &Rgb8Image) -> Result<(), ImageError> {
    let io = |source: io::Error| ImageError::Io { name: path.display().to_string(), source };
    encode(BufWriter::new(File::create(path).map_err(io)?), picture).map_err(io)
}

/// The bytes of a picture as a PNG file.
///
/// # Errors
/// If it is larger than such a file can be.
pub fn png(picture: &Rgb8Image) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let io = |source: io::Error| ImageError::Io { name: "a PNG file".into(), source };
    encode(&mut bytes, picture).map_err(io)?;
    Ok(bytes)
}

fn encode(to: impl Write, picture: &Rgb8Image) -> io::Result<()> {
    let size = |side: usize| u32::try_from(side).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge));
    let mut encoder = ::png::Encoder::new(to, size(picture.width())?, size(picture.height())?);
    encoder.set_color(::png::ColorType::Rgb);
    encoder.set_depth(::png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.data())?;
    Ok(writer.finish()?)
}
