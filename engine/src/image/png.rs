//! PNG: chunks are read here, by the rules of the reference (Pillow), and the pixels are decoded from what matters:
//! the header, palette, transparency, and the data without their checksums.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use flate2::read::ZlibDecoder;
use image::ColorType;
use png::{BitDepth, Decoder, DecodingError, Limits, Transformations};

use super::error::{ImageError, try_zeroed};
use super::metadata::{Metadata, keep};

/// Most bytes that a compressed text may unfold to; longer ones are not read.
const MAX_TEXT: u64 = 1 << 20;

/// The chunks of a file.
#[derive(Default)]
pub(crate) struct Chunks<'a> {
    /// Body of `IHDR`.
    header: [u8; 13],
    palette: Option<&'a [u8]>,
    transparency: Option<&'a [u8]>,
    /// Bodies of the data chunks, which follow each other.
    data: Vec<&'a [u8]>,
    /// Whether a checksum of the data chunks is wrong or missing.
    doubtful: bool,
    /// Where the chunk behind the data starts.
    data_end: usize,
    /// EXIF in a text, as ImageMagick writes it.
    raw_profile: Option<Vec<u8>>,
    /// What chunks on either side of the data say about the orientation.
    pub metadata: Metadata,
}

/// Decoded pixels.
pub(crate) struct Pixels {
    pub data: Vec<u8>,
    pub color: ColorType,
}

/// One chunk: its name, body, and whether its checksum is right; `None` at the end of the file, `whole` false where the
/// body is cut off there.
struct Chunk<'a> {
    name: [u8; 4],
    body: &'a [u8],
    whole: bool,
    sound: bool,
    next: usize,
}

fn chunk(bytes: &[u8], at: usize) -> Option<Chunk<'_>> {
    let length = u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
    let name: [u8; 4] = bytes.get(at + 4..at + 8)?.try_into().ok()?;
    let rest = &bytes[at + 8..];
    let length = usize::try_from(length).ok()?;
    let body = rest.get(..length).unwrap_or(rest);
    let sum = rest.get(length..).and_then(|r| r.first_chunk::<4>());
    let sound = sum.is_some_and(|sum| {
        let mut crc = flate2::Crc::new();
        crc.update(&name);
        crc.update(body);
        crc.sum().to_be_bytes() == *sum
    });
    Some(Chunk { name, body, whole: body.len() == length, sound, next: (at + 12).saturating_add(length) })
}

/// A chunk's name for a message.
fn shown(name: [u8; 4]) -> String {
    String::from_utf8_lossy(&name).escape_debug().to_string()
}

