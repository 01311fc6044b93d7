//! Forms that answers are held to, by the fields that ask for them.

use ocelli_engine::Pipeline;
use ocelli_engine::sample::{Form, Grammar};
use serde_json::{Map, Value as Json};

use crate::error::ApiError;
use crate::fields::{Fields, unlike};

/// A form, and the field that asks for it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub field: String,
    pub form: Form,
}

impl Asked {
    /// Compiles the form. To be run on a thread that may wait.
    pub fn compile(&self, pipeline: &Pipeline) -> Result<Grammar, ApiError> {
        pipeline.grammar(&self.form).map_err(|error| match error {
            ocelli_engine::Error::Grammar(why) => ApiError::field(self.field.clone(), why),
            other => ApiError::engine(&other, "messages"),
        })
    }
}

/// Takes the form that a request asks for: OpenAI's `response_format`, or by vLLM's names `structured_outputs` with `json`, `regex`,
/// `choice` or `grammar`, and `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar`.
pub(crate) fn take(fields: &mut Fields) -> Result<Option<Asked>, ApiError> {
    let mut all = Vec::new();
    if let Some(format) = fields.object("response_format")? {
        all.extend(response_format(&format)?);
    }
    for kind in ["json", "regex", "choice", "grammar"] {
        let name = format!("guided_{kind}");
        if let Some(value) = fields.any(&name) {
            all.push(guided(kind, name, value)?);
        }
    }
    if let Some(outputs) = fields.object("structured_outputs")? {
        for (kind, value) in outputs.into_iter().filter(|(_, value)| !value.is_null()) {
            all.push(guided(&kind.clone(), format!("structured_outputs.{kind}"), value)?);
        }
    }
    match &all[..] {
        [] | [_] => Ok(all.pop()),
        [first, second, ..] => Err(ApiError::field(
            second.field.clone(),
            format!("the answer has a form already, by {}", first.field),
        )),
    }
}

fn response_format(format: &Map<String, Json>) -> Result<Option<Asked>, ApiError> {
    let asked = |field: &str, form: Form| Ok(Some(Asked { field: field.into(), form }));
    match format.get("type").and_then(Json::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => asked("response_format", Form::Object),
        Some("json_schema") => {
            let place = "response_format.json_schema.schema";
            match format.get("json_schema").and_then(|named| named.get("schema")) {
                Some(schema) if schema.is_object() => asked(place, Form::Schema(schema.clone())),
                other => Err(unlike(place, "a JSON schema", other.unwrap_or(&Json::Null))),
            }
        }
        _ => {
            let found = format.get("type").cloned().unwrap_or_default();
            Err(unlike("response_format.type", "`text`, `json_object` or `json_schema`", &found))
        }
    }
}

fn guided(kind: &str, field: String, value: Json) -> Result<Asked, ApiError> {
    let form = match (kind, &value) {
        ("json", Json::Object(_)) => Form::Schema(value),
        // As a text, too.
        ("json", Json::String(text)) => match serde_json::from_str(text) {
            Ok(schema) => Form::Schema(schema),
            Err(error) => return Err(ApiError::field(field, format!("not JSON: {error}"))),
        },
        ("regex", Json::String(text)) => Form::Regex(text.clone()),
        ("grammar", Json::String(text)) => Form::Lark(text.clone()),
        ("choice", Json::Array(list)) if list.iter().all(Json::is_string) => {
            Form::Choices(list.iter().filter_map(Json::as_str).map(str::to_owned).collect())
        }
        ("json", _) => return Err(unlike(&field, "a JSON schema", &value)),
        ("choice", _) => return Err(unlike(&field, "a list of texts", &value)),
        ("regex" | "grammar", _) => return Err(unlike(&field, "a text", &value)),
        _ => return Err(ApiError::unsupported(field, "expected json, regex, choice or grammar")),
    };
    Ok(Asked { field, form })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: Json) -> Result<Option<Form>, String> {
        let mut fields = Fields::read(value.to_string().as_bytes()).unwrap();
        let asked = take(&mut fields).map_err(|error| error.json()["error"]["param"].to_string());
        fields.end().unwrap();
        asked.map(|asked| asked.map(|asked| asked.form))
    }

    #[test]
    fn forms_by_their_fields() {
        let schema = json!({"type": "integer"});
        assert_eq!(of(json!({})), Ok(None));
        assert_eq!(of(json!({"response_format": {"type": "text"}})), Ok(None));
        assert_eq!(of(json!({"response_format": {"type": "json_object"}})), Ok(Some(Form::Object)));
        for asked in [
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}),
            json!({"guided_json": schema}),
            json!({"guided_json": schema.to_string()}),
            json!({"structured_outputs": {"json": schema, "regex": null}}),
        ] {
            assert_eq!(of(asked), Ok(Some(Form::Schema(schema.clone()))));
        }
        assert_eq!(of(json!({"guided_regex": "a+"})), Ok(Some(Form::Regex("a+".into()))));
        assert_eq!(of(json!({"guided_grammar": "start: A"})), Ok(Some(Form::Lark("start: A".into()))));
        let choices = Form::Choices(vec!["a".into(), "b".into()]);
        assert_eq!(of(json!({"structured_outputs": {"choice": ["a", "b"]}})), Ok(Some(choices)));
        for (asked, param) in [
            (json!({"response_format": {"type": "yaml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema.schema"),
            (json!({"response_format": "json"}), "response_format"),
            (json!({"guided_regex": 3}), "guided_regex"),
            (json!({"guided_choice": ["a", 3]}), "guided_choice"),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"structured_outputs": {"xml": "a"}}), "structured_outputs.xml"),
            (json!({"guided_regex": "a", "guided_choice": ["b"]}), "guided_choice"),
        ] {
            assert_eq!(of(asked), Err(format!("\"{param}\"")));
        }
    }
}
