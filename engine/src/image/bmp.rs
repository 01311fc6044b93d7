//! BMP files whose header does not say where the pixels start.

use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};

/// Bytes of the file header; the last four are the offset of the pixels.
const FILE_HEADER: usize = 14;

/// Bytes that are read in place of the file's own: the file header and the first fields of the next one.
const HEAD: usize = 30;

/// Bytes that may be missing at the end: the padding of the last row.
const PADDING: usize = 3;

/// A file that reads as if its header were right.
pub(crate) struct Bmp<'a> {
    head: [u8; HEAD],
    file: Cursor<&'a [u8]>,
}

impl<'a> Bmp<'a> {
    /// As the reference: an offset of zero means "behind the header", one that points behind the header is taken to
    /// leave out the palette, the number of planes does not matter, and the last row's padding may be missing.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        let mut head = [0; HEAD];
        let present = bytes.len().min(HEAD);
        head[..present].copy_from_slice(&bytes[..present]);
        if let Some(offset) = pixels_at(bytes) {
            head[10..FILE_HEADER].copy_from_slice(&offset.to_le_bytes());
        }
        let planes = if head[FILE_HEADER..FILE_HEADER + 4] == [12, 0, 0, 0] { 22 } else { 26 };
        head[planes..planes + 2].copy_from_slice(&[1, 0]);
        Self { head, file: Cursor::new(bytes) }
    }
}

/// Width and height that the header declares.
pub(crate) fn size(bytes: &[u8]) -> Option<(u32, u32)> {
    let info = bytes.get(FILE_HEADER..)?;
    let wide = |at: usize| Some(i32::from_le_bytes(*info.get(at..)?.first_chunk()?).unsigned_abs());
    let short = |at: usize| Some(u16::from_le_bytes(*info.get(at..)?.first_chunk()?).into());
    // The oldest header has sides of 16 bits.
    if wide(0)? == 12 { Some((short(4)?, short(6)?)) } else { Some((wide(4)?, wide(8)?)) }
}

/// Where the pixels are, if the header does not say it.
fn pixels_at(bytes: &[u8]) -> Option<u32> {
    let wide = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let short = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let (declared, info) = (wide(10)?, wide(14)?);
    let end = info.checked_add(FILE_HEADER as u32)?;
    if declared != 0 && declared != end {
        return None;
    }
    let (bits, colors, entry) = match info {
        12 => (short(24)?, 0, 3),
        _ => (short(28)?, wide(46)?, 4),
    };
    if matches!(bits, 1..=8) {
        let colors = if colors == 0 { 1 << bits } else { colors };
        return end.checked_add(colors.checked_mul(entry)?);
    }
    // Three colour masks follow the shortest header that can have them.
    let masks = if info == 40 && wide(30)? == 3 { 12 } else { 0 };
    (declared == 0).then_some(())?;
    end.checked_add(masks)
}

impl BufRead for Bmp<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let at = usize::try_from(self.file.position()).unwrap_or(usize::MAX);
        let len = self.file.get_ref().len();
        if len > HEAD && at < HEAD {
            return Ok(&self.head[at..]);
        }
        if len > HEAD && at >= len {
            return Ok(&[0; PADDING][(at - len).min(PADDING)..]);
        }
        self.file.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.file.consume(amount);
    }
}

impl Read for Bmp<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(out)?;
        self.consume(read);
        Ok(read)
    }
}

impl Seek for Bmp<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}
