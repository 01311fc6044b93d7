//! What is said about pictures that cannot be read, and that missing memory is said too.

use ocelli_engine::image::{DecodeOptions, ImageError, decode_bytes, decode_file};

use crate::decode::{refusal, resized};
use crate::fuzz::{at_most, crc32};

#[test]
fn other_formats_are_named() {
    let box_of = |brands: &[u8]| [b"\0\0\0\x20ftyp", brands].concat();
    let cases: [(&str, Vec<u8>); 14] = [
        ("a HEIC picture", box_of(b"heic\0\0\0\0mif1heic")),
        ("a HEIC picture", box_of(b"mif1\0\0\0\0mif1heic")),
        ("an AVIF picture", box_of(b"avif\0\0\0\0mif1miaf")),
        ("an AVIF picture", box_of(b"mif1\0\0\0\0mif1avif")),
        ("a HEIF picture", box_of(b"mif1\0\0\0\0mif1miaf")),
        ("a video (MP4 or QuickTime)", box_of(b"isom\0\0\0\0mp42")),
        ("a TIFF picture", b"II*\0\x08\0\0\0".to_vec()),
        ("a TIFF picture", b"MM\0*\0\0\0\x08".to_vec()),
        ("a JPEG XL picture", b"\xff\x0a\x10\x20".to_vec()),
        ("a JPEG XL picture", b"\0\0\0\x0cJXL \r\n\x87\n".to_vec()),
        ("an SVG drawing", b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec()),
        ("an SVG drawing", b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<svg width='1'/>".to_vec()),
        ("a PDF document", b"%PDF-1.7".to_vec()),
        ("a web page (HTML)", b"<!DOCTYPE html><html>".to_vec()),
    ];
    for (format, bytes) in cases {
        let (error, text) = refusal("other.jpg", &bytes, &DecodeOptions::default());
        assert_eq!(text, format!("not a PNG, JPEG, WebP, GIF or BMP picture: the file is {format}"));
        assert_eq!(error.hint(), Some("convert it to JPEG or PNG"));
    }
}

#[test]
fn unsupported_jpegs_are_not_called_damaged() {
    let jpeg = |name: &str| std::fs::read(crate::golden("pictures").join(name)).unwrap();
    let mark = |code: u8| {
        let mut bytes = jpeg("444.jpg");
        let at = bytes.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        bytes[at + 1] = code;
        (bytes, at)
    };
    let mut deep = mark(0xc1);
    deep.0[deep.1 + 4] = 12;
    let mut sampled = mark(0xc0);
    sampled.0[sampled.1 + 11] = 0x32;
    sampled.0[sampled.1 + 14] = 0x22;
    for (kind, bytes) in [
        ("lossless coding", mark(0xc3).0),
        ("hierarchical coding", mark(0xc5).0),
        ("arithmetic coding", mark(0xc9).0),
        ("arithmetic coding", mark(0xca).0),
        ("samples of 12 bits", deep.0),
        ("fractional sampling", sampled.0),
    ] {
        let (error, text) = refusal("kind.jpg", &bytes, &DecodeOptions::default());
        assert_eq!(text, format!("JPEG pictures of this kind are not supported: {kind}"));
        assert_eq!(error.hint(), Some("convert it to JPEG or PNG"));
    }
}

#[test]
fn png_errors_are_in_words() {
    let bytes = std::fs::read(crate::golden("pictures/palette8.png")).unwrap();
    let at = |name: &[u8; 4]| bytes.windows(4).position(|w| w == name).unwrap();
    let changed = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] ^= value;
        bytes
    };
    let mut header = changed(24, 0);
    header[24] = 3;
    let crc = crc32(&header[12..29]);
    header[29..33].copy_from_slice(&crc.to_be_bytes());
    for (words, bytes) in [
        ("the header chunk (IHDR) is damaged: its checksum is wrong", changed(30, 1)),
        ("chunk PLTE is damaged: its checksum is wrong", changed(at(b"PLTE") + 5, 1)),
        ("the first chunk is gAMA, expected IHDR", [&bytes[..8], b"\0\0\0\0gAMA\0\0\0\0"].concat()),
        ("the pixels are damaged: their checksum is wrong", changed(at(b"IDAT") + 20, 1)),
        ("there are no pixels (no IDAT chunk)", [&bytes[..33], &bytes[bytes.len() - 12..]].concat()),
        ("the file ends before the end of chunk PLTE: it is truncated", bytes[..at(b"PLTE") + 40].to_vec()),
        (
            "the data end before the last row: the file is truncated",
            [&bytes[..at(b"IDAT") + 30], b"\0\0\0\0"].concat(),
        ),
        ("", header),
    ] {
        let (_, text) = refusal("words.png", &bytes, &DecodeOptions::default());
        assert!(text.starts_with(&format!("cannot decode this PNG picture: {words}")), "{text}");
        assert!(!text.contains('{') && !text.contains("::"), "{text}");
    }
}

