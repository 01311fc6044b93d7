//! PNG, JPEG, WebP, GIF (first frame) and BMP to upright 8-bit RGB.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use image::codecs::bmp::BmpDecoder;
use image::metadata::Orientation;
use image::{ColorType, ImageDecoder, ImageFormat, Limits};

use super::Rgb8Image;
use super::bmp::{self, Bmp};
use super::convert::{orient, to_rgb8};
use super::error::{ImageError, ensure_memory, try_zeroed};
use super::jpeg::{self, JpegError};
use super::sniff::{HEAD, sniff};
use super::{gif, png, webp};

/// What becomes of transparency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Alpha {
    /// The picture is laid on white, as `convert_to_rgb` of transformers' image processors does.
    #[default]
    White,
    /// The alpha channel is dropped and hidden colours show, as Pillow's `convert("RGB")` does.
    Drop,
}

/// Limits and rules of decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Most pixels (width times height) that are decoded; the header is checked before anything is allocated.
    /// Decoding takes at most 12 bytes per pixel (a progressive JPEG without subsampling; 3 to 6 are usual) besides
    /// the file itself, and the result 3.
    pub max_pixels: u64,
    /// What becomes of transparency.
    pub alpha: Alpha,
}

impl Default for DecodeOptions {
    /// 100 million pixels; transparency on white.
    fn default() -> Self {
        Self { max_pixels: 100_000_000, alpha: Alpha::White }
    }
}

impl DecodeOptions {
    /// Most bytes that a file, or a decoder's own buffers, may take: the widest pixels (8 bytes) and room for metadata.
    fn max_bytes(&self) -> u64 {
        self.max_pixels.saturating_mul(8).saturating_add(64 << 20)
    }
}

/// Reads a picture from a file. The format is taken from the content, not from the name.
///
/// # Errors
///
/// [`ImageError`], naming `path`: unreadable, not a picture, over a limit, empty, damaged or truncated.
pub fn decode_file(path: &Path, options: &DecodeOptions) -> Result<Rgb8Image, ImageError> {
    let name = path.display().to_string();
    let io = |source: io::Error| match not_a_file(&name) {
        Some(what) if source.kind() == io::ErrorKind::NotFound => {
            ImageError::NotAFile { name: name.clone(), what }
        }
        _ => ImageError::Io { name: name.clone(), source },
    };
    let mut file = File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(HEAD as u64).read_to_end(&mut bytes).map_err(io)?;
    sniff(&name, &bytes)?;
    let limit = options.max_bytes();
    file.take(limit.saturating_sub(HEAD as u64 - 1)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(ImageError::FileTooLarge { name, limit });
    }
    decode_bytes(&name, &bytes, options)
}

/// What a name looks like that is no file's.
fn not_a_file(name: &str) -> Option<&'static str> {
    if name == "-" {
        return Some("no file; standard input is not read for pictures");
    }
    let (scheme, _) = name.split_once(':')?;
    match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" | "ftp" | "s3" | "gs" | "hf" => Some("an address; nothing is downloaded"),
        "file" => Some("an address; give the path behind file://"),
        "data" => Some("data in text form"),
        _ => None,
    }
}

/// Reads a picture from memory; `name` stands for it in errors.
///
/// # Errors
///
/// [`ImageError`], as [`decode_file`].
pub fn decode_bytes(name: &str, bytes: &[u8], options: &DecodeOptions) -> Result<Rgb8Image, ImageError> {
    let job = Job { name, format: sniff(name, bytes)?, options };
    match job.format {
        ImageFormat::Png => job.png(bytes),
        ImageFormat::Jpeg => {
            let (width, height) =
                jpeg::size(bytes).ok_or_else(|| job.error("there is no complete header"))?;
            job.check_header((width, height))?;
            let jpeg::Decoded { data, metadata } = jpeg::decode(bytes).map_err(|e| job.jpeg_error(e))?;
            job.finish(width, height, data, ColorType::Rgb8, false, metadata.orientation())
        }
        ImageFormat::WebP => {
            let container = webp::Container::read(bytes).map_err(|e| job.error(e))?;
            job.check_header(container.canvas)?;
            job.check_header(container.frame_size())?;
            let (data, color) = container.decode(name, |e| job.error(e))?;
            let (width, height) = container.canvas;
            job.finish(width, height, data, color, false, container.metadata.orientation())
        }
        ImageFormat::Gif => {
            let gif::Frame { width, height, rgba } = gif::decode(
                bytes,
                options.max_bytes(),
                |width, height| job.check_header((width, height)),
                |bytes| try_zeroed(name, bytes),
                |e| job.error(e),
            )?;
            job.finish(width, height, rgba, ColorType::Rgba8, false, Orientation::NoTransforms)
        }
        _ => job.bmp(bytes),
    }
}

