//! The header of a safetensors file, checked before any of it is believed.
//!
//! Layout: u64 little-endian length `n`, `n` bytes of JSON, then the data that the offsets in the JSON address. The
//! JSON is read here, since a map type would drop duplicate names silently and report no tensor with its errors.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use safetensors::Dtype;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use smallvec::SmallVec;

use super::WeightError;

/// Longest header that is read, the format's own limit.
pub const MAX_HEADER: u64 = 100_000_000;

/// Most axes of a stored tensor.
pub const MAX_AXES: usize = 16;

const KNOWN: &str = "BOOL, F4, F6_E2M3, F6_E3M2, U8, I8, F8_E5M2, F8_E4M3, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ, I16, \
                     U16, F16, BF16, I32, U32, F32, C64, F64, I64 or U64";

/// One tensor of a header.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: Box<str>,
    pub dtype: Dtype,
    pub shape: SmallVec<[usize; 4]>,
    /// First byte, counted from the start of the file.
    pub start: usize,
    /// Bytes of the tensor.
    pub len: usize,
}

/// Entries by offset. `path` is for error texts alone.
pub(super) fn parse(path: &str, file: &[u8]) -> Result<Vec<Entry>, WeightError> {
    let invalid = |reason: String| WeightError::invalid(path, reason);
    if file.is_empty() {
        return Err(invalid("empty file; expected safetensors".into()));
    }
    if let Some(kind) = other_kind(file) {
        return Err(invalid(format!("expected safetensors, found {kind}")));
    }
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(invalid(format!("truncated: expected a header length of 8 bytes, found {}", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(invalid(format!(
            "header length: expected at most {MAX_HEADER} bytes, found {length}; not safetensors, or damaged"
        )));
    }
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        return Err(invalid(format!("truncated: expected a header of {length} bytes, found {}", rest.len())));
    };
    let text = std::str::from_utf8(header).map_err(|e| invalid(format!("header: invalid UTF-8: {e}")))?;
    let Header(raw) = serde_json::from_str(text).map_err(|e| invalid(format!("header: {e}")))?;
    place(path, raw, file.len() - data.len(), data.len())
}

/// What a file that is not safetensors probably is.
fn other_kind(file: &[u8]) -> Option<&'static str> {
    [
        (&b"version https://git-lfs"[..], "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
        (b"GGUF", "a GGUF file"),
        (b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint"),
        (b"\x80\x02", "a pickle, perhaps a PyTorch checkpoint"),
        (b"<!DOCTYPE", "an HTML page"),
        (b"<html", "an HTML page"),
    ]
    .into_iter()
    .find_map(|(magic, kind)| file.starts_with(magic).then_some(kind))
}

/// Checks sizes and offsets: each tensor has the bytes of its shape, and together they cover the data once.
fn place(path: &str, raw: Vec<Raw>, base: usize, data: usize) -> Result<Vec<Entry>, WeightError> {
    let mut entries = Vec::with_capacity(raw.len());
    for Raw { name, dtype, shape, begin, end } in raw {
        let fail = |reason: String| Err(WeightError::tensor(path, &name, reason));
        if end < begin {
            return fail(format!("data_offsets: expected begin <= end, found [{begin}, {end}]"));
        }
        let bytes = shape
            .iter()
            .try_fold(1u64, |count, &size| count.checked_mul(size))
            .and_then(|count| count.checked_mul(dtype.bitsize() as u64));
        let Some(bits) = bytes else {
            return fail(format!("shape {shape:?}: more {dtype} elements than can be addressed"));
        };
        if !bits.is_multiple_of(8) {
            return fail(format!("shape {shape:?} of {dtype}: expected whole bytes, found {bits} bits"));
        }
        if bits / 8 != end - begin {
            return fail(format!(
                "shape {shape:?} of {dtype}: expected {} bytes, found {}",
                bits / 8,
                end - begin
            ));
        }
        if end > data as u64 {
            return fail(format!(
                "data_offsets [{begin}, {end}]: expected to end within {data} bytes of data; the file is truncated"
            ));
        }
        entries.push(Entry {
            dtype,
            shape: shape.iter().map(|&size| size as usize).collect(),
            start: base + begin as usize,
            len: (end - begin) as usize,
            name: name.into_boxed_str(),
        });
    }
    entries.sort_by_key(|entry| (entry.start, entry.len));
    let (mut covered, mut last) = (base, "the header");
    for entry in &entries {
        if entry.start != covered {
            let begin = entry.start - base;
            let reason = if entry.start < covered {
                format!(
                    "data_offsets: overlaps `{last}`, which ends at {}; found begin {begin}",
                    covered - base
                )
            } else {
                format!("data_offsets: expected begin {}, after `{last}`; found {begin}", covered - base)
            };
            return Err(WeightError::tensor(path, &entry.name, reason));
        }
        covered += entry.len;
        last = &entry.name;
    }
    if covered - base != data {
        return Err(WeightError::invalid(
            path,
            format!("expected {} bytes of data, found {data}: the rest belongs to no tensor", covered - base),
        ));
    }
    Ok(entries)
}

struct Raw {
    name: String,
    dtype: Dtype,
    shape: SmallVec<[u64; 4]>,
    begin: u64,
    end: u64,
}

struct Header(Vec<Raw>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let (mut all, mut seen) = (Vec::new(), HashSet::new());
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("tensor `{name}` is listed twice")));
            }
            if name == "__metadata__" {
                map.next_value::<Strings>().map_err(|e| A::Error::custom(format!("__metadata__: {e}")))?;
                continue;
            }
            let context = |e: &dyn fmt::Display| A::Error::custom(format!("tensor `{name}`: {e}"));
            let raw: RawEntry<'de> = map.next_value().map_err(|e| context(&e))?;
            let dtype = Dtype::deserialize(StrDeserializer::<ValueError>::new(&raw.dtype))
                .map_err(|_| context(&format!("dtype: expected one of {KNOWN}, found `{}`", raw.dtype)))?;
            let (begin, end) = raw.data_offsets;
            all.push(Raw { name: name.into_owned(), dtype, shape: raw.shape.0, begin, end });
        }
        Ok(Header(all))
    }
}

#[derive(serde::Deserialize)]
struct RawEntry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// Sizes of at most [`MAX_AXES`] axes.
struct Shape(SmallVec<[u64; 4]>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a shape of at most {MAX_AXES} axes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut shape = SmallVec::new();
        while let Some(size) = seq.next_element()? {
            if shape.len() == MAX_AXES {
                return Err(A::Error::invalid_length(MAX_AXES + 1, &self));
            }
            shape.push(size);
        }
        Ok(Shape(shape))
    }
}

/// A map of strings to strings, checked and dropped.
struct Strings;

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(StringsVisitor)
    }
}

struct StringsVisitor;

impl<'de> Visitor<'de> for StringsVisitor {
    type Value = Strings;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strings, A::Error> {
        while map.next_entry::<Cow<'de, str>, Cow<'de, str>>()?.is_some() {}
        Ok(Strings)
    }
}