#[test]
fn names_that_are_no_files() {
    for (name, what) in [
        ("https://example.com/a.jpg", "an address; nothing is downloaded"),
        ("HTTP://example.com/a.jpg", "an address; nothing is downloaded"),
        ("file:///tmp/a.jpg", "an address; give the path behind file://"),
        ("data:image/png;base64,AAAA", "data in text form"),
        ("-", "no file; standard input is not read for pictures"),
    ] {
        let error = decode_file(name.as_ref(), &DecodeOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), format!("{name}: a picture is read from a file, this is {what}"));
        assert!(error.hint().is_some());
    }
    let error = decode_file("no/such.jpg".as_ref(), &DecodeOptions::default()).unwrap_err();
    assert!(matches!(error, ImageError::Io { .. }), "{error}");
}

/// `name` of `golden/pictures` with another size in all its headers.
fn grown(name: &str, width: u16, height: u16) -> Vec<u8> {
    let sides = |w: u16, h: u16| [w.to_le_bytes(), h.to_le_bytes()].concat();
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|w| w == what).unwrap();
    let mut bytes = match name {
        "420_progressive.jpg" => {
            let mut bytes = std::fs::read(crate::golden("pictures").join(name)).unwrap();
            let at = find(&bytes, &[0xff, 0xc2]);
            bytes[at + 5..at + 9].copy_from_slice(&[height, width].map(u16::to_be_bytes).concat());
            bytes
        }
        "lossy.webp" | "lossless.webp" => std::fs::read(crate::golden("pictures").join(name)).unwrap(),
        _ => resized(name, width.into(), height.into()),
    };
    if name.ends_with(".gif") {
        // The frame as well, behind its separator and corner.
        let at = find(&bytes, &[0x2c, 0, 0, 0, 0]);
        bytes[at + 5..at + 9].copy_from_slice(&sides(width, height));
    }
    if name.starts_with("lossy") {
        let at = find(&bytes, &[0x9d, 0x01, 0x2a]);
        bytes[at + 3..at + 7].copy_from_slice(&sides(width, height));
    }
    if name.starts_with("lossless") {
        let bits = u32::from(width - 1) | u32::from(height - 1) << 14;
        let at = find(&bytes, b"VP8L") + 9;
        bytes[at..at + 4].copy_from_slice(&bits.to_le_bytes());
    }
    bytes
}

#[test]
fn no_memory_is_an_error() {
    for name in [
        "rgb.png",
        "444.jpg",
        "420_progressive.jpg",
        "palette.gif",
        "lossy.webp",
        "lossless.webp",
        "lossy_alpha.webp",
        "rgb.bmp",
    ] {
        let bytes = grown(name, 3000, 2000);
        for most in [256 << 10, 4 << 20] {
            let error = at_most(most, || decode_bytes("x", &bytes, &DecodeOptions::default())).unwrap_err();
            assert!(matches!(error, ImageError::OutOfMemory { .. }), "{name} with {most} bytes: {error}");
        }
    }
    // Pictures that fit are not refused.
    for name in ["rgb.png", "444.jpg", "palette.gif", "lossless.webp", "lossy_alpha.webp", "rgb.bmp"] {
        let bytes = std::fs::read(crate::golden("pictures").join(name)).unwrap();
        assert!(at_most(4 << 20, || decode_bytes("x", &bytes, &DecodeOptions::default())).is_ok(), "{name}");
    }
}
