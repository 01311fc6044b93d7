//! JPEG, decoded to the bit as libjpeg-turbo decodes it (integer IDCT, triangular chroma upsampling), which is what
//! the reference reads pictures with. Sequential and progressive Huffman coding with 8-bit samples, one, three or four
//! components, all sampling factors. Specification: ITU-T T.81; colour conventions: JFIF and Adobe's APP14.
//!
//! As there, damaged entropy-coded data gives damaged pixels and no error: where a marker comes too soon, the blocks that
//! are missing stay grey, or as exact as earlier scans made them. A file that ends too soon is an error.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod bits;
mod idct;
mod output;
mod scan;
mod smooth;
mod standard;

use std::borrow::Cow;

use super::memory;
use super::metadata::{Metadata, keep};
use bits::Huffman;
use output::ColorSpace;
use scan::ScanHeader;
use smooth::Progress;

/// Progressive scans that are read; real files have about ten. Each one visits every block.
const MAX_SCANS: usize = 200;

/// Why a stream cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JpegError {
    /// The content is damaged.
    Damaged(Cow<'static, str>),
    /// The data end too soon.
    Truncated,
    /// The content is fine, but of a kind that is not decoded.
    Unsupported(Cow<'static, str>),
    /// There is no memory for this many bytes.
    NoMemory(usize),
}

impl From<&'static str> for JpegError {
    fn from(reason: &'static str) -> Self {
        Self::Damaged(reason.into())
    }
}

impl From<String> for JpegError {
    fn from(reason: String) -> Self {
        Self::Damaged(reason.into())
    }
}

impl JpegError {
    fn unsupported(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Unsupported(reason.into())
    }
}

const TRUNCATED: JpegError = JpegError::Truncated;

/// A decoded picture.
pub(crate) struct Decoded {
    /// RGB, `[height, width, 3]`.
    pub data: Vec<u8>,
    /// What the segments before the pixels say about its orientation.
    pub metadata: Metadata,
}

/// One component of the frame.
#[derive(Default)]
struct Component {
    id: u8,
    /// Sampling factors.
    h: usize,
    v: usize,
    /// Index of its quantization table, and the table as it was at the component's first scan, in natural order.
    table: usize,
    quant: Option<[u16; 64]>,
    /// Samples that belong to the picture.
    width: usize,
    height: usize,
    /// Blocks per row, padded to whole MCUs.
    blocks_w: usize,
    /// Coefficients in natural order, 64 per block: all blocks (progressive) or one MCU row (sequential).
    coefs: Vec<i16>,
    /// Samples, `blocks_w * 8` per row, padded to whole MCUs.
    plane: Vec<u8>,
    /// Progressive: what the scans so far gave.
    progress: Progress,
}

impl Component {
    fn stride(&self) -> usize {
        self.blocks_w * 8
    }

    /// Samples of row `y` that belong to the picture.
    fn row(&self, y: usize) -> &[u8] {
        &self.plane[y * self.stride()..][..self.width]
    }

    /// Turns `rows` rows of blocks at the start of `coefs` into samples from block row `first` on.
    fn idct_rows(&mut self, rows: usize, first: usize) {
        let Some(quant) = &self.quant else { return };
        let (blocks, samples) = (self.blocks_w * 64, self.stride() * 8);
        let coefs = self.coefs.chunks_exact(blocks).take(rows);
        for (coefs, samples) in coefs.zip(self.plane.chunks_exact_mut(samples).skip(first)) {
            idct::block_row(coefs, quant, samples);
        }
    }
}

/// The frame header's facts.
struct Frame {
    width: usize,
    height: usize,
    progressive: bool,
    h_max: usize,
    v_max: usize,
    mcus_x: usize,
    mcus_y: usize,
    components: Vec<Component>,
    /// Last row of MCUs (of all components) that the last scan has data for.
    last_good: usize,
}

/// Everything that markers set.
struct Decoder<'a> {
    data: &'a [u8],
    /// Next byte to read.
    at: usize,
    quant: [Option<[u16; 64]>; 4],
    dc: [Option<Huffman>; 4],
    ac: [Option<Huffman>; 4],
    restart: usize,
    jfif: bool,
    adobe: Option<u8>,
    metadata: Metadata,
    frame: Option<Frame>,
    scans: usize,
    /// Whether the file ended within a scan.
    cut: bool,
}

/// Width and height of the first frame header, without decoding anything. `None` if there is none.
pub(crate) fn size(data: &[u8]) -> Option<(u32, u32)> {
    let mut decoder = Decoder::new(data);
    loop {
        let marker = decoder.marker().ok()?;
        match marker {
            0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                let body = decoder.segment().ok()?;
                let field =
                    |at: usize| Some(u32::from(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?])));
                return Some((field(3)?, field(1)?));
            }
            0xd9 | 0xda => return None,
            _ => {
                decoder.segment().ok()?;
            }
        }
    }
}

/// Decodes a picture whose size the caller has checked with [`size`].
pub(crate) fn decode(data: &[u8]) -> Result<Decoded, JpegError> {
    let mut decoder = Decoder::new(data);
    decoder.read()?;
    let space = decoder.color_space()?;
    let Some(frame) = decoder.frame else { return Err("there is no frame header".into()) };
    Ok(Decoded { data: output::to_rgb(frame, space)?, metadata: decoder.metadata })
}