impl<'a> Chunks<'a> {
    /// Reads the chunks of a file whose signature the caller has checked.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut out = Self::default();
        let truncated = |what: &str| format!("the file ends before {what}: it is truncated");
        let first = chunk(bytes, 8).ok_or_else(|| truncated("the header"))?;
        if first.name != *b"IHDR" {
            return Err(format!("the first chunk is {}, expected IHDR", shown(first.name)));
        }
        if !first.whole || !first.sound {
            return Err("the header chunk (IHDR) is damaged: its checksum is wrong".to_owned());
        }
        out.header = *first.body.first_chunk().ok_or("the header chunk (IHDR) is too short")?;
        let mut at = first.next;
        while let Some(Chunk { name, body, whole, sound, next }) = chunk(bytes, at) {
            let in_data = at == out.data_end || out.data.is_empty();
            let behind = !out.data.is_empty();
            match &name {
                // The reference compares no checksum of data chunks: the compressed data have one of their own.
                b"IDAT" if in_data => {
                    out.data.try_reserve(1).map_err(|e| e.to_string())?;
                    out.data.push(body);
                    out.data_end = next;
                    out.doubtful |= !sound;
                }
                b"IEND" => break,
                // Whatever is wrong behind the pixels does not matter.
                _ if behind && !whole => break,
                _ if behind => out.note(name, body),
                _ if !name.iter().all(u8::is_ascii_alphanumeric) => {
                    return Err(format!("expected a chunk, found {}", shown(name)));
                }
                _ if !whole => return Err(truncated(&format!("the end of chunk {}", shown(name)))),
                // Small letter first: not needed to show the picture.
                _ if !sound && name[0].is_ascii_lowercase() => {}
                _ if !sound => {
                    return Err(format!("chunk {} is damaged: its checksum is wrong", shown(name)));
                }
                b"PLTE" => out.palette = Some(body),
                b"tRNS" => out.transparency = Some(body),
                _ => out.note(name, body),
            }
            at = next;
        }
        if out.data.is_empty() {
            return Err("there are no pixels (no IDAT chunk)".to_owned());
        }
        if out.metadata.exif.is_none() {
            out.metadata.exif = out.raw_profile.take();
        }
        Ok(out)
    }

    /// Keeps what a chunk says about the orientation.
    fn note(&mut self, name: [u8; 4], body: &[u8]) {
        let (keyword, rest) = match body.iter().position(|&b| b == 0) {
            Some(end) => (&body[..end], &body[end + 1..]),
            None => (body, &[][..]),
        };
        let wanted = matches!(keyword, b"XML:com.adobe.xmp" | b"Raw profile type exif" | b"exif");
        match &name {
            // Written with a prefix by mistake, the chunk has it twice.
            b"eXIf" => {
                self.metadata.exif = Some(b"Exif\0\0".to_vec());
                keep(&mut self.metadata.exif, body);
            }
            b"tEXt" if wanted => self.text(keyword, rest),
            b"zTXt" if wanted => {
                if let [0, packed @ ..] = rest {
                    self.text(keyword, &inflated(packed).unwrap_or_default());
                }
            }
            // Compressed or not, the method, a language, and the keyword in that language.
            b"iTXt" if wanted => {
                let [flag, method, rest @ ..] = rest else { return };
                let mut parts = rest.splitn(3, |&b| b == 0);
                let (Some(_), Some(_), Some(text)) = (parts.next(), parts.next(), parts.next()) else {
                    return;
                };
                match (flag, method) {
                    (0, _) => self.text(keyword, text),
                    (_, 0) => {
                        if let Some(text) = inflated(text) {
                            self.text(keyword, &text);
                        }
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn text(&mut self, keyword: &[u8], text: &[u8]) {
        let block = match keyword {
            b"XML:com.adobe.xmp" => &mut self.metadata.xmp,
            b"exif" => &mut self.metadata.exif,
            // Counts where there is no other EXIF.
            _ => {
                self.raw_profile = raw_profile(text);
                return;
            }
        };
        *block = None;
        keep(block, text);
    }

    /// Width and height.
    pub(crate) fn size(&self) -> (u32, u32) {
        let [w0, w1, w2, w3, h0, h1, h2, h3, ..] = self.header;
        (u32::from_be_bytes([w0, w1, w2, w3]), u32::from_be_bytes([h0, h1, h2, h3]))
    }

    /// Whether samples are 16-bit grey without an alpha channel.
    pub(crate) fn grey16(&self) -> bool {
        self.header[8..10] == [16, 0]
    }

    /// Bytes of all data chunks.
    pub(crate) fn data_len(&self) -> usize {
        self.data.iter().map(|body| body.len()).sum()
    }

    /// Decodes the pixels; `max_bytes` bounds what the decoder keeps. The caller has checked the size.
    pub(crate) fn pixels(&self, name: &str, max_bytes: u64) -> Result<Result<Pixels, String>, ImageError> {
        if self.doubtful
            && let Err(reason) = self.check_data()
        {
            return Ok(Err(reason));
        }
        let mut options = png::DecodeOptions::default();
        options.set_ignore_crc(true);
        let mut decoder = Decoder::new_with_options(self.clean(), options);
        decoder.set_limits(Limits { bytes: usize::try_from(max_bytes).unwrap_or(usize::MAX) });
        decoder.set_transformations(Transformations::EXPAND);
        let mut reader = match decoder.read_info() {
            Ok(reader) => reader,
            Err(e) => return Ok(Err(plain(&e))),
        };
        let (color, depth) = reader.output_color_type();
        let color = match (color, depth) {
            (png::ColorType::Grayscale, BitDepth::Eight) => ColorType::L8,
            (png::ColorType::Grayscale, BitDepth::Sixteen) => ColorType::L16,
            (png::ColorType::GrayscaleAlpha, BitDepth::Eight) => ColorType::La8,
            (png::ColorType::GrayscaleAlpha, BitDepth::Sixteen) => ColorType::La16,
            (png::ColorType::Rgb, BitDepth::Eight) => ColorType::Rgb8,
            (png::ColorType::Rgb, BitDepth::Sixteen) => ColorType::Rgb16,
            (png::ColorType::Rgba, BitDepth::Eight) => ColorType::Rgba8,
            (png::ColorType::Rgba, BitDepth::Sixteen) => ColorType::Rgba16,
            other => return Ok(Err(format!("the colour type {other:?} is not known"))),
        };
        let Some(bytes) = reader.output_buffer_size() else {
            return Ok(Err("the picture is too large".to_owned()));
        };
        let mut data = try_zeroed(name, bytes)?;
        if let Err(e) = reader.next_frame(&mut data) {
            return Ok(Err(plain(&e)));
        }
        if depth == BitDepth::Sixteen {
            data.as_chunks_mut::<2>().0.iter_mut().for_each(|s| *s = u16::from_be_bytes(*s).to_ne_bytes());
        }
        Ok(Ok(Pixels { data, color }))
    }

    /// Compares the checksum of the compressed data. Data that end before it pass: the rows show what is missing.
    fn check_data(&self) -> Result<(), String> {
        let compressed = Clean {
            head: Vec::new(),
            at: 0,
            bodies: self.data.iter(),
            body: &[],
            framed: false,
            started: false,
            ended: false,
        };
        match io::copy(&mut ZlibDecoder::new(compressed), &mut io::sink()) {
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => {
                Err("the pixels are damaged: their checksum is wrong".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// The file again with what the pixels need: palettes of 256 colours (those that are missing are black), with as
    /// many opacities, and with an end.
    fn clean(&self) -> Clean<'_> {
        let mut head = b"\x89PNG\r\n\x1a\n".to_vec();
        let mut put = |name: &[u8; 4], body: &[u8]| {
            head.extend_from_slice(&(body.len() as u32).to_be_bytes());
            head.extend_from_slice(name);
            head.extend_from_slice(body);
            head.extend_from_slice(&[0; 4]);
        };
        put(b"IHDR", &self.header);
        let padded = |body: &[u8], len: usize, value: u8| -> Vec<u8> {
            body.iter().copied().chain(std::iter::repeat(value)).take(len).collect()
        };
        match (self.header[9], self.transparency) {
            (3, transparency) => {
                let palette = self.palette.unwrap_or_default();
                put(b"PLTE", &padded(&palette[..palette.len() / 3 * 3], 3 << 8, 0));
                if let Some(opacities) = transparency {
                    put(b"tRNS", &padded(opacities, 256, 255));
                }
            }
            (0, Some(key @ [_, _, ..])) => put(b"tRNS", &key[..2]),
            (2, Some(key @ [_, _, _, _, _, _, ..])) => put(b"tRNS", &key[..6]),
            _ => {}
        }
        Clean { head, at: 0, bodies: self.data.iter(), body: &[], framed: true, started: false, ended: false }
    }
}

/// A PNG decoder's error in words.
fn plain(error: &DecodingError) -> String {
    match error {
        DecodingError::IoError(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            "the data end before the last row: the file is truncated".to_owned()
        }
        DecodingError::LimitsExceeded => "it needs more memory than a picture within the limit".to_owned(),
        other => {
            let text = other.to_string();
            match text.contains("InsufficientInput") {
                true => "the data end before the last row: the file is truncated".to_owned(),
                false => without_structs(&text),
            }
        }
    }
}

/// `ChunkType { type: IDAT, ... }` and the like become `IDAT`.
fn without_structs(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("ChunkType { type: ") {
        let Some((inside, behind)) = after.split_once('}') else { break };
        out.push_str(before);
        out.push_str(inside.split(',').next().unwrap_or_default());
        rest = behind;
    }
    out + rest
}

/// Data chunks (`framed`: behind `head`, each with a new header) as one stream.
struct Clean<'a> {
    /// Bytes that come before `body`, read up to `at`.
    head: Vec<u8>,
    at: usize,
    body: &'a [u8],
    bodies: std::slice::Iter<'a, &'a [u8]>,
    framed: bool,
    /// Whether the first and the closing header are written.
    started: bool,
    ended: bool,
}

impl BufRead for Clean<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.head.len() && self.body.is_empty() {
            let next = self.bodies.next();
            if next.is_none() && (self.ended || !self.framed) {
                return Ok(&[]);
            }
            self.body = next.copied().unwrap_or_default();
            if self.framed {
                self.ended = next.is_none();
                // The checksum of the chunk before, which nobody compares; `head` had its own.
                let sum: &[u8] = if self.started { &[0; 4] } else { &[] };
                self.started = true;
                self.head.clear();
                self.at = 0;
                self.head.extend_from_slice(sum);
                let length = u32::try_from(self.body.len()).map_err(|_| io::ErrorKind::InvalidData)?;
                self.head.extend_from_slice(&length.to_be_bytes());
                self.head.extend_from_slice(if self.ended { b"IEND\0\0\0\0" } else { b"IDAT" });
            }
        }
        Ok(if self.at < self.head.len() { &self.head[self.at..] } else { self.body })
    }

    fn consume(&mut self, amount: usize) {
        if self.at < self.head.len() {
            self.at += amount;
        } else {
            self.body = &self.body[amount..];
        }
    }
}

impl Read for Clean<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(out)?;
        self.consume(read);
        Ok(read)
    }
}

impl Seek for Clean<'_> {
    fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A zlib stream's content, at most [`MAX_TEXT`] bytes; `None` if it is damaged or longer.
fn inflated(packed: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    ZlibDecoder::new(packed).take(MAX_TEXT + 1).read_to_end(&mut out).ok()?;
    (out.len() as u64 <= MAX_TEXT).then_some(out)
}

/// The bytes of ImageMagick's `Raw profile`: a name, a length, and hexadecimal digits, on lines of their own.
fn raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let mut digits = Vec::new();
    digits.try_reserve(text.len()).ok()?;
    for line in text.split(|&b| b == b'\n').skip(3) {
        digits.extend(line.iter().filter(|b| !b.is_ascii_whitespace()));
    }
    let value = |digit: u8| char::from(digit).to_digit(16).map(|v| v as u8);
    let len = digits.len() / 2;
    if digits.len() % 2 != 0 {
        return None;
    }
    for i in 0..len {
        digits[i] = value(digits[2 * i])? << 4 | value(digits[2 * i + 1])?;
    }
    digits.truncate(len);
    Some(digits)
}
