//! Configurations read field by field: what nobody read is told, so that no option is passed over in silence.

use std::cell::RefCell;
use std::collections::BTreeSet;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Fields that change nothing of what is computed here, at any depth. Those that begin with `_` are as these.
const INERT: &[&str] = &[
    "add_cross_attention",
    "architectures",
    "attn_implementation",
    "attention_dropout",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "boi_token_id",
    "boi_token_index",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eoi_token_id",
    "eoi_token_index",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "freeze_text_layers",
    "freeze_vision_layers",
    "gradient_checkpointing",
    "id2label",
    "image_seq_length",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "mm_tokens_per_second",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "projection_dim",
    "pruned_heads",
    "quantization_config",
    "quantization",
    "compression_config",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "tokens_per_second",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attn",
    "use_resampler",
    "vision_end_token_id",
    "vision_start_token_id",
    "vision_token_id",
];

/// A JSON configuration with the fields that were read.
pub struct Config {
    file: String,
    root: Value,
    read: RefCell<BTreeSet<String>>,
}

impl Config {
    /// Reads a file of a model.
    pub fn load(files: &ModelFiles, name: &str) -> Result<Self> {
        Ok(Self::new(files.describe(name), files.require_json(name)?))
    }

    /// A configuration that is here; `file` names it in errors.
    #[must_use]
    pub fn new(file: String, root: Value) -> Self {
        Self { file, root, read: RefCell::default() }
    }

