//! WebP: the container is read here, leniently as by the reference, and the first frame is handed to libwebp in a
//! container of its own that says what is in it.

use image::ColorType;
use libwebp_sys as ffi;

use super::error::{ImageError, ensure_memory, try_zeroed};
use super::metadata::{Metadata, keep};

/// Bits of the first byte of `VP8X`.
const ALPHA: u8 = 0x10;
const EXIF: u8 = 0x08;
const XMP: u8 = 0x04;

/// What is in a file.
pub(crate) struct Container<'a> {
    /// Width and height of the canvas.
    pub canvas: (u32, u32),
    /// Of an animation: left and top of the first frame.
    offset: Option<(u32, u32)>,
    frame: Frame<'a>,
    /// Whether the container says that there is transparency.
    alpha: bool,
    pub metadata: Metadata,
}

/// One coded picture.
#[derive(Default)]
struct Frame<'a> {
    width: u32,
    height: u32,
    /// Opacities, where they are coded apart.
    opacity: Option<&'a [u8]>,
    lossless: bool,
    data: &'a [u8],
}

/// A chunk: name, length as declared, what the file has of its body, and what follows it.
type Chunk<'a> = ([u8; 4], usize, &'a [u8], &'a [u8]);

/// The chunk at the start of `bytes`.
fn chunk(bytes: &[u8]) -> Option<Chunk<'_>> {
    let (&name, rest) = bytes.split_first_chunk::<4>()?;
    let (&length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(length)).ok()?;
    let (body, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
    Some((name, length, body, after.get(length % 2..).unwrap_or_default()))
}

/// A 24-bit number.
fn number(bytes: &[u8]) -> Option<u32> {
    let &[a, b, c] = bytes.first_chunk::<3>()?;
    Some(u32::from_le_bytes([a, b, c, 0]))
}

impl<'a> Frame<'a> {
    /// The first coded picture of `chunks`.
    fn read(mut chunks: &'a [u8]) -> Result<Option<Self>, String> {
        let mut opacity = None;
        while let Some((name, length, body, after)) = chunk(chunks) {
            let whole = body.len() == length;
            match &name {
                b"VP8 " | b"VP8L" => {
                    if !whole {
                        return Err(format!(
                            "the picture's chunk has {length} bytes, the file {} more: it is truncated",
                            body.len()
                        ));
                    }
                    let mut frame = Self { data: body, ..Self::default() };
                    frame.header(&name)?;
                    // Opacities belong to lossy pictures; lossless ones have their own.
                    frame.opacity = opacity.filter(|_| !frame.lossless);
                    return Ok(Some(frame));
                }
                // Any other chunk that is too long hides all that follows.
                _ if !whole => return Ok(None),
                b"ALPH" => opacity = Some(body),
                _ => {}
            }
            chunks = after;
        }
        Ok(None)
    }