/// One decoding job: what errors need to know.
struct Job<'a> {
    name: &'a str,
    format: ImageFormat,
    options: &'a DecodeOptions,
}

impl Job<'_> {
    fn error(&self, reason: impl ToString) -> ImageError {
        let format = match self.format {
            ImageFormat::Png => "PNG",
            ImageFormat::Jpeg => "JPEG",
            ImageFormat::WebP => "WebP",
            ImageFormat::Gif => "GIF",
            _ => "BMP",
        };
        // Errors are one line; some decoders' texts have several.
        let reason = reason.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        ImageError::Decode { name: self.name.to_owned(), format, reason }
    }

    fn jpeg_error(&self, error: JpegError) -> ImageError {
        match error {
            JpegError::Damaged(reason) => self.error(reason),
            JpegError::Truncated => self.error("the data end too soon: the file is truncated"),
            JpegError::Unsupported(kind) => self.unsupported("JPEG", kind),
            JpegError::NoMemory(bytes) => ImageError::OutOfMemory { name: self.name.to_owned(), bytes },
        }
    }

    fn unsupported(&self, format: &'static str, kind: impl Into<String>) -> ImageError {
        ImageError::Unsupported { name: self.name.to_owned(), format, kind: kind.into() }
    }

    /// Refuses a declared size that is empty or over the limit.
    fn check_header(&self, (width, height): (u32, u32)) -> Result<(), ImageError> {
        let name = || self.name.to_owned();
        if width == 0 || height == 0 {
            return Err(ImageError::Empty { name: name(), width, height });
        }
        let limit = self.options.max_pixels;
        if u64::from(width) * u64::from(height) > limit {
            return Err(ImageError::TooManyPixels { name: name(), width, height, limit });
        }
        Ok(())
    }

    fn png(&self, bytes: &[u8]) -> Result<Rgb8Image, ImageError> {
        let chunks = png::Chunks::read(bytes).map_err(|e| self.error(e))?;
        let (width, height) = chunks.size();
        self.check_header((width, height))?;
        // Deflate shrinks at most 1032 times, rows have at least one bit per pixel.
        let data = chunks.data_len();
        if u64::from(width) * u64::from(height) / 8 > data as u64 * 1032 {
            return Err(self.error(format!(
                "{data} bytes cannot hold {width} x {height} pixels: the file is truncated"
            )));
        }
        // Rows in several states, and the decoder's tables.
        ensure_memory(self.name, (width as usize).saturating_mul(64).saturating_add(1 << 20))?;
        let pixels = chunks.pixels(self.name, self.options.max_bytes())?.map_err(|e| self.error(e))?;
        let orientation = chunks.metadata.orientation();
        self.finish(width, height, pixels.data, pixels.color, chunks.grey16(), orientation)
    }

    fn bmp(&self, bytes: &[u8]) -> Result<Rgb8Image, ImageError> {
        let failed = |e: image::ImageError| match e {
            image::ImageError::Unsupported(e) => self.unsupported("BMP", e.to_string()),
            other => self.error(other),
        };
        self.check_header(bmp::size(bytes).ok_or_else(|| self.error("there is no complete header"))?)?;
        let mut decoder = BmpDecoder::new(Bmp::new(bytes)).map_err(failed)?;
        let (width, height) = decoder.dimensions();
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(self.options.max_bytes());
        decoder.set_limits(limits).map_err(failed)?;
        let color = decoder.color_type();
        let bytes = usize::try_from(decoder.total_bytes()).map_err(|e| self.error(e))?;
        ensure_memory(self.name, (width as usize).saturating_mul(16))?;
        let mut data = try_zeroed(self.name, bytes)?;
        decoder.read_image(&mut data).map_err(failed)?;
        self.finish(width, height, data, color, false, Orientation::NoTransforms)
    }

    /// Decoded pixels to an upright RGB picture.
    fn finish(
        &self,
        width: u32,
        height: u32,
        data: Vec<u8>,
        color: ColorType,
        grey16: bool,
        orientation: Orientation,
    ) -> Result<Rgb8Image, ImageError> {
        let Some(data) = to_rgb8(self.name, data, color, grey16, self.options.alpha)? else {
            return Err(self.error(format!("colour type {color:?} is not supported")));
        };
        let (width, height, data) = orient(self.name, width as usize, height as usize, data, orientation)?;
        Rgb8Image::from_raw(width, height, data)
            .ok_or_else(|| self.error("the decoder gave the wrong number of pixels"))
    }
}
