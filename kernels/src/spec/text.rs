//! The one spelling of a spec: `m=1 n=8192 k=8192 w=int4g128`.
//!
//! Fields at their default are left out; fields may come in any order.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The text form of a spec: its fields that differ from the default, in the order of declaration.
pub fn write<S: Serialize + Default>(spec: &S) -> String {
    let mut text = String::new();
    for (name, value) in fields(spec) {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&name);
        text.push('=');
        match value {
            Value::String(value) => text.push_str(&value),
            other => text.push_str(&other.to_string()),
        }
    }
    text
}

/// The fields of a spec that differ from the default, in the order of declaration.
pub fn fields<S: Serialize + Default>(spec: &S) -> Map<String, Value> {
    fields_with(spec, &[])
}

/// As [`fields`], with those named in `keep` whatever their value.
pub fn fields_with<S: Serialize + Default>(spec: &S, keep: &[&str]) -> Map<String, Value> {
    let defaults = object(&S::default());
    let mut all = object(spec);
    all.retain(|name, value| keep.contains(&name.as_str()) || defaults.get(name) != Some(value));
    all
}

fn object<S: Serialize>(spec: &S) -> Map<String, Value> {
    match serde_json::to_value(spec) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// Reads the text form; the error names the word at fault and the fields that exist.
pub fn read<S: Serialize + DeserializeOwned + Default>(text: &str) -> Result<S, String> {
    let known = object(&S::default());
    let mut all = known.clone();
    for word in text.split_whitespace() {
        let names = || known.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let (name, value) = word
            .split_once('=')
            .ok_or_else(|| format!("`{word}` is not field=value; fields: {}", names()))?;
        let default = known.get(name).ok_or_else(|| format!("no field `{name}`; fields: {}", names()))?;
        let value = match default {
            Value::String(_) => Value::String(value.to_owned()),
            Value::Bool(_) => {
                Value::Bool(value.parse().map_err(|_| format!("`{word}`: expected true or false"))?)
            }
            _ => Value::Number(
                value.parse::<u64>().map_err(|_| format!("`{word}`: expected a whole number"))?.into(),
            ),
        };
        all.insert(name.to_owned(), value);
    }
    serde_json::from_value(Value::Object(all)).map_err(|error| error.to_string())
}