    fn header(&mut self, name: &[u8; 4]) -> Result<(), String> {
        match (name, self.data) {
            // Frame tag, start code, and two 14-bit sides.
            (b"VP8 ", [_, _, _, 0x9d, 0x01, 0x2a, w0, w1, h0, h1, ..]) => {
                let side = |low: u8, high: u8| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
                (self.width, self.height) = (side(*w0, *w1), side(*h0, *h1));
            }
            (b"VP8L", [0x2f, a, b, c, d, ..]) => {
                let bits = u32::from_le_bytes([*a, *b, *c, *d]);
                (self.width, self.height) = ((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1);
                self.lossless = true;
            }
            _ => return Err("the picture's header is damaged".to_owned()),
        }
        Ok(())
    }

    /// Pixels of the frame and their colour type.
    fn decode(
        &self,
        name: &str,
        error: &impl Fn(String) -> ImageError,
    ) -> Result<(Vec<u8>, ColorType), ImageError> {
        let header;
        let parts: &[(&[u8; 4], &[u8])] = match (self.lossless, self.opacity) {
            (true, _) => &[(b"VP8L", self.data)],
            (false, None) => &[(b"VP8 ", self.data)],
            (false, Some(opacity)) => {
                let [w, h] = [self.width - 1, self.height - 1].map(u32::to_le_bytes);
                header = [ALPHA, 0, 0, 0, w[0], w[1], w[2], h[0], h[1], h[2]];
                &[(b"VP8X", &header[..]), (b"ALPH", opacity), (b"VP8 ", self.data)]
            }
        };
        let len = parts.iter().map(|(_, body)| body.len() + 9).sum::<usize>();
        let pixels = self.width as usize * self.height as usize;
        // Bytes per pixel of the decoder's own buffers with the result: four in place of three and tables (lossless);
        // opacities decoded as a picture of their own.
        let per_pixel = match (self.lossless, self.opacity) {
            (true, _) => 8,
            (false, None) => 3,
            (false, Some(_)) => 9,
        };
        ensure_memory(name, pixels.saturating_mul(per_pixel).saturating_add(len * 2 + (2 << 20)))?;
        let mut file = Vec::new();
        file.try_reserve_exact(len + 12)
            .map_err(|_| ImageError::OutOfMemory { name: name.to_owned(), bytes: len })?;
        file.extend_from_slice(b"RIFF\0\0\0\0WEBP");
        for (kind, body) in parts {
            file.extend_from_slice(*kind);
            file.extend_from_slice(&(body.len() as u32).to_le_bytes());
            file.extend_from_slice(body);
            file.extend_from_slice(&[0][..body.len() % 2]);
        }
        let size = (file.len() - 8) as u32;
        file[4..8].copy_from_slice(&size.to_le_bytes());
        let mut config =
            ffi::WebPDecoderConfig::new().map_err(|()| error("libwebp is of another version".into()))?;
        let failed = |status| match status {
            ffi::VP8StatusCode::VP8_STATUS_OUT_OF_MEMORY => {
                ImageError::OutOfMemory { name: name.to_owned(), bytes: pixels * per_pixel }
            }
            other => error(reason(other).to_owned()),
        };
        // SAFETY: the pointer and the length are those of `file`; the features are part of a config that lives on.
        let status = unsafe { ffi::WebPGetFeatures(file.as_ptr(), file.len(), &mut config.input) };
        if status != ffi::VP8StatusCode::VP8_STATUS_OK {
            return Err(failed(status));
        }
        let sides = [config.input.width, config.input.height].map(u32::try_from);
        if sides != [Ok(self.width), Ok(self.height)] {
            return Err(error(format!("{} x {} pixels are not supported", self.width, self.height)));
        }
        let (color, mode) = match config.input.has_alpha {
            0 => (ColorType::Rgb8, ffi::WEBP_CSP_MODE::MODE_RGB),
            _ => (ColorType::Rgba8, ffi::WEBP_CSP_MODE::MODE_RGBA),
        };
        let stride = self.width as usize * usize::from(color.bytes_per_pixel());
        let mut data = try_zeroed(name, stride.saturating_mul(self.height as usize))?;
        config.output.colorspace = mode;
        config.output.is_external_memory = 1;
        config.output.u.RGBA =
            ffi::WebPRGBABuffer { rgba: data.as_mut_ptr(), stride: stride as i32, size: data.len() };
        // SAFETY: `file` is read within its length, and `data`, which nobody else uses, is written within its own.
        let status = unsafe { ffi::WebPDecode(file.as_ptr(), file.len(), &mut config) };
        // SAFETY: the buffer was made by `WebPDecoderConfig::new` and is not used again; `data` is not freed by it.
        unsafe { ffi::WebPFreeDecBuffer(&mut config.output) };
        match status {
            ffi::VP8StatusCode::VP8_STATUS_OK => Ok((data, color)),
            other => Err(failed(other)),
        }
    }
}

/// What the decoder's status means for the picture's data.
fn reason(status: ffi::VP8StatusCode) -> &'static str {
    match status {
        ffi::VP8StatusCode::VP8_STATUS_SUSPENDED | ffi::VP8StatusCode::VP8_STATUS_NOT_ENOUGH_DATA => {
            "the data end too soon: the file is truncated"
        }
        ffi::VP8StatusCode::VP8_STATUS_UNSUPPORTED_FEATURE => "the data need a feature that is not decoded",
        _ => "the data are damaged",
    }
}

impl<'a> Container<'a> {
    /// Reads a file whose first twelve bytes the caller has checked. Chunks are taken by what they are: flags that do
    /// not fit them, text behind the picture and metadata that are too long do not matter. Opacities and metadata count
    /// where the flags announce them.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let none = || "there is no picture in it".to_owned();
        let chunks = bytes.get(12..).unwrap_or_default();
        let (name, _, body, mut rest) = chunk(chunks).ok_or_else(none)?;
        if name != *b"VP8X" {
            let frame = match &name {
                b"VP8 " | b"VP8L" => Frame::read(chunks)?,
                _ => None,
            };
            let frame = frame.ok_or_else(none)?;
            let canvas = (frame.width, frame.height);
            return Ok(Self { canvas, offset: None, frame, alpha: true, metadata: Metadata::default() });
        }
        let &[flags, _, _, _, ref sides @ ..] = body else { return Err(none()) };
        let side = |at: usize| sides.get(at..).and_then(number).map(|v| v + 1);
        let (Some(width), Some(height)) = (side(0), side(3)) else { return Err(none()) };

