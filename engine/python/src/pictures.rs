//! Pictures as Python hands them in.

use std::path::PathBuf;

use ocelli_engine::image::{DecodeOptions, ImageError, PictureSource, Rgb8Image};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple};

use crate::error::value;

/// A picture that is to be read: a file, the bytes of one, or pixels.
#[derive(Clone)]
pub enum Given {
    /// A file, or bytes of one.
    Source(PictureSource),
    /// Pixels.
    Pixels(Rgb8Image),
}

impl Given {
    /// Reads a `str` (a path or `data:` address), `bytes` (of a file), or `(width, height, bytes)` of RGB pixels.
    pub fn of(object: &Bound<'_, PyAny>, number: usize) -> PyResult<Self> {
        if let Ok(text) = object.cast::<PyString>() {
            return Self::at(&text.to_cow()?);
        }
        if let Ok(bytes) = object.cast::<PyBytes>() {
            let name = format!("picture {number}");
            return Ok(Self::Source(PictureSource::Bytes(name, bytes.as_bytes().into())));
        }
        let pixels = object.cast::<PyTuple>().ok().and_then(|tuple| {
            let (width, height, data): (usize, usize, Vec<u8>) = (
                tuple.get_item(0).ok()?.extract().ok()?,
                tuple.get_item(1).ok()?.extract().ok()?,
                tuple.get_item(2).ok()?.cast::<PyBytes>().ok()?.as_bytes().to_vec(),
            );
            Rgb8Image::from_raw(width, height, data)
        });
        pixels
            .map(Self::Pixels)
            .ok_or_else(|| value(format!("images[{number}]: expected a picture of RGB pixels")))
    }

    /// The picture at a path or `data:` address.
    pub fn at(address: &str) -> PyResult<Self> {
        match PictureSource::at(address, &PathBuf::new()) {
            Ok(source) => Ok(Self::Source(source)),
            Err(error) => Err(crate::error::raised(&error.into())),
        }
    }

    /// Decodes it.
    pub fn decode(&self, options: &DecodeOptions) -> Result<Rgb8Image, ImageError> {
        match self {
            Self::Source(source) => source.decode(options),
            Self::Pixels(image) => Ok(image.clone()),
        }
    }
}

/// All of a list.
pub fn all(objects: &[Bound<'_, PyAny>]) -> PyResult<Vec<Given>> {
    objects.iter().enumerate().map(|(number, object)| Given::of(object, number)).collect()
}
