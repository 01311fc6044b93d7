//! Formats by the first bytes of a file.

use image::ImageFormat;

use super::error::ImageError;

/// Most bytes that tell a format from others.
pub(crate) const HEAD: usize = 512;

/// The format by the first bytes.
///
/// # Errors
///
/// [`ImageError::OtherFormat`] or [`ImageError::NotAPicture`].
pub(crate) fn sniff(name: &str, bytes: &[u8]) -> Result<ImageFormat, ImageError> {
    Ok(match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => ImageFormat::Png,
        [0xff, 0xd8, 0xff, ..] => ImageFormat::Jpeg,
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => ImageFormat::WebP,
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => ImageFormat::Gif,
        [b'B', b'M', ..] => ImageFormat::Bmp,
        _ => {
            if let Some(format) = other(bytes) {
                return Err(ImageError::OtherFormat { name: name.to_owned(), format });
            }
            let head = &bytes[..bytes.len().min(12)];
            let found = match std::str::from_utf8(head) {
                _ if head.is_empty() => "is empty".to_owned(),
                Ok(text) if !text.contains('\0') => format!("starts with the text {text:?}"),
                _ => format!("starts with the bytes {head:02x?}"),
            };
            return Err(ImageError::NotAPicture { name: name.to_owned(), found });
        }
    })
}

/// Formats that people take for pictures of the kinds above.
fn other(bytes: &[u8]) -> Option<&'static str> {
    Some(match bytes {
        [_, _, _, _, b'f', b't', b'y', b'p', rest @ ..] => media(rest),
        [b'I', b'I', b'*' | b'+', 0, ..] | [b'M', b'M', 0, b'*' | b'+', ..] => "a TIFF picture",
        [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => "a JPEG XL picture",
        [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] | [0xff, 0x4f, 0xff, 0x51, ..] => "a JPEG 2000 picture",
        [0, 0, 1 | 2, 0, _, 0, ..] => "an icon (ICO)",
        [b'%', b'P', b'D', b'F', ..] => "a PDF document",
        [b'8', b'B', b'P', b'S', ..] => "a Photoshop picture (PSD)",
        [b'q', b'o', b'i', b'f', ..] => "a QOI picture",
        [0x76, 0x2f, 0x31, 0x01, ..] => "an OpenEXR picture",
        [b'P', b'1'..=b'7', b' ' | b'\n' | b'\r' | b'\t', ..] => "a PNM picture",
        [0x1a, 0x45, 0xdf, 0xa3, ..] => "a video (Matroska or WebM)",
        _ => return markup(bytes),
    })
}

/// By the brands of an ISO media file: the major one, a version, and compatible ones.
fn media(rest: &[u8]) -> &'static str {
    let brands = rest.as_chunks::<4>().0.iter().take(16).enumerate().filter(|(i, _)| *i != 1);
    for (_, brand) in brands {
        match brand {
            b"avif" | b"avis" => return "an AVIF picture",
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" => return "a HEIC picture",
            _ => {}
        }
    }
    match rest.first_chunk::<4>() {
        Some(b"mif1" | b"msf1") => "a HEIF picture",
        _ => "a video (MP4 or QuickTime)",
    }
}

fn markup(bytes: &[u8]) -> Option<&'static str> {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let head = text[..text.len().min(HEAD)].to_ascii_lowercase();
    let has = |what: &[u8]| head.windows(what.len()).any(|w| w == what);
    if head.starts_with(b"<svg") || (head.starts_with(b"<") && has(b"<svg")) {
        return Some("an SVG drawing");
    }
    if head.starts_with(b"<!doctype html") || head.starts_with(b"<html") {
        return Some("a web page (HTML)");
    }
    None
}
