//! Which way up a picture is, by its EXIF and XMP, with the precedence of the reference (Pillow's `exif_transpose`): the
//! EXIF tag wins, whatever its value, and XMP counts where there is none.

use image::metadata::Orientation;

/// The metadata of a file that can say how it is to be turned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metadata {
    /// EXIF: a TIFF structure, perhaps behind `Exif\0\0`.
    pub exif: Option<Vec<u8>>,
    /// An XMP packet.
    pub xmp: Option<Vec<u8>>,
}

impl Metadata {
    /// How to turn the picture upright. Damaged metadata turn nothing.
    pub(crate) fn orientation(&self) -> Orientation {
        let value =
            self.exif.as_deref().and_then(from_tiff).or_else(|| self.xmp.as_deref().and_then(from_xmp));
        value.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
    }
}

/// Appends `piece` to what is kept of a block of metadata. Without memory for it the block is as good as damaged.
pub(crate) fn keep(block: &mut Option<Vec<u8>>, piece: &[u8]) {
    let mut bytes = block.take().unwrap_or_default();
    if bytes.try_reserve(piece.len()).is_ok() {
        bytes.extend_from_slice(piece);
        *block = Some(bytes);
    }
}

/// The orientation tag's number.
const ORIENTATION: u16 = 0x112;

/// The first value of the orientation tag of an EXIF block, 0 where it is no whole number; `None` without the tag.
fn from_tiff(exif: &[u8]) -> Option<u8> {
    const PREFIX: &[u8] = b"Exif\0\0";
    let once = exif.strip_prefix(PREFIX).unwrap_or(exif);
    let data = once.strip_prefix(PREFIX).unwrap_or(once);
    let big = match data.get(..4)? {
        b"II*\0" | b"II\0*" => false,
        b"MM\0*" | b"MM*\0" => true,
        _ => return None,
    };
    let tiff = Tiff { data, big };
    let directory = usize::try_from(tiff.u32(4)?).ok()?;
    let mut taken = 0_u64;
    for i in 0..usize::from(tiff.u16(directory)?) {
        let entry = directory.checked_add(2 + i * 12)?;
        let (tag, kind, count) = (tiff.u16(entry)?, tiff.u16(entry + 2)?, tiff.u32(entry + 4)?);
        let inline = data.get(entry + 8..entry + 12)?;
        let Some(unit) = unit_size(kind) else { continue };
        let size = u64::from(count) * unit;
        let mut value = inline;
        if size > 4 {
            taken += size;
            if taken > data.len() as u64 {
                continue;
            }
            let at = usize::try_from(tiff.u32(entry + 8)?).ok()?;
            value = data.get(at..at.checked_add(usize::try_from(size).ok()?)?)?;
        }
        if tag == ORIENTATION && size > 0 {
            return Some(tiff.number(kind, value));
        }
    }
    None
}

/// Bytes of one value of a TIFF type; `None` for unknown types.
fn unit_size(kind: u16) -> Option<u64> {
    Some(match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16 => 8,
        _ => return None,
    })
}

struct Tiff<'a> {
    data: &'a [u8],
    big: bool,
}

impl Tiff<'_> {
    /// `N` bytes at `at`, most significant first.
    fn bytes<const N: usize>(&self, data: &[u8], at: usize) -> Option<[u8; N]> {
        let mut bytes: [u8; N] = data.get(at..at.checked_add(N)?)?.try_into().ok()?;
        if !self.big {
            bytes.reverse();
        }
        Some(bytes)
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.bytes(self.data, at).map(u16::from_be_bytes)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.bytes(self.data, at).map(u32::from_be_bytes)
    }

    /// The first value of a tag, where it is a number of `0..=255`; 0 where it is not.
    fn number(&self, kind: u16, value: &[u8]) -> u8 {
        let wide = |at: usize| self.bytes(value, at).map(u32::from_be_bytes);
        let number = match kind {
            3 => self.bytes(value, 0).map(|b| f64::from(u16::from_be_bytes(b))),
            8 => self.bytes(value, 0).map(|b| f64::from(i16::from_be_bytes(b))),
            4 | 13 => wide(0).map(f64::from),
            9 => wide(0).map(|v| f64::from(v as i32)),
            5 => wide(0).zip(wide(4)).map(|(a, b)| f64::from(a) / f64::from(b)),
            10 => wide(0).zip(wide(4)).map(|(a, b)| f64::from(a as i32) / f64::from(b as i32)),
            6 => value.first().map(|&v| f64::from(v as i8)),
            11 => self.bytes(value, 0).map(|b| f64::from(f32::from_be_bytes(b))),
            12 => self.bytes(value, 0).map(f64::from_be_bytes),
            16 => self.bytes(value, 0).map(|b| u64::from_be_bytes(b) as f64),
            // Text and raw bytes are no numbers.
            _ => None,
        };
        number.filter(|v| v.fract() == 0.0 && (0.0..256.0).contains(v)).map_or(0, |v| v as u8)
    }
}

/// The digit of the first `tiff:Orientation` of an XMP packet, as an attribute or an element.
fn from_xmp(xmp: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    let digits = xmp.windows(NAME.len()).enumerate().filter(|(_, w)| *w == NAME).filter_map(|(at, _)| {
        let rest = &xmp[at + NAME.len()..];
        match rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))? {
            [digit @ b'0'..=b'9', ..] => Some(digit - b'0'),
            _ => None,
        }
    });
    digits.take(1).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xmp_forms() {
        assert_eq!(from_xmp(b"<a tiff:Orientation=\"6\"/>"), Some(6));
        assert_eq!(from_xmp(b"<tiff:Orientation>3</tiff:Orientation>"), Some(3));
        assert_eq!(from_xmp(b"tiff:Orientation='6' tiff:Orientation=\"x\" tiff:Orientation=\"8\""), Some(8));
        assert_eq!(from_xmp(b"tiff:Orientation"), None);
    }

    #[test]
    fn hostile_exif_is_nothing() {
        let whole = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0";
        assert_eq!(from_tiff(whole), Some(6));
        for end in 0..whole.len() {
            assert_eq!(from_tiff(&whole[..end]), None, "{end} bytes");
        }
        assert_eq!(from_tiff(b"II*\0\xff\xff\xff\xff"), None);
        assert_eq!(from_tiff(b"MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x05\xff\xff\xff\xff\xff\xff\xff\xff"), None);
    }
}
