use std::io;

use thiserror::Error;

use super::memory::zeroed;

/// Why a picture could not be read or resized. The text names the file and both sides of what does not fit.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The file could not be opened or read.
    #[error("{name}: {source}")]
    Io {
        /// File, as the caller named it.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The content is none of the known formats, whatever the file is called.
    #[error("{name}: not a PNG, JPEG, WebP, GIF or BMP picture: the file {found}")]
    NotAPicture {
        /// File, as the caller named it.
        name: String,
        /// What the first bytes look like.
        found: String,
    },
    /// The content is a known format that is not decoded.
    #[error("{name}: not a PNG, JPEG, WebP, GIF or BMP picture: the file is {format}")]
    OtherFormat {
        /// File, as the caller named it.
        name: String,
        /// The format, with its article.
        format: &'static str,
    },
    /// The name is that of something else than a file.
    #[error("{name}: a picture is read from a file, this is {what}")]
    NotAFile {
        /// Name, as the caller gave it.
        name: String,
        /// What it looks like.
        what: &'static str,
    },
    /// The header declares more pixels than allowed; nothing was decoded.
    #[error("{name}: {width} x {height} is {} pixels, the limit is {limit}", u64::from(*.width) * u64::from(*.height))]
    TooManyPixels {
        /// File, as the caller named it.
        name: String,
        /// Declared width in pixels.
        width: u32,
        /// Declared height in pixels.
        height: u32,
        /// The limit in force, in pixels.
        limit: u64,
    },
    /// The file is longer than any picture within the pixel limit.
    #[error("{name}: the file has more than {limit} bytes, too many for a picture within the pixel limit")]
    FileTooLarge {
        /// File, as the caller named it.
        name: String,
        /// The limit in force, in bytes.
        limit: u64,
    },
    /// The header declares no pixels.
    #[error("{name}: the picture is empty ({width} x {height} pixels)")]
    Empty {
        /// File, as the caller named it.
        name: String,
        /// Declared width in pixels.
        width: u32,
        /// Declared height in pixels.
        height: u32,
    },
    /// The content is fine, but of a kind that is not decoded.
    #[error("{name}: {format} pictures of this kind are not supported: {kind}")]
    Unsupported {
        /// File, as the caller named it.
        name: String,
        /// `JPEG` or `BMP`.
        format: &'static str,
        /// The kind.
        kind: String,
    },
    /// The content is damaged or truncated.
    #[error("{name}: cannot decode this {format} picture: {reason}")]
    Decode {
        /// File, as the caller named it.
        name: String,
        /// `PNG`, `JPEG`, `WebP`, `GIF` or `BMP`.
        format: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// There is no memory for the pixels.
    #[error("{name}: no memory for {bytes} bytes of pixels")]
    OutOfMemory {
        /// File or step.
        name: String,
        /// Size of the allocation that failed.
        bytes: usize,
    },
    /// A resize to a size without pixels.
    #[error("resize: a picture cannot be resized to {width} x {height} pixels")]
    EmptyResize {
        /// Asked width in pixels.
        width: usize,
        /// Asked height in pixels.
        height: usize,
    },
}

impl ImageError {
    /// What the user can do about it, in one line, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotAPicture { .. } => {
                Some("the format is taken from the content, not from the file's name")
            }
            Self::OtherFormat { .. } | Self::Unsupported { .. } => Some("convert it to JPEG or PNG"),
            Self::NotAFile { .. } => Some("save the picture to a file and give the file's name"),
            Self::TooManyPixels { .. } => {
                Some("make the picture smaller, or raise the limit with --max-pixels")
            }
            Self::Decode { .. } => {
                Some("the file may be truncated or damaged; open it in a viewer and save it again")
            }
            _ => None,
        }
    }
}

/// A zero-filled buffer of `bytes` bytes, or an error instead of an abort where there is no memory.
pub(crate) fn try_zeroed(name: &str, bytes: usize) -> Result<Vec<u8>, ImageError> {
    zeroed(bytes).ok_or_else(|| ImageError::OutOfMemory { name: name.to_owned(), bytes })
}

/// An error instead of an abort where a decoder is about to allocate up to `bytes` bytes that are not there.
pub(crate) fn ensure_memory(name: &str, bytes: usize) -> Result<(), ImageError> {
    let mut buffer: Vec<u8> = Vec::new();
    buffer.try_reserve_exact(bytes).map_err(|_| ImageError::OutOfMemory { name: name.to_owned(), bytes })?;
    // Without this the compiler may leave the allocation out.
    std::hint::black_box(&mut buffer);
    Ok(())
}