/// A zero-filled buffer, or an error instead of an abort where there is no memory.
fn zeroed<T: bytemuck::Zeroable>(len: usize) -> Result<Vec<T>, JpegError> {
    memory::zeroed(len).ok_or(JpegError::NoMemory(len.saturating_mul(size_of::<T>())))
}

impl<'a> Decoder<'a> {
    fn new(data: &'a [u8]) -> Self {
        Self {
            data,
            at: 2,
            quant: [None; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart: 0,
            jfif: false,
            adobe: None,
            metadata: Metadata::default(),
            frame: None,
            scans: 0,
            cut: false,
        }
    }

    /// Skips to the next marker and returns its code.
    fn marker(&mut self) -> Result<u8, JpegError> {
        loop {
            match self.data.get(self.at..self.at + 2) {
                Some(&[0xff, code @ (0x02..=0xcf | 0xd8..=0xfe)]) => {
                    self.at += 2;
                    return Ok(code);
                }
                Some(_) => self.at += 1,
                None => return Err(TRUNCATED),
            }
        }
    }

    /// The body of the segment that starts here.
    fn segment(&mut self) -> Result<&'a [u8], JpegError> {
        let length = match self.data.get(self.at..self.at + 2) {
            Some(&[hi, lo]) => usize::from(u16::from_be_bytes([hi, lo])),
            _ => return Err(TRUNCATED),
        };
        if length < 2 {
            return Err("a segment is shorter than its own length field".into());
        }
        let body = self.data.get(self.at + 2..self.at + length).ok_or(TRUNCATED)?;
        self.at += length;
        Ok(body)
    }

    /// Reads segments and scans up to the end of the image, and what they leave becomes samples.
    fn read(&mut self) -> Result<(), JpegError> {
        match self.segments() {
            // All samples of a sequential file may be there without the end marker.
            Err(TRUNCATED) if self.complete() => {}
            other => other?,
        }
        let Some(frame) = &mut self.frame else { return Err("there is no frame header".into()) };
        if self.scans == 0 {
            return Err("there is no scan".into());
        }
        // A component without a scan is grey.
        for component in frame.components.iter_mut().filter(|c| c.quant.is_none()) {
            component.plane.fill(128);
        }
        if frame.progressive {
            if smooth::wanted(frame) {
                smooth::idct_smoothed(frame, self.scans);
            } else {
                frame.components.iter_mut().for_each(|c| c.idct_rows(usize::MAX, 0));
            }
            frame.components.iter_mut().for_each(|c| c.coefs = Vec::new());
        }
        Ok(())
    }

    fn segments(&mut self) -> Result<(), JpegError> {
        loop {
            match self.marker()? {
                0xd8 => {}
                0xd9 => return Ok(()),
                marker @ 0xc0..=0xc2 => {
                    let body = self.segment()?;
                    self.frame_header(body, marker == 0xc2)?;
                }
                0xc4 => self.huffman_tables()?,
                0xc3 => return Err(JpegError::unsupported("lossless coding")),
                0xc5..=0xc7 => return Err(JpegError::unsupported("hierarchical coding")),
                0xc8 => return Err("there is a frame header of a reserved kind".into()),
                0xc9..=0xcb | 0xcd..=0xcf => return Err(JpegError::unsupported("arithmetic coding")),
                0xda => {
                    self.scans += 1;
                    if self.scans > MAX_SCANS {
                        return Err(format!("there are more than {MAX_SCANS} scans").into());
                    }
                    let body = self.segment()?;
                    let header = ScanHeader::parse(body)?;
                    self.scan(&header)?;
                    // A sequential scan of all components is the whole picture, whatever follows.
                    if self
                        .frame
                        .as_ref()
                        .is_some_and(|f| !f.progressive && f.components.len() == header.components.len())
                    {
                        return Ok(());
                    }
                }
                0xdb => self.quant_tables()?,
                0xdd => {
                    if let [hi, lo, ..] = *self.segment()? {
                        self.restart = usize::from(u16::from_be_bytes([hi, lo]));
                    }
                }
                0xe0 => self.jfif |= self.segment()?.starts_with(b"JFIF\0"),
                0xe1 => {
                    let body = self.segment()?;
                    if self.scans == 0 {
                        self.app1(body);
                    }
                }
                0xee => {
                    let body = self.segment()?;
                    if body.starts_with(b"Adobe") && body.len() >= 12 {
                        self.adobe = Some(body[11]);
                    }
                }
                _ => {
                    self.segment()?;
                }
            }
        }
    }

