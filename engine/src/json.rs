//! The JSON of models, as Python's `json` module reads it, since that is what wrote most of it.
//!
//! Beyond the standard it takes `NaN`, `Infinity` and `-Infinity`, numbers too large for a float (which are infinite),
//! a key more than once in an object (the last one counts) and lone surrogates in strings.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

/// Why a text is not the JSON that it should be.
#[derive(Debug, Error)]
pub enum JsonError {
    /// Not JSON.
    #[error("invalid JSON: {0}")]
    Syntax(serde_json::Error),
    /// JSON of another shape.
    #[error("{field}: {reason}")]
    Shape {
        /// The field, such as `text_config.hidden_size`.
        field: String,
        /// What was expected and what was found.
        reason: String,
    },
}

/// Reads a value.
///
/// A number that is not finite becomes `{"__float__": "NaN"}`, as transformers writes it where JSON has to be strict: a field
/// that is read as a number refuses it, one that nobody reads is passed over.
///
/// # Errors
/// [`JsonError`].
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    // An object of any keys keeps the last of equal ones.
    let value: Value = serde_json::from_slice(&strict(bytes)).map_err(JsonError::Syntax)?;
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "top level".into() } else { path };
        JsonError::Shape { field, reason: error.into_inner().to_string() }
    })
}

/// The same JSON within the standard. What is no JSON at all stays so.
fn strict(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut out: Vec<u8> = Vec::new();
    let mut copied = 0;
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let (length, instead) = match rest[0] {
            b'"' => {
                string(bytes, &mut at, &mut copied, &mut out);
                continue;
            }
            b'N' | b'I' | b'-' | b'0'..=b'9' => number(rest),
            _ => (1, None),
        };
        if let Some(instead) = instead {
            out.extend_from_slice(&bytes[copied..at]);
            out.extend_from_slice(format!("{{\"__float__\":\"{instead}\"}}").as_bytes());
            copied = at + length;
        }
        at += length;
    }
    if copied == 0 {
        return Cow::Borrowed(bytes);
    }
    out.extend_from_slice(&bytes[copied..]);
    Cow::Owned(out)
}

/// Length of the number, and its name if it is not finite.
fn number(rest: &[u8]) -> (usize, Option<&'static str>) {
    for name in ["NaN", "Infinity", "-Infinity"] {
        if rest.starts_with(name.as_bytes()) {
            return (name.len(), Some(name));
        }
    }
    let length = rest.iter().take_while(|b| b.is_ascii_digit() || b"+-.eE".contains(b)).count().max(1);
    let value = std::str::from_utf8(&rest[..length]).ok().and_then(|text| text.parse::<f64>().ok());
    let instead = value.filter(|value| value.is_infinite());
    (length, instead.map(|value| if value > 0.0 { "Infinity" } else { "-Infinity" }))
}

/// Passes a string. Surrogates that are not one of a pair become U+FFFD.
fn string(bytes: &[u8], at: &mut usize, copied: &mut usize, out: &mut Vec<u8>) {
    let unit = |at: usize| {
        let hex = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
        let hex = std::str::from_utf8(hex).ok().filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))?;
        u16::from_str_radix(hex, 16).ok()
    };
    *at += 1;
    while let Some(&byte) = bytes.get(*at) {
        match (byte, unit(*at)) {
            (b'"', _) => {
                *at += 1;
                return;
            }
            (_, Some(0xd800..=0xdbff)) if matches!(unit(*at + 6), Some(0xdc00..=0xdfff)) => *at += 12,
            (_, Some(0xd800..=0xdfff)) => {
                out.extend_from_slice(&bytes[*copied..*at]);
                out.extend_from_slice(b"\\ufffd");
                *at += 6;
                *copied = *at;
            }
            (b'\\', _) => *at += 2,
            _ => *at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Value {
        from_slice(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn numbers_that_are_not_finite() {
        let tag = |name: &str| json!({"__float__": name});
        assert_eq!(
            read(r#"{"a": NaN, "b": [Infinity, -Infinity,1], "c": "NaN -Infinity", "d": -1.5e3}"#),
            json!({"a": tag("NaN"), "b": [tag("Infinity"), tag("-Infinity"), 1], "c": "NaN -Infinity", "d": -1500.0})
        );
        assert_eq!(read("NaN"), tag("NaN"));
        assert_eq!(read("[1e999, -1e999, 1e30]"), json!([tag("Infinity"), tag("-Infinity"), 1e30]));
        assert_eq!(read(r#"{"\"": Infinity, "\\": "\"NaN"}"#), json!({"\"": tag("Infinity"), "\\": "\"NaN"}));
        for bad in
            ["-NaN", "[nan]", "[inf]", "{NaN: 1}", "[+Infinity]", "[InfinityNaN]", "[1 NaN]", "nullNaN"]
        {
            assert!(matches!(from_slice::<Value>(bad.as_bytes()), Err(JsonError::Syntax(_))), "{bad}");
        }
    }

    #[test]
    fn the_last_of_equal_keys_counts() {
        #[derive(Deserialize, PartialEq, Debug)]
        struct Config {
            a: u32,
            b: Option<Box<Config>>,
        }
        let config = |text: &str| from_slice::<Config>(text.as_bytes()).unwrap();
        let text = r#"{"a": 1, "b": {"a": 3, "a": 4, "b": null, "b": null}, "x": NaN, "a": 2, "x": 1}"#;
        let nested = Config { a: 4, b: None };
        assert_eq!(config(text), Config { a: 2, b: Some(Box::new(nested)) });
        assert_eq!(from_slice::<BTreeMap<String, u32>>(r#"{"a": 1, "a": 2}"#.as_bytes()).unwrap()["a"], 2);
        // Also where the first of them has another type.
        assert_eq!(config(r#"{"a": "x", "a": 5}"#), Config { a: 5, b: None });
    }

    #[test]
    fn strings() {
        assert_eq!(
            read(r#"["\ud83d\ude00", "\ud83d", "\ude00x", "\ud83d\ud83d\ude00", "\\ud83d"]"#),
            json!(["\u{1f600}", "\u{fffd}", "\u{fffd}x", "\u{fffd}\u{1f600}", "\\ud83d"])
        );
        for bad in ["\"\\", "\"\\ud8", "\"a", "\"\\uzzzz\"", "[\"\n\"]"] {
            assert!(matches!(from_slice::<Value>(bad.as_bytes()), Err(JsonError::Syntax(_))), "{bad}");
        }
    }

    #[test]
    fn errors_name_the_field() {
        #[derive(Deserialize, Debug)]
        struct Outer {
            #[serde(rename = "text_config")]
            _text: Inner,
        }
        #[derive(Deserialize, Debug)]
        struct Inner {
            #[serde(rename = "sizes")]
            _sizes: Vec<u32>,
        }
        let fails = |text: &str| from_slice::<Outer>(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(
            fails(r#"{"text_config": {"sizes": [1, "x"]}}"#),
            "text_config.sizes[1]: invalid type: string \"x\", expected u32"
        );
        assert_eq!(
            fails(r#"{"text_config": {"sizes": [NaN]}}"#),
            "text_config.sizes[0]: invalid type: map, expected u32"
        );
        assert_eq!(fails(r#"{"text_config": {}}"#), "text_config: missing field `sizes`");
        assert_eq!(fails("[]"), "top level: invalid length 0, expected struct Outer with 1 element");
        assert_eq!(fails("{"), "invalid JSON: EOF while parsing an object at line 1 column 1");
    }
}
