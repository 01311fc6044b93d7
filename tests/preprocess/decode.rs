//! Decoding of every kind of picture against what the reference makes of it, and refusals.

use std::path::PathBuf;
use std::time::Instant;

use ocelli_engine::image::{Alpha, DecodeOptions, ImageError, decode_bytes, decode_file};
use safetensors::SafeTensors;

/// Pictures that are not decoded to the bit: name, largest difference in levels.
/// Five bits per channel are widened to eight by repeating bits, by the reference with a multiplication.
const INEXACT: [(&str, u8); 1] = [("rgb555.bmp", 1)];

#[test]
fn equal_to_the_reference() {
    let bytes = std::fs::read(crate::golden("pictures/expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort();
    assert_eq!(names.len(), 2 * 85);
    for key in names {
        let (name, alpha) = key.rsplit_once('.').unwrap();
        let alpha = if alpha == "white" { Alpha::White } else { Alpha::Drop };
        let want = file.tensor(key).unwrap();
        let options = DecodeOptions { alpha, ..Default::default() };
        let got = decode_file(&crate::golden("pictures").join(name), &options).unwrap();
        assert_eq!([got.height(), got.width(), 3], want.shape(), "{key}");
        let largest = got.data().iter().zip(want.data()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        let allowed = INEXACT.iter().find(|(inexact, _)| *inexact == name).map_or(0, |(_, levels)| *levels);
        assert!(largest <= allowed, "{key}: differs by {largest} levels");
    }
}

/// A file of its own in the temporary folder, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("ocelli-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The error of decoding `bytes` from a file called `name`: one line that starts with the path.
pub(crate) fn refusal(name: &str, bytes: &[u8], options: &DecodeOptions) -> (ImageError, String) {
    let file = Scratch::new(name, bytes);
    let error = decode_file(&file.0, options).unwrap_err();
    let text = error.to_string();
    let rest = text.strip_prefix(&format!("{}: ", file.0.display())).expect(&text).to_owned();
    assert!(!rest.contains('\n'), "{rest}");
    (error, rest)
}

#[test]
fn what_is_no_picture_is_named() {
    let options = DecodeOptions::default();
    let (error, text) = refusal("text.png", b"Hello, this is text", &options);
    assert_eq!(
        text,
        "not a PNG, JPEG, WebP, GIF or BMP picture: the file starts with the text \"Hello, this \""
    );
    assert!(error.hint().is_some());
    let (_, text) = refusal("empty.jpg", b"", &options);
    assert_eq!(text, "not a PNG, JPEG, WebP, GIF or BMP picture: the file is empty");
    let (_, text) = refusal("binary.webp", &[0, 1, 2, 255], &options);
    assert!(text.ends_with("starts with the bytes [00, 01, 02, ff]"), "{text}");
    let missing = decode_file("no/such/file.png".as_ref(), &options).unwrap_err().to_string();
    assert!(missing.starts_with("no/such/file.png: "), "{missing}");
    assert!(decode_file(&std::env::temp_dir(), &options).is_err());
}

#[test]
fn truncated_files_are_refused() {
    for name in [
        "rgb.png",
        "interlaced_rgb.png",
        "444.jpg",
        "420_progressive.jpg",
        "restart.jpg",
        "lossy.webp",
        "lossless_alpha.webp",
        "palette.gif",
        "rgb.bmp",
    ] {
        let bytes = std::fs::read(crate::golden("pictures").join(name)).unwrap();
        for part in [20, 50, 90] {
            let cut = &bytes[..bytes.len() * part / 100];
            let (error, text) = refusal(name, cut, &DecodeOptions::default());
            assert!(text.starts_with("cannot decode this "), "{name} at {part} %: {text}");
            assert!(matches!(error, ImageError::Decode { .. }));
        }
    }
}

/// The files of `golden/pictures` with another size in the header.
pub(crate) fn resized(name: &str, width: u32, height: u32) -> Vec<u8> {
    let mut bytes = std::fs::read(crate::golden("pictures").join(name)).unwrap();
    let (wide, short) = ([width, height], [width as u16, height as u16]);
    match name.rsplit_once('.').unwrap().1 {
        "png" => {
            bytes[16..24].copy_from_slice(&wide.map(u32::to_be_bytes).concat());
            let crc = crate::fuzz::crc32(&bytes[12..29]);
            bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        }
        "jpg" => {
            let frame = bytes.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
            bytes[frame + 5..frame + 9].copy_from_slice(&[short[1], short[0]].map(u16::to_be_bytes).concat());
        }
        "gif" => bytes[6..10].copy_from_slice(&short.map(u16::to_le_bytes).concat()),
        "webp" => {
            // The VP8X canvas: two 24-bit numbers, each less one.
            assert_eq!(&bytes[12..16], b"VP8X");
            for (at, side) in [(24, width), (27, height)] {
                bytes[at..at + 3].copy_from_slice(&(side - 1).to_le_bytes()[..3]);
            }
        }
        _ => bytes[18..26].copy_from_slice(&wide.map(u32::to_le_bytes).concat()),
    }
    bytes
}

#[test]
fn too_many_pixels_are_refused_by_the_header() {
    for name in ["rgb.png", "444.jpg", "palette.gif", "lossy_alpha.webp", "rgb.bmp"] {
        let bytes = resized(name, 30_000, 30_000);
        let start = Instant::now();
        let (error, text) = refusal(name, &bytes, &DecodeOptions::default());
        assert_eq!(text, "30000 x 30000 is 900000000 pixels, the limit is 100000000", "{name}");
        assert!(error.hint().is_some());
        assert!(start.elapsed().as_millis() < 500, "{name}: the header alone decides");
    }
    let limit = |max_pixels| DecodeOptions { max_pixels, ..Default::default() };
    let bytes = std::fs::read(crate::golden("pictures/rgb.png")).unwrap();
    assert!(decode_bytes("x", &bytes, &limit(40 * 30)).is_ok());
    let error = decode_bytes("x", &bytes, &limit(40 * 30 - 1)).unwrap_err();
    assert_eq!(error.to_string(), "x: 40 x 30 is 1200 pixels, the limit is 1199");
    // Under a raised limit a small file still cannot claim gigabytes.
    let error = decode_bytes("x", &resized("rgb.png", 30_000, 30_000), &limit(1 << 40)).unwrap_err();
    assert!(error.to_string().contains("cannot hold 30000 x 30000 pixels"), "{error}");
}

#[test]
fn pictures_without_pixels_are_refused() {
    for name in ["rgb.png", "444.jpg", "rgb.bmp"] {
        let (_, text) = refusal(name, &resized(name, 0, 5), &DecodeOptions::default());
        assert!(text.contains("empty (0 x 5 pixels)") || text.starts_with("cannot decode"), "{name}: {text}");
    }
}