    /// EXIF, which may be spread over several segments, and XMP.
    fn app1(&mut self, body: &[u8]) {
        if body.starts_with(b"Exif\0\0") {
            // The first segment's prefix stays, as it may be there twice.
            let again = if self.metadata.exif.is_some() { 6 } else { 0 };
            keep(&mut self.metadata.exif, &body[again..]);
        } else if let Some(xmp) = body.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
            self.metadata.xmp = None;
            keep(&mut self.metadata.xmp, xmp);
        }
    }

    /// Whether every sample of a sequential frame has been read.
    fn complete(&self) -> bool {
        let all = |f: &Frame| !f.progressive && f.components.iter().all(|c| c.quant.is_some());
        !self.cut && self.frame.as_ref().is_some_and(all)
    }

    fn quant_tables(&mut self) -> Result<(), JpegError> {
        let mut body = self.segment()?;
        while let [head, rest @ ..] = body {
            let wide = usize::from(head >> 4 != 0);
            let slot =
                self.quant.get_mut(usize::from(head & 15)).ok_or("a quantization table has a bad number")?;
            let (values, rest) =
                rest.split_at_checked(64 << wide).ok_or("a quantization table is too short")?;
            let mut table = [0; 64];
            for (i, &natural) in scan::ZIGZAG.iter().enumerate() {
                table[natural] = match wide {
                    0 => u16::from(values[i]),
                    _ => u16::from_be_bytes([values[2 * i], values[2 * i + 1]]),
                };
            }
            *slot = Some(table);
            body = rest;
        }
        Ok(())
    }

    fn huffman_tables(&mut self) -> Result<(), JpegError> {
        let mut body = self.segment()?;
        while let [head, rest @ ..] = body {
            let (counts, rest) = rest.split_first_chunk::<16>().ok_or("a Huffman table is too short")?;
            let total = counts.iter().map(|&n| usize::from(n)).sum();
            let (values, rest) = rest.split_at_checked(total).ok_or("a Huffman table is too short")?;
            let slots = if head >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            let slot = slots.get_mut(usize::from(head & 15)).ok_or("a Huffman table has a bad number")?;
            *slot = Some(Huffman::new(counts, values)?);
            body = rest;
        }
        Ok(())
    }

    fn frame_header(&mut self, body: &[u8], progressive: bool) -> Result<(), JpegError> {
        if self.frame.is_some() {
            return Err("there are two frame headers".into());
        }
        let [depth, h1, h0, w1, w0, count, fields @ ..] = body else {
            return Err("the frame header is too short".into());
        };
        if *depth != 8 {
            return Err(JpegError::unsupported(format!("samples of {depth} bits")));
        }
        let height = usize::from(u16::from_be_bytes([*h1, *h0]));
        let width = usize::from(u16::from_be_bytes([*w1, *w0]));
        let count = usize::from(*count);
        if width == 0 || height == 0 || fields.len() < count * 3 {
            return Err(format!("the frame header of {width} x {height} pixels is damaged").into());
        }
        if !matches!(count, 1 | 3 | 4) {
            return Err(JpegError::unsupported(format!("a picture of {count} components")));
        }
        let mut components = Vec::with_capacity(count);
        for field in fields.chunks_exact(3).take(count) {
            let (h, v) = (usize::from(field[1] >> 4), usize::from(field[1] & 15));
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) || field[2] > 3 {
                return Err("a component has bad sampling factors".into());
            }
            components.push(Component { id: field[0], h, v, table: field[2].into(), ..Default::default() });
        }
        let h_max = components.iter().map(|c| c.h).max().unwrap_or(1);
        let v_max = components.iter().map(|c| c.v).max().unwrap_or(1);
        let (mcus_x, mcus_y) = (width.div_ceil(8 * h_max), height.div_ceil(8 * v_max));
        for c in &mut components {
            if h_max % c.h != 0 || v_max % c.v != 0 {
                return Err(JpegError::unsupported("fractional sampling"));
            }
            c.width = (width * c.h).div_ceil(h_max);
            c.height = (height * c.v).div_ceil(v_max);
            c.blocks_w = mcus_x * c.h;
            let rows = c.v * if progressive { mcus_y } else { 1 };
            c.coefs = zeroed(c.blocks_w * rows * 64)?;
            c.plane = zeroed(c.blocks_w * c.v * mcus_y * 64)?;
        }
        self.frame = Some(Frame {
            width,
            height,
            progressive,
            h_max,
            v_max,
            mcus_x,
            mcus_y,
            components,
            last_good: 0,
        });
        Ok(())
    }

    /// What the components mean, by the rules of libjpeg.
    fn color_space(&self) -> Result<ColorSpace, JpegError> {
        let components = self.frame.as_ref().map(|f| &f.components[..]).unwrap_or_default();
        Ok(match (components, self.adobe) {
            ([_], _) => ColorSpace::Grey,
            ([_, _, _], _) if self.jfif => ColorSpace::YCbCr,
            ([_, _, _], Some(0)) => ColorSpace::Rgb,
            ([_, _, _], Some(_)) => ColorSpace::YCbCr,
            ([r, g, b], None) if [r.id, g.id, b.id] == *b"RGB" => ColorSpace::Rgb,
            ([_, _, _], None) => ColorSpace::YCbCr,
            ([_, _, _, _], Some(0) | None) => ColorSpace::Cmyk,
            ([_, _, _, _], Some(_)) => ColorSpace::Ycck,
            _ => return Err("there is no frame header".into()),
        })
    }
}