        // What follows the container is not part of it, unless the picture itself sticks out.
        let end = bytes.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes) as usize + 8;
        let beyond = bytes.len().saturating_sub(end);
        let mut metadata = Metadata::default();
        let (mut still, mut animation) = (None, None);
        let mut opacity = None;
        while let Some((name, length, body, after)) = chunk(rest) {
            if rest.len() <= beyond && (still.is_some() || animation.is_some()) {
                break;
            }
            match &name {
                b"VP8 " | b"VP8L" if still.is_none() => {
                    still = Frame::read(rest)?;
                    if let Some(frame) = &mut still {
                        frame.opacity = opacity.filter(|_| !frame.lossless && flags & ALPHA != 0);
                    }
                }
                b"ANMF" if animation.is_none() => {
                    let part = |at: usize| body.get(at..).and_then(number);
                    let (Some(x), Some(y)) = (part(0), part(3)) else { return Err(none()) };
                    let frame = Frame::read(body.get(16..).unwrap_or_default())?;
                    let frame = frame.ok_or("the first frame has no picture")?;
                    if part(6) != Some(frame.width.wrapping_sub(1))
                        || part(9) != Some(frame.height.wrapping_sub(1))
                    {
                        return Err("the first frame's size is not that of its picture".to_owned());
                    }
                    animation = Some(((x * 2, y * 2), frame));
                }
                _ if body.len() < length => break,
                b"ALPH" => opacity = opacity.or(Some(body)),
                b"EXIF" if metadata.exif.is_none() && flags & EXIF != 0 => keep(&mut metadata.exif, body),
                b"XMP " if metadata.xmp.is_none() && flags & XMP != 0 => keep(&mut metadata.xmp, body),
                _ => {}
            }
            rest = after;
        }
        let (canvas, alpha) = ((width, height), flags & ALPHA != 0);
        match (still, animation) {
            // The alpha flag of a still picture says nothing about lossless data, which have their own.
            (Some(frame), _) => Ok(Self { canvas, offset: None, frame, alpha: true, metadata }),
            (None, Some((offset, frame))) => {
                Ok(Self { canvas, offset: Some(offset), frame, alpha, metadata })
            }
            (None, None) => Err(none()),
        }
    }

    /// Width and height of the coded picture.
    pub(crate) fn frame_size(&self) -> (u32, u32) {
        (self.frame.width, self.frame.height)
    }

    /// Pixels of the canvas with the first frame on it, and their colour type. The caller has checked both sizes.
    pub(crate) fn decode(
        &self,
        name: &str,
        error: impl Fn(String) -> ImageError,
    ) -> Result<(Vec<u8>, ColorType), ImageError> {
        let (width, height) = self.canvas;
        let Frame { width: w, height: h, .. } = self.frame;
        let fits = match self.offset {
            Some((x, y)) => x + w <= width && y + h <= height,
            None => (w, h) == self.canvas,
        };
        if !fits {
            return Err(error(format!(
                "its canvas is {width} x {height}, the picture on it {w} x {h} pixels"
            )));
        }
        let (data, color) = self.frame.decode(name, &error)?;
        let Some((left, top)) = self.offset else { return Ok((data, color)) };
        let width = self.canvas.0 as usize;
        let canvas_len = width.saturating_mul(self.canvas.1 as usize).saturating_mul(4);
        let mut canvas = try_zeroed(name, canvas_len)?;
        let channels = usize::from(color.channel_count());
        let rows = canvas.chunks_exact_mut(width * 4).skip(top as usize);
        for (dst, src) in rows.zip(data.chunks_exact(self.frame.width as usize * channels)) {
            let pixels = dst.chunks_exact_mut(4).skip(left as usize);
            for (dst, src) in pixels.zip(src.chunks_exact(channels)) {
                dst[3] = 255;
                dst[..channels].copy_from_slice(src);
            }
        }
        // An animation without transparency shows hidden colours, on black.
        if !self.alpha {
            canvas.chunks_exact_mut(4).for_each(|px| px[3] = 255);
        }
        Ok((canvas, ColorType::Rgba8))
    }
}
