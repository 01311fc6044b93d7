//! The fields of a request, each taken by name: what is left over is refused by its name.

use serde_json::{Map, Value as Json};

use crate::error::ApiError;

/// Fields that change no answer.
const HARMLESS: &[&str] = &[
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
];

/// A body's fields that have not been taken yet.
pub(crate) struct Fields(Map<String, Json>);

impl Fields {
    /// Those of a body.
    pub fn read(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Json::Object(map)) => Ok(Self(map)),
            Ok(other) => {
                Err(ApiError::bad(format!("the body: expected a JSON object, found {}", short(&other))))
            }
            Err(error) => Err(ApiError::bad(format!("the body is not JSON: {error}"))),
        }
    }

    /// Takes a field as it is; `null` is none.
    pub fn any(&mut self, name: &str) -> Option<Json> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    fn take<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&Json) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.any(name) else { return Ok(None) };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(unlike(name, expected, &value)),
        }
    }

    /// Takes `true` or `false`.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.take(name, "true or false", Json::as_bool)
    }

    /// Takes a whole number of 0 or more.
    pub fn whole(&mut self, name: &str) -> Result<Option<u64>, ApiError> {
        self.take(name, "a whole number, 0 or more", Json::as_u64)
    }

    /// Takes a number.
    pub fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        self.take(name, "a number", |value| value.as_f64().map(|value| value as f32))
    }

    /// Takes a text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.take(name, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// Takes a text or a list of them.
    pub fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        self.take(name, "a text or a list of texts", |value| match value {
            Json::String(text) => Some(vec![text.clone()]),
            Json::Array(texts) => texts.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
            _ => None,
        })
    }

    /// Takes a list of token ids.
    pub fn ids(&mut self, name: &str) -> Result<Option<Vec<u32>>, ApiError> {
        self.take(name, "a list of token ids", |value| {
            value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
        })
    }

    /// Takes an object.
    pub fn object(&mut self, name: &str) -> Result<Option<Map<String, Json>>, ApiError> {
        self.take(name, "an object", |value| value.as_object().cloned())
    }

    /// Takes a field that nothing here obeys: `harmless` says of which values it asks for nothing.
    pub fn refuse(
        &mut self,
        name: &str,
        harmless: impl FnOnce(&Json) -> bool,
        why: &str,
    ) -> Result<(), ApiError> {
        match self.any(name) {
            Some(value) if !harmless(&value) => Err(ApiError::unsupported(name, why)),
            _ => Ok(()),
        }
    }

    /// Errors if a field is left that could change the answer.
    pub fn end(self) -> Result<(), ApiError> {
        match self.0.iter().find(|(name, value)| !HARMLESS.contains(&name.as_str()) && !value.is_null()) {
            Some((name, _)) => {
                let name: String = name.chars().take(80).collect();
                Err(ApiError::unsupported(name, "this server knows no such field"))
            }
            None => Ok(()),
        }
    }
}

/// What is at a place in place of what is expected there.
pub(crate) fn unlike(name: &str, expected: &str, found: &Json) -> ApiError {
    ApiError::field(name, format!("expected {expected}, found {}", short(found)))
}

fn short(value: &Json) -> String {
    match value {
        Json::Array(_) => "a list".into(),
        Json::Object(_) => "an object".into(),
        other => format!("`{}`", other.to_string().chars().take(80).collect::<String>()),
    }
}

/// Whether a value asks for nothing: false, 0, or an empty list, object or text.
pub(crate) fn is_nothing(value: &Json) -> bool {
    match value {
        Json::Null => true,
        Json::Bool(flag) => !flag,
        Json::Number(number) => number.as_f64() == Some(0.0),
        Json::String(text) => text.is_empty(),
        Json::Array(list) => list.is_empty(),
        Json::Object(map) => map.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: Json) -> Fields {
        Fields::read(value.to_string().as_bytes()).unwrap_or_else(|error| panic!("{error:?}"))
    }

    fn error(result: Result<impl std::fmt::Debug, ApiError>) -> String {
        result.unwrap_err().json().to_string()
    }

    #[test]
    fn fields_are_taken_by_name_and_kind() {
        let mut fields = of(json!({"a": 1.5, "b": null, "c": ["x", "y"], "d": "x", "user": "me", "e": 0}));
        assert_eq!(fields.number("a").unwrap(), Some(1.5));
        assert_eq!(fields.flag("b").unwrap(), None);
        assert_eq!(fields.texts("c").unwrap(), Some(vec!["x".into(), "y".into()]));
        assert_eq!(fields.texts("d").unwrap(), Some(vec!["x".into()]));
        fields.refuse("e", is_nothing, "no").unwrap();
        fields.end().unwrap();
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (result, param) in [
            (error(of(json!({"t": "x"})).number("t")), "t"),
            (error(of(json!({"n": -1})).whole("n")), "n"),
            (error(of(json!({"stop": [1]})).texts("stop")), "stop"),
            (error(of(json!({"logprobs": true})).refuse("logprobs", is_nothing, "no")), "logprobs"),
            (error(of(json!({"frobnicate": 1})).end()), "frobnicate"),
        ] {
            assert!(result.contains(&format!("\"param\":\"{param}\"")), "{result}");
        }
        assert!(Fields::read(b"[]").is_err() && Fields::read(b"{").is_err());
    }
}
