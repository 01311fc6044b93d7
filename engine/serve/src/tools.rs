//! Tools that a chat may call: `tools` and `tool_choice`.

use ocelli_engine::Pipeline;
use ocelli_engine::sample::Form;
use serde_json::Value as Json;

use crate::calls;
use crate::error::ApiError;
use crate::fields::{Fields, is_nothing, unlike};
use crate::forms::Asked;

/// Most tools of a request.
const MOST: usize = 128;

/// What a request says of tools.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    /// For the chat template, as they came; none are shown to a model that is to call none.
    pub shown: Option<Json>,
    /// Whether calls are looked for in the answer.
    pub read: bool,
    /// The form of an answer that has to be calls.
    pub form: Option<Asked>,
}

/// Takes the tools of a chat.
pub(crate) fn take(fields: &mut Fields, pipeline: &Pipeline) -> Result<Tools, ApiError> {
    let old = "the old form of `tools` and `tool_choice`, which are supported";
    for name in ["functions", "function_call"] {
        fields.refuse(name, |value| is_nothing(value) || value == "none" || value == "auto", old)?;
    }
    let (tools, choice) = (fields.any("tools").filter(|tools| !is_nothing(tools)), fields.any("tool_choice"));
    let Some(tools) = tools else {
        return match choice.as_ref().and_then(Json::as_str) {
            None if choice.is_none() => Ok(Tools::default()),
            Some("none" | "auto") => Ok(Tools::default()),
            _ => Err(ApiError::field("tool_choice", "there are no `tools` to choose from")),
        };
    };
    let known = functions(&tools)?;
    let wanted = match &choice {
        None => None,
        Some(Json::String(choice)) => match choice.as_str() {
            "none" => return Ok(Tools::default()),
            "auto" => None,
            "required" => Some(known),
            _ => {
                return Err(unlike(
                    "tool_choice",
                    "none, auto, required or a function",
                    &Json::from(&**choice),
                ));
            }
        },
        Some(choice) => {
            let name = choice.pointer("/function/name").and_then(Json::as_str);
            let name =
                name.ok_or_else(|| unlike("tool_choice", "none, auto, required or a function", choice))?;
            let one: Vec<_> = known.into_iter().filter(|(known, _)| known == name).collect();
            if one.is_empty() {
                let shown: String = name.chars().take(80).collect();
                return Err(ApiError::field("tool_choice", format!("there is no tool `{shown}`")));
            }
            Some(one)
        }
    };
    can_call(pipeline)?;
    let token = pipeline.tokenizer.token_to_id("<tool_call>").is_some();
    let form =
        wanted.map(|tools| Asked { field: "tools".into(), form: Form::Lark(calls::grammar(&tools, token)) });
    Ok(Tools { shown: Some(tools), read: true, form })
}

/// Names of the tools, with the schemas of their arguments.
fn functions(tools: &Json) -> Result<Vec<(String, Json)>, ApiError> {
    let list = tools.as_array().ok_or_else(|| unlike("tools", "a list of tools", tools))?;
    if list.len() > MOST {
        return Err(ApiError::field("tools", format!("expected at most {MOST}, found {}", list.len())));
    }
    let function = |(number, tool): (usize, &Json)| {
        let place = format!("tools[{number}]");
        if tool.get("type").and_then(Json::as_str) != Some("function") {
            let found = tool.get("type").cloned().unwrap_or_default();
            return Err(unlike(&format!("{place}.type"), "`function`", &found));
        }
        let name = tool.pointer("/function/name").and_then(Json::as_str);
        let name = name.ok_or_else(|| {
            let found = tool.pointer("/function/name").cloned().unwrap_or_default();
            unlike(&format!("{place}.function.name"), "a text", &found)
        })?;
        let parameters = tool.pointer("/function/parameters").cloned().unwrap_or_default();
        if !parameters.is_null() && !parameters.is_object() {
            return Err(unlike(&format!("{place}.function.parameters"), "a JSON schema", &parameters));
        }
        Ok((name.to_owned(), parameters))
    };
    list.iter().enumerate().map(function).collect()
}

/// Errors if the model's template teaches no calls, or such as are not read here.
fn can_call(pipeline: &Pipeline) -> Result<(), ApiError> {
    let refuse = |why: &str| Err(ApiError::unsupported("tools", why));
    let Some(template) = pipeline.template.as_ref().filter(|template| template.reads("tools")) else {
        return refuse("the model's chat template does not read them");
    };
    if !template.mentions("<tool_call>") {
        return refuse(
            "the model's chat template teaches calls in a form of its own; read are those of Qwen and Hermes, JSON between <tool_call> marks",
        );
    }
    if template.mentions("<function=") {
        return refuse(
            "the model's chat template teaches calls as XML (<function=...>); read are those of Qwen and Hermes, JSON between <tool_call> marks",
        );
    }
    let token = pipeline.tokenizer.token_to_id("<tool_call>");
    if token.is_some_and(|token| pipeline.tokenizer.is_special(token)) {
        return refuse("the model's marks of calls are special tokens, which do not show in its answers");
    }
    Ok(())
}
