//! PNG, JPEG, WebP, GIF (first frame) and BMP to upright 8-bit RGB.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::codecs::{bmp::BmpDecoder, png::PngDecoder, webp::WebPDecoder};
use image::metadata::Orientation;
use image::{ColorType, ImageDecoder, ImageFormat, ImageResult, Limits};

use super::Rgb8Image;
use super::convert::{orient, to_rgb8};
use super::error::{ImageError, try_zeroed};
use super::{gif, jpeg};

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
    let io = |source| ImageError::Io { name: name.clone(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(64).read_to_end(&mut bytes).map_err(io)?;
    sniff(&name, &bytes)?;
    let limit = options.max_bytes();
    file.take(limit.saturating_sub(63)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(ImageError::FileTooLarge { name, limit });
    }
    decode_bytes(&name, &bytes, options)
}

/// Reads a picture from memory; `name` stands for it in errors.
///
/// # Errors
///
/// [`ImageError`], as [`decode_file`].
pub fn decode_bytes(name: &str, bytes: &[u8], options: &DecodeOptions) -> Result<Rgb8Image, ImageError> {
    let format = sniff(name, bytes)?;
    let limits = || {
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(options.max_bytes());
        limits
    };
    let job = Job { name, format, options };
    let input = Cursor::new(bytes);
    match format {
        ImageFormat::Png => {
            // IHDR comes first: bit depth at byte 24, colour type (0 = grey) at byte 25.
            let grey16 = bytes.get(24..26) == Some(&[16, 0]);
            let size = png_size(bytes);
            job.check_header(size)?;
            // Deflate shrinks at most 1032 times, rows have at least one bit per pixel.
            if let Some((width, height)) = size
                && u64::from(width) * u64::from(height) / 8 > bytes.len() as u64 * 1032
            {
                return Err(job.error(format!(
                    "{} bytes cannot hold {width} x {height} pixels: the file is truncated",
                    bytes.len()
                )));
            }
            job.decode(PngDecoder::with_limits(input, limits()), limits(), grey16)
        }
        ImageFormat::Jpeg => {
            let (width, height) =
                jpeg::size(bytes).ok_or_else(|| job.error("there is no complete header"))?;
            job.check_header(Some((width, height)))?;
            let jpeg::Decoded { data, orientation } = jpeg::decode(bytes).map_err(|e| job.error(e))?;
            job.finish(width, height, data, ColorType::Rgb8, false, orientation)
        }
        ImageFormat::WebP => {
            job.check_webp_chunks(bytes.get(12..).unwrap_or_default(), false)?;
            job.decode(WebPDecoder::new(input), limits(), false)
        }
        ImageFormat::Gif => {
            let gif::Frame { width, height, rgba } = gif::decode(
                bytes,
                options.max_bytes(),
                |width, height| job.check_header(Some((width, height))),
                |bytes| try_zeroed(name, bytes),
                |e| job.error(e),
            )?;
            job.finish(width, height, rgba, ColorType::Rgba8, false, Orientation::NoTransforms)
        }
        _ => job.decode(BmpDecoder::new(input), limits(), false),
    }
}

/// The format by the first bytes.
fn sniff(name: &str, bytes: &[u8]) -> Result<ImageFormat, ImageError> {
    let format = match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => ImageFormat::Png,
        [0xff, 0xd8, 0xff, ..] => ImageFormat::Jpeg,
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => ImageFormat::WebP,
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => ImageFormat::Gif,
        [b'B', b'M', ..] => ImageFormat::Bmp,
        _ => {
            let head = &bytes[..bytes.len().min(12)];
            let found = match std::str::from_utf8(head) {
                _ if head.is_empty() => "is empty".to_owned(),
                Ok(text) if !text.contains('\0') => format!("starts with the text {text:?}"),
                _ => format!("starts with the bytes {head:02x?}"),
            };
            return Err(ImageError::NotAPicture { name: name.to_owned(), found });
        }
    };
    Ok(format)
}

/// Width and height of a PNG header.
fn png_size(bytes: &[u8]) -> Option<(u32, u32)> {
    let field = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    (bytes.get(12..16) == Some(b"IHDR")).then_some(())?;
    Some((field(16)?, field(20)?))
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

    /// Refuses a declared size that is empty or over the limit. `None` (no readable header) is left to the decoder.
    fn check_header(&self, size: Option<(u32, u32)>) -> Result<(), ImageError> {
        let Some((width, height)) = size else { return Ok(()) };
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

    /// Refuses chunks that are longer than the file and frames over the pixel limit: the decoder allocates by these
    /// numbers. `chunks` starts at a chunk's name; `in_frame` where they are those of an animation frame.
    fn check_webp_chunks(&self, mut chunks: &[u8], in_frame: bool) -> Result<(), ImageError> {
        while let [a, b, c, d, l0, l1, l2, l3, rest @ ..] = chunks {
            let length = u32::from_le_bytes([*l0, *l1, *l2, *l3]) as usize;
            let Some((body, after)) = rest.split_at_checked(length) else {
                return Err(self.error(format!("a chunk has {length} bytes, the file {} more", rest.len())));
            };
            match (&[*a, *b, *c, *d], body) {
                // An animation frame: 16 bytes of geometry, then chunks of its own.
                (b"ANMF", [_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, own @ ..]) if !in_frame => {
                    self.check_webp_chunks(own, true)?;
                }
                // Lossy: frame tag, start code, and two 14-bit sides.
                (b"VP8 ", [_, _, _, 0x9d, 0x01, 0x2a, w0, w1, h0, h1, ..]) => {
                    let side = |low: u8, high: u8| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
                    self.check_header(Some((side(*w0, *w1), side(*h0, *h1))))?;
                }
                _ => {}
            }
            chunks = after.get(length % 2..).unwrap_or_default();
        }
        Ok(())
    }

    fn decode<D: ImageDecoder>(
        &self,
        decoder: ImageResult<D>,
        limits: Limits,
        grey16: bool,
    ) -> Result<Rgb8Image, ImageError> {
        let mut decoder = decoder.map_err(|e| self.error(e))?;
        let (width, height) = decoder.dimensions();
        self.check_header(Some((width, height)))?;
        decoder.set_limits(limits).map_err(|e| self.error(e))?;
        // Damaged metadata does not make a picture unreadable.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let color = decoder.color_type();
        let bytes = usize::try_from(decoder.total_bytes()).map_err(|e| self.error(e))?;
        let mut data = try_zeroed(self.name, bytes)?;
        decoder.read_image(&mut data).map_err(|e| self.error(e))?;
        self.finish(width, height, data, color, grey16, orientation)
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
