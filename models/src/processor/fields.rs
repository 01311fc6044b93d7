//! Fields of an image processor: those of the files, those set by hand, those of the reference class.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Filter, Normalize};
use ocelli_engine::{Error, Result};
use serde_json::{Map, Value};

/// Largest value of a size field that is accepted; it keeps every product of sizes far from overflow.
const MAX_FIELD: u64 = 1 << 14;

/// Fields that every processor knows.
const COMMON: &[&str] = &[
    "do_normalize",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "resample",
    "rescale_factor",
    "size",
];

/// `size`: what a resize aims at, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// The longest side; the aspect is kept.
    Longest(usize),
    /// The shortest side; the aspect is kept.
    Shortest(usize),
    /// Both sides.
    Exact {
        /// Rows.
        height: usize,
        /// Pixels per row.
        width: usize,
    },
}

/// The fields of one checkpoint's image processor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageFields {
    /// The file that they are from.
    file: String,
    values: Map<String, Value>,
    /// Fields that the family knows beside the common ones.
    known: &'static [&'static str],
}

impl ImageFields {
    /// Reads the processor of a model. Checkpoints of transformers 5 nest it in `processor_config.json`, which wins over
    /// `preprocessor_config.json`, where version 4 keeps it. Of the outer `processor_config.json` the fields in `known` count too.
    ///
    /// # Errors
    /// If neither file is there.
    pub fn load(files: &ModelFiles, known: &'static [&'static str]) -> Result<Self> {
        let processor: Option<Value> = files.json("processor_config.json")?;
        let flat: Option<Value> = files.json("preprocessor_config.json")?;
        let nested = processor.as_ref().and_then(|p| p.get("image_processor")).is_some();
        let name =
            if nested || flat.is_none() { "processor_config.json" } else { "preprocessor_config.json" };
        if !nested && flat.is_none() {
            return Err(Error::Config {
                path: files.describe(""),
                reason: "no image processor: expected processor_config.json with an `image_processor`, or \
                         preprocessor_config.json, found neither"
                    .into(),
            });
        }
        Ok(Self::of_json(files.describe(name), processor.as_ref(), flat.as_ref(), known))
    }

    /// Reads the video processor of a model: nested in `processor_config.json`, in `video_preprocessor_config.json`, or the fields of
    /// `preprocessor_config.json`, which files from before it was apart mean too. Without any each field is the reference class's.
    pub fn load_video(files: &ModelFiles, known: &'static [&'static str]) -> Result<Self> {
        let mut outer: Option<Value> = files.json("processor_config.json")?;
        let nested = outer.as_mut().and_then(|outer| outer.get_mut("video_processor")).map(Value::take);
        let found = match nested.filter(Value::is_object) {
            Some(nested) => Some(("processor_config.json", nested)),
            None => {
                let mut found = None;
                for name in ["video_preprocessor_config.json", "preprocessor_config.json"] {
                    if let (None, Some(value)) = (&found, files.json::<Value>(name)?) {
                        found = Some((name, value));
                    }
                }
                found
            }
        };
        let (name, value) = found.unwrap_or(("", Value::Null));
        Ok(Self::of_json(files.describe(name), None, Some(&value), known))
    }

    /// As [`load`](Self::load), from the parsed files; absent ones leave every field to the reference class.
    #[must_use]
    pub fn of_json(
        file: String,
        processor: Option<&Value>,
        preprocessor: Option<&Value>,
        known: &'static [&'static str],
    ) -> Self {
        let nested = processor.and_then(|p| p.get("image_processor"));
        let mut values = nested.or(preprocessor).and_then(Value::as_object).cloned().unwrap_or_default();
        for outer in [preprocessor, processor].into_iter().flatten() {
            for key in known {
                if let Some(value) = outer.get(key).filter(|value| !value.is_null()) {
                    values.insert((*key).to_owned(), value.clone());
                }
            }
        }
        Self { file, values, known }
    }

    /// Names of all fields that can be set.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        COMMON.iter().chain(self.known).copied()
    }

    /// Sets one field as `--processor KEY=VALUE` asks: `value` is JSON (`true`, `512`, `[0.5, 0.5, 0.5]`,
    /// `{"longest_edge": 512}`; Python's `True` and `False` also do), and `size.longest_edge=512` names a part of a field. Whether
    /// the value is of the right kind is told when the fields are read again.
    ///
    /// # Errors
    /// If there is no such field.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let value = match value.trim() {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            text => serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())),
        };
        let outer = key.split_once('.').map_or(key, |(outer, _)| outer);
        if !self.keys().any(|known| known == outer) {
            let mut known: Vec<&str> = self.keys().collect();
            known.sort_unstable();
            let known = known.join(", ");
            return Err(Error::Request(format!(
                "--processor: image processor: unknown key {key:?}; known keys: {known}"
            )));
        }
        self.file = String::from("--processor");
        self.put(key, value);
        Ok(())
    }

    fn put(&mut self, key: &str, value: Value) {
        let (outer, inner) = key.split_once('.').map_or((key, None), |(outer, inner)| (outer, Some(inner)));
        match inner {
            None => drop(self.values.insert(outer.to_owned(), value)),
            Some(inner) => {
                let field = self.values.entry(outer.to_owned()).or_insert_with(|| Value::Object(Map::new()));
                if !field.is_object() {
                    *field = Value::Object(Map::new());
                }
                if let Value::Object(fields) = field {
                    // A size is one of these or the other.
                    let pair = ["height", "width"];
                    if pair.contains(&inner) {
                        let other = fields.get(if inner == "height" { "width" } else { "height" }).cloned();
                        let other = other.unwrap_or_else(|| value.clone());
                        fields.clear();
                        fields.insert((if inner == "height" { "width" } else { "height" }).to_owned(), other);
                    } else {
                        fields.retain(|key, _| !pair.contains(&&**key));
                    }
                    fields.insert(inner.to_owned(), value);
                }
            }
        }
    }

    /// The same with a value for a field that the files leave out.
    #[must_use]
    pub fn or(mut self, key: &str, usual: Value) -> Self {
        if self.value(key).is_none() {
            self.values.insert(key.to_owned(), usual);
        }
        self
    }

    /// Leaves a field to the reference class, whatever the files say.
    pub fn forget(&mut self, key: &str) {
        self.values.remove(key);
    }

    /// Moves a field that is there and not null to another name, or a part of one, in place of what was there.
    pub fn rename(&mut self, from: &str, to: &str) {
        if let Some(value) = self.values.remove(from).filter(|value| !value.is_null()) {
            self.put(to, value);
        }
    }

    /// An error about a field.
    #[must_use]
    pub fn bad(&self, key: &str, expected: &str, found: &Value) -> Error {
        let file = if self.file.is_empty() { String::new() } else { format!("{}: ", self.file) };
        Error::Request(format!("{file}image processor: {key}: expected {expected}, found {found}"))
    }

    /// A field or a part of it, if it is there and not null.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        let (outer, inner) = key.split_once('.').map_or((key, None), |(outer, inner)| (outer, Some(inner)));
        let value = self.values.get(outer)?;
        inner.map_or(Some(value), |inner| value.get(inner)).filter(|value| !value.is_null())
    }

    /// A field of true or false.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.bad(key, "true or false", value)),
        }
    }

    /// A whole number from 1 to 16384.
    pub fn pixels(&self, key: &str) -> Result<Option<usize>> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(n @ 1..=MAX_FIELD) => Ok(Some(n as usize)),
                _ => Err(self.bad(key, "a whole number from 1 to 16384", value)),
            },
        }
    }

    /// A whole number from 1 to 2^40: a number of pixels of a picture.
    pub fn area(&self, key: &str) -> Result<Option<usize>> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(n @ 1..=0x100_0000_0000) => Ok(Some(n as usize)),
                _ => Err(self.bad(key, "a whole number from 1 to 2^40", value)),
            },
        }
    }

    /// A number.
    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.value(key) {
            None => Ok(default),
            Some(value) => {
                let number = value.as_f64().filter(|number| number.is_finite());
                number.ok_or_else(|| self.bad(key, "a number", value))
            }
        }
    }

    /// `size`, or another field of its kinds.
    pub fn edge(&self, key: &str, default: Edge) -> Result<Edge> {
        let Some(value) = self.value(key) else { return Ok(default) };
        let part = |part: &str| self.pixels(&format!("{key}.{part}"));
        if let Some(edge) = part("longest_edge")? {
            return Ok(Edge::Longest(edge));
        }
        if let Some(edge) = part("shortest_edge")? {
            return Ok(Edge::Shortest(edge));
        }
        if let (Some(height), Some(width)) = (part("height")?, part("width")?) {
            return Ok(Edge::Exact { height, width });
        }
        if value.is_u64() {
            let side = self.pixels(key)?.unwrap_or(1);
            return Ok(match default {
                Edge::Shortest(_) => Edge::Shortest(side),
                _ => Edge::Exact { height: side, width: side },
            });
        }
        Err(self.bad(
            key,
            "{\"longest_edge\": N}, {\"shortest_edge\": N}, {\"height\": N, \"width\": N} or N",
            value,
        ))
    }

    /// Filter of resizes.
    pub fn resample(&self, default: Filter) -> Result<Filter> {
        let Some(value) = self.value("resample") else { return Ok(default) };
        let filter = value.as_u64().and_then(Filter::from_pil);
        filter.ok_or_else(|| self.bad("resample", "1 (Lanczos), 2 (bilinear) or 3 (bicubic)", value))
    }

    fn channels(&self, key: &str, default: [f32; 3]) -> Result<[f32; 3]> {
        let Some(value) = self.value(key) else { return Ok(default) };
        let number = |v: &Value| v.as_f64().map(|v| v as f32).filter(|v| v.is_finite());
        let read = || match value {
            Value::Array(list) => match list[..] {
                [ref r, ref g, ref b] => Some([number(r)?, number(g)?, number(b)?]),
                _ => None,
            },
            _ => Some([number(value)?; 3]),
        };
        read().ok_or_else(|| self.bad(key, "a number or a list of three", value))
    }

    /// Mean of each channel.
    pub fn mean(&self, default: [f32; 3]) -> Result<[f32; 3]> {
        self.channels("image_mean", default)
    }

    /// Rescaling and normalization as one step on grey levels, folded as the reference folds them (in f32).
    pub fn normalize(&self, mean: [f32; 3], std: [f32; 3]) -> Result<Normalize> {
        let (mean, std) = (self.channels("image_mean", mean)?, self.channels("image_std", std)?);
        // The largest level divided by it must be a number.
        if !std.iter().all(|std| std.abs() > 1e-30) {
            let found = self.value("image_std").cloned().unwrap_or_default();
            return Err(self.bad("image_std", "numbers other than zero", &found));
        }
        let factor = self.number("rescale_factor", 1.0 / 255.0)?;
        let (rescale, normalize) = (self.flag("do_rescale", true)?, self.flag("do_normalize", true)?);
        if !factor.is_normal() {
            let found = self.value("rescale_factor").cloned().unwrap_or_default();
            return Err(self.bad("rescale_factor", "a number other than zero", &found));
        }
        let per_level = (1.0 / factor) as f32;
        Ok(match (rescale, normalize) {
            (true, true) => Normalize { mean: mean.map(|v| v * per_level), std: std.map(|v| v * per_level) },
            (false, true) => Normalize { mean, std },
            (true, false) => Normalize { mean: [0.0; 3], std: [per_level; 3] },
            (false, false) => Normalize::IDENTITY,
        })
    }
}