    /// Its outermost fields.
    #[must_use]
    pub fn root(&self) -> Fields<'_> {
        Fields { config: self, path: String::new(), object: self.root.as_object() }
    }

    /// Fields that nobody read, that are not known to change nothing and are not empty.
    #[must_use]
    pub fn unread(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.collect("", self.root.as_object(), &mut found);
        found
    }

    fn collect(&self, prefix: &str, object: Option<&Map<String, Value>>, found: &mut Vec<String>) {
        for (key, value) in object.into_iter().flatten() {
            let path = join(prefix, key);
            if self.read.borrow().contains(&path) {
                if let Value::Object(inner) = value
                    && self
                        .read
                        .borrow()
                        .range(format!("{path}.")..)
                        .next()
                        .is_some_and(|read| read.starts_with(&format!("{path}.")))
                {
                    self.collect(&path, Some(inner), found);
                }
            } else if !key.starts_with('_') && !INERT.contains(&&**key) && !is_empty(value) {
                found.push(path);
            }
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(true) => false,
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

/// The fields of an object of a [`Config`]. A field that is null is as one that is absent.
#[derive(Clone)]
pub struct Fields<'a> {
    config: &'a Config,
    path: String,
    object: Option<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    /// The file.
    #[must_use]
    pub fn file(&self) -> &'a str {
        &self.config.file
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.config.read.borrow_mut().insert(join(&self.path, key));
        self.object?.get(key).filter(|value| !value.is_null())
    }

    /// An error about a field.
    #[must_use]
    pub fn bad(&self, key: &str, what: impl std::fmt::Display) -> Error {
        Error::Config { path: self.config.file.clone(), reason: format!("{}: {what}", join(&self.path, key)) }
    }

    /// Whether a field is there and not null.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.object.is_some_and(|object| object.get(key).is_some_and(|value| !value.is_null()))
    }

    /// Whether a field is there, null or not.
    #[must_use]
    pub fn states(&self, key: &str) -> bool {
        self.object.is_some_and(|object| object.contains_key(key))
    }

    /// The object in a field; one without fields if it is absent.
    #[must_use]
    pub fn at(&self, key: &str) -> Self {
        let object = self.value(key).and_then(Value::as_object);
        Self { config: self.config, path: join(&self.path, key), object }
    }

    /// The object in a field that must be there: the configuration of a part.
    pub fn part(&self, key: &str) -> Result<Self> {
        match self.value(key) {
            Some(Value::Object(_)) => Ok(self.at(key)),
            Some(found) => Err(self.bad(key, format!("expected an object, found {found}"))),
            None => Err(self.bad(key, "expected an object, found none")),
        }
    }

    /// The object in a field, or these fields themselves where older files have them flat.
    #[must_use]
    pub fn at_or_here(&self, key: &str) -> Self {
        if self.has(key) { self.at(key) } else { self.clone() }
    }

    /// Names of the fields.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.object.into_iter().flat_map(|object| object.keys().map(String::as_str))
    }

    /// A field, if it is there.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        T::deserialize(value).map(Some).map_err(|error| self.bad(key, format!("{error}, found {value}")))
    }

    /// The first of several spellings of a field that is there.
    pub fn any<T: DeserializeOwned>(&self, keys: &[&str]) -> Result<Option<T>> {
        let mut found = None;
        for key in keys {
            let value = self.get(key)?;
            found = found.or(value);
        }
        Ok(found)
    }

    /// A field, or what the reference class takes without it.
    pub fn or<T: DeserializeOwned>(&self, key: &str, default: T) -> Result<T> {
        Ok(self.get(key)?.unwrap_or(default))
    }

    /// A size that is not 0, or what the reference class takes without it.
    pub fn size(&self, key: &str, default: usize) -> Result<usize> {
        match self.or(key, default)? {
            size @ 1..=0x4000_0000 => Ok(size),
            size => Err(self.bad(key, format!("expected a size from 1 to 2^30, found {size}"))),
        }
    }

    /// A field that must be there.
    pub fn need<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        self.get(key)?.ok_or_else(|| self.bad(key, "expected a value, found none"))
    }

    /// Errors unless a field has this value, or is absent: anything else changes what is computed and is not built.
    pub fn only<T: Into<Value>>(&self, key: &str, value: T) -> Result<()> {
        let value = value.into();
        match self.value(key) {
            Some(found) if !same(found, &value) => {
                Err(self.bad(key, format!("expected {value}, found {found}")))
            }
            _ => Ok(()),
        }
    }

    /// Errors unless a field is empty (false, 0, ...) or absent.
    pub fn unset(&self, key: &str) -> Result<()> {
        match self.value(key) {
            Some(found) if !is_empty(found) => {
                Err(self.bad(key, format!("not supported: expected none, found {found}")))
            }
            _ => Ok(()),
        }
    }

    /// Takes fields for read that change nothing where others have the values they have.
    pub fn inert(&self, keys: &[&str]) {
        for key in keys {
            self.value(key);
        }
    }

    /// `model_type` here. Errors unless it is one of `known`; absent, it is the first.
    pub fn model_type(&self, known: &[&'static str]) -> Result<&'static str> {
        let found: Option<String> = self.get("model_type")?;
        let Some(found) = found else { return Ok(known.first().copied().unwrap_or_default()) };
        known.iter().find(|known| **known == found).copied().ok_or_else(|| {
            self.bad("model_type", format!("expected one of {}, found `{found}`", known.join(", ")))
        })
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unread_fields_are_told() {
        let config = Config::new(
            "config.json".into(),
            json!({"a": 1, "b": {"c": 2, "d": 3, "e": null}, "f": {"g": 1}, "_h": 1, "dtype": "x", "i": false, "j": 0.5}),
        );
        let root = config.root();
        assert_eq!(root.need::<u32>("a").unwrap(), 1);
        assert_eq!(root.at("b").size("c", 7).unwrap(), 2);
        assert_eq!(root.at("absent").or("k", 9).unwrap(), 9);
        assert_eq!(config.unread(), ["b.d", "f", "j"]);
        assert!(
            root.at("b")
                .need::<u32>("e")
                .unwrap_err()
                .to_string()
                .contains("config.json: b.e: expected a value")
        );
        assert!(root.only("j", 0.25).unwrap_err().to_string().contains("j: expected 0.25, found 0.5"));
        let absent = |key| root.part(key).map(drop).unwrap_err().to_string();
        assert_eq!(absent("k"), "config.json: k: expected an object, found none");
        assert_eq!(absent("a"), "config.json: a: expected an object, found 1");
        assert!(root.unset("j").is_err() && root.unset("i").is_ok() && root.only("a", 1.0).is_ok());
        assert!(root.at("b").size("d", 1).is_ok() && root.get::<String>("a").is_err());
    }
}
