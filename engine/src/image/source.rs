//! Where a picture comes from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::{DecodeOptions, ImageError, Rgb8Image, decode_bytes, decode_file};

/// Base64 with or without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Where a picture comes from. Cloning is cheap.
#[derive(Clone, Debug)]
pub enum PictureSource {
    /// A file.
    File(PathBuf),
    /// Bytes of a file, and what errors call it.
    Bytes(String, Arc<[u8]>),
}

impl PictureSource {
    /// The picture at an address: a path, relative to `folder`, `file://PATH`, or `data:image/png;base64,...`.
    ///
    /// # Errors
    /// If a `data:` address has other than base64 in it.
    pub fn at(address: &str, folder: &Path) -> Result<Self, ImageError> {
        let Some(data) = address.strip_prefix("data:") else {
            return Ok(Self::File(folder.join(address.strip_prefix("file://").unwrap_or(address))));
        };
        let name: String = address.chars().take(40).collect::<String>() + "...";
        let bytes = data.split_once(";base64,").and_then(|(_, text)| {
            let text: String = text.split_whitespace().collect();
            BASE64.decode(text).ok()
        });
        match bytes {
            Some(bytes) => Ok(Self::Bytes(name, bytes.into())),
            None => Err(ImageError::NotAFile { name, what: "an address of data that are not base64" }),
        }
    }

    /// Reads the picture.
    ///
    /// # Errors
    /// As [`decode_file`].
    pub fn decode(&self, options: &DecodeOptions) -> Result<Rgb8Image, ImageError> {
        match self {
            Self::File(path) => decode_file(path, options),
            Self::Bytes(name, bytes) => decode_bytes(name, bytes, options),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let at = |address: &str| PictureSource::at(address, Path::new("/chats"));
        for (address, path) in
            [("a.png", "/chats/a.png"), ("/b/c.png", "/b/c.png"), ("file:///b.png", "/b.png")]
        {
            assert!(
                matches!(at(address), Ok(PictureSource::File(found)) if found == Path::new(path)),
                "{address}"
            );
        }
        for address in
            ["data:image/png;base64,AQID", "data:;base64,AQI\nD", "data:image/png;charset=x;base64,AQID"]
        {
            assert!(
                matches!(at(address), Ok(PictureSource::Bytes(_, bytes)) if *bytes == [1, 2, 3]),
                "{address}"
            );
        }
        assert!(matches!(at("data:x;base64,AQ"), Ok(PictureSource::Bytes(_, bytes)) if *bytes == [1]));
        for address in ["data:image/png,abc", "data:image/png;base64,A?"] {
            let error = at(address).unwrap_err().to_string();
            assert!(error.contains("not base64") && error.contains(&address[..15]), "{error}");
        }
    }
}
