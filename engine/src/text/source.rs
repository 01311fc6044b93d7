//! Where a model keeps its chat templates.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::TextError;
use crate::files::{FileError, ModelFiles};

/// The folder of named templates beside `chat_template.jinja`.
const NAMED: &str = "additional_chat_templates";
const JINJA: &str = "chat_template.jinja";

/// Files that may hold a template, first the one that wins: the order of transformers' processors, and at the end the
/// file that its tokenizers read.
const FILES: [&str; 4] = ["processor_config.json", "chat_template.json", JINJA, "tokenizer_config.json"];

/// The text of a template and the file that it came from, as error messages call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub text: String,
    pub path: String,
}

/// The templates of a model.
#[derive(Debug)]
pub(super) struct Sources {
    /// The one that is rendered unless another is asked for.
    pub default: Source,
    /// The others by name, such as `tool_use`.
    pub named: BTreeMap<String, Source>,
    /// Files that could have held a template for pictures and hold none.
    pub absent: Vec<&'static str>,
    /// `model_type` of `config.json`.
    pub model_type: Option<String>,
}

impl Sources {
    /// Looks for the templates of a model; `None` when it has none.
    pub fn find(files: &ModelFiles) -> Result<Option<Self>, TextError> {
        let mut absent = Vec::new();
        let mut found = None;
        for file in FILES {
            let templates = match file {
                JINJA => from_jinja(files)?,
                file => from_json(files, file)?,
            };
            match templates {
                Some(templates) => {
                    found = Some(templates);
                    break;
                }
                None => absent.push(file),
            }
        }
        let Some((default, named)) = found else { return Ok(None) };
        let config: Option<Json> = files.json("config.json").unwrap_or_default();
        let model_type =
            config.as_ref().and_then(|config| config.get("model_type")?.as_str()).map(str::to_owned);
        Ok(Some(Self { default, named, absent, model_type }))
    }
}

type Found = Option<(Source, BTreeMap<String, Source>)>;

/// `chat_template.jinja` and the named templates beside it.
fn from_jinja(files: &ModelFiles) -> Result<Found, TextError> {
    let read = |name: &str| -> Result<Option<Source>, TextError> {
        Ok(files.text(name)?.map(|text| Source { text, path: files.describe(name) }))
    };
    let mut named = BTreeMap::new();
    for name in list_named(files)? {
        if let Some(source) = read(&format!("{NAMED}/{name}.jinja"))? {
            named.insert(name, source);
        }
    }
    // A file `default.jinja` among the named ones stands in for `chat_template.jinja`.
    match read(JINJA)?.or_else(|| named.remove("default")) {
        Some(default) => Ok(Some((default, named))),
        None => Ok(None),
    }
}

/// Names of the files in the folder of named templates, without `.jinja`.
fn list_named(files: &ModelFiles) -> Result<Vec<String>, TextError> {
    let stem = |file: &str| file.strip_suffix(".jinja").map(str::to_owned);
    let mut names: Vec<String> = match files {
        ModelFiles::Embedded { files, .. } => {
            files.iter().filter_map(|(name, _)| stem(name.strip_prefix(NAMED)?.strip_prefix('/')?)).collect()
        }
        ModelFiles::Dir(dir) => {
            let io = |source| FileError::Io { path: files.describe(NAMED), source };
            match std::fs::read_dir(dir.join(NAMED)) {
                Ok(entries) => entries
                    .map(|entry| Ok(entry.map_err(io)?.file_name().to_str().and_then(stem)))
                    .filter_map(Result::transpose)
                    .collect::<Result<_, FileError>>()?,
                Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound) => Vec::new(),
                Err(e) => return Err(io(e).into()),
            }
        }
    };
    names.sort();
    Ok(names)
}

/// The entry `chat_template` of a JSON file: a template, or several as a map or as a list of `name` and `template`.
fn from_json(files: &ModelFiles, file: &str) -> Result<Found, TextError> {
    let config: Json = files.json(file)?.unwrap_or_default();
    let path = files.describe(file);
    let bad = |reason: String| TextError::Template { path: path.clone(), reason };
    let pairs: Vec<(Option<&str>, Option<&str>)> = match config.get("chat_template") {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::String(text)) => vec![(Some("default"), Some(text))],
        Some(Json::Object(map)) => {
            map.iter().map(|(name, text)| (Some(name.as_str()), text.as_str())).collect()
        }
        Some(Json::Array(list)) => list
            .iter()
            .map(|entry| {
                let field = |key: &str| entry.get(key).and_then(Json::as_str);
                (field("name"), field("template"))
            })
            .collect(),
        Some(_) => return Err(bad("expected a string or a list of named templates".into())),
    };
    let mut named = BTreeMap::new();
    for (i, pair) in pairs.into_iter().enumerate() {
        let (Some(name), Some(text)) = pair else {
            return Err(bad(format!("template {i}: expected a name and a text")));
        };
        named.insert(name.to_owned(), Source { text: text.to_owned(), path: path.clone() });
    }
    let default = named.remove("default").ok_or_else(|| bad("expected a template named `default`".into()))?;
    Ok(Some((default, named)))
}

/// What to do about a template that takes text alone, as `absent` and `model_type` of [`Sources`] let one say.
pub(super) fn hint_about_pictures(absent: &[&'static str], model_type: Option<&str>) -> String {
    let files: Vec<&str> = absent.iter().copied().filter(|file| file.starts_with("chat_template")).collect();
    let looked = match files.as_slice() {
        [] => "this template won over any other of the model".to_owned(),
        files => format!(
            "looked for one that takes pictures in {}, found none; if the model's repository has it, get it",
            files.join(" and ")
        ),
    };
    let own_code = match model_type {
        Some("internvl_chat") => {
            "InternVL's own code puts `<image>` and a line break before the text instead"
        }
        Some("minicpmv") => {
            "MiniCPM-V's own code puts `(<image>./</image>)` and a line break before the text instead"
        }
        Some("molmo") => "Molmo's own code puts pictures before the text instead",
        Some(kind) if kind.starts_with("qwen2") => {
            "Qwen keeps the template with pictures in chat_template.json, the one in tokenizer_config.json is for text"
        }
        _ => "some families (InternVL, Molmo, MiniCPM-V) place pictures by code of their own instead",
    };
    format!("{looked}; {own_code}")
}
