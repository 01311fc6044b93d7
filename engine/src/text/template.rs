//! Chat templates in the environment that transformers renders them in.

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::python::{Dumps, repr};
use super::{TextError, Tokenizer};
use crate::files::ModelFiles;

/// Instructions that a template may execute; far above any real conversation, it ends a template that would not end.
const FUEL: u64 = 10_000_000;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What was said.
    pub content: Content,
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Text alone.
    Text(String),
    /// Images and texts in order.
    Parts(Vec<Part>),
}

impl Content {
    /// The text as it is, with `image_token` in the place of each image.
    pub fn plain(&self, image_token: &str) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => parts
                .iter()
                .map(|part| match part {
                    Part::Image => image_token,
                    Part::Text { text } => text.as_str(),
                })
                .collect(),
        }
    }
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Part {
    /// The place of the next image of the request.
    Image,
    /// A text.
    Text {
        /// The text.
        text: String,
    },
}

impl Message {
    /// A message of text alone.
    pub fn text(role: impl Into<String>, text: impl Into<String>) -> Self {
        Self { role: role.into(), content: Content::Parts(vec![Part::Text { text: text.into() }]) }
    }

    /// A user's message: `images` images, then the text.
    pub fn user(images: usize, text: impl Into<String>) -> Self {
        let mut parts = vec![Part::Image; images];
        parts.push(Part::Text { text: text.into() });
        Self { role: "user".into(), content: Content::Parts(parts) }
    }

    /// How many images the message places.
    pub fn images(&self) -> usize {
        match &self.content {
            Content::Text(_) => 0,
            Content::Parts(parts) => parts.iter().filter(|part| matches!(part, Part::Image)).count(),
        }
    }
}

/// What a template is rendered with, besides the messages and the special tokens.
#[derive(Clone, Debug)]
pub struct RenderOptions {
    /// Ends the prompt with the header of the assistant's answer. On by default.
    pub add_generation_prompt: bool,
    /// Further variables, such as `tools` or a template's own switches.
    pub extra: Map<String, Json>,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, extra: Map::new() }
    }
}

/// A compiled chat template. Cloning is cheap.
///
/// Rendered as transformers does: `trim_blocks` and `lstrip_blocks` on, loop controls, Python's string and dict methods,
/// `raise_exception`, `strftime_now`, a `tojson` without HTML escapes, the special tokens as variables. Plain values
/// print as in Python (`None`, `True`).
#[derive(Clone)]
pub struct ChatTemplate {
    inner: Arc<Inner>,
}

struct Inner {
    env: Environment<'static>,
    path: String,
    /// Special tokens and the variables that transformers always passes.
    variables: Map<String, Json>,
    accepts_text: bool,
    accepts_parts: bool,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Loads the chat template of a model, or `None` when it has none.
    ///
    /// Looked for in `chat_template.jinja`, `chat_template.json`, `processor_config.json` and
    /// `tokenizer_config.json`; among several named templates the one called `default` is taken.
    ///
    /// # Errors
    /// When a template does not compile, or there are named templates but no default.
    pub fn load(files: &ModelFiles, tokenizer: &Tokenizer) -> Result<Option<Self>, TextError> {
        const JINJA: &str = "chat_template.jinja";
        if let Some(source) = files.text(JINJA)? {
            return Self::new(&source, files.describe(JINJA), tokenizer).map(Some);
        }
        for file in ["chat_template.json", "processor_config.json", "tokenizer_config.json"] {
            let config: Json = files.json(file)?.unwrap_or_default();
            let bad =
                |reason: &str| TextError::Template { path: files.describe(file), reason: reason.into() };
            let source = match config.get("chat_template") {
                None | Some(Json::Null) => continue,
                Some(Json::String(source)) => source,
                Some(Json::Object(named)) => named
                    .get("default")
                    .and_then(Json::as_str)
                    .ok_or_else(|| bad("expected a template named `default`"))?,
                Some(Json::Array(list)) => list
                    .iter()
                    .find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"))
                    .and_then(|entry| entry.get("template")?.as_str())
                    .ok_or_else(|| bad("expected a template named `default`"))?,
                Some(_) => return Err(bad("expected a string or a list of named templates")),
            };
            return Self::new(source, files.describe(file), tokenizer).map(Some);
        }
        Ok(None)
    }

    /// Compiles a template given as text; `path` is what error messages call it.
    ///
    /// # Errors
    /// When the template does not compile.
    pub fn new(source: &str, path: impl Into<String>, tokenizer: &Tokenizer) -> Result<Self, TextError> {
        let mut variables = Map::new();
        for (key, token) in tokenizer.named_tokens() {
            variables.insert(key.clone(), Json::from(token.as_str()));
        }
        Self::with_variables(source, path.into(), variables)
    }

    fn with_variables(
        source: &str,
        path: String,
        mut variables: Map<String, Json>,
    ) -> Result<Self, TextError> {
        for key in ["tools", "documents"] {
            variables.entry(key).or_insert(Json::Null);
        }
        let env = environment(source)
            .map_err(|e| TextError::Template { path: path.clone(), reason: describe(&e) })?;
        let mut inner = Inner { env, path, variables, accepts_text: false, accepts_parts: false };
        const PROBE: &str = "text of the probe";
        inner.accepts_text = inner.shows(PROBE, json!(PROBE));
        inner.accepts_parts = inner.shows(PROBE, json!([{"type": "text", "text": PROBE}]));
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Renders the prompt of a conversation. Images appear as the template's own placeholder, before it is expanded
    /// to the image's tokens.
    ///
    /// Text is passed to the template as a string or as a list of parts, whichever the template reads.
    ///
    /// # Errors
    /// When the template raises an exception or fails, and when it cannot place the images.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String, TextError> {
        let inner = &*self.inner;
        let messages = messages
            .iter()
            .map(|message| {
                let content = match &message.content {
                    Content::Text(text) if inner.accepts_parts && !inner.accepts_text => {
                        json!([{"type": "text", "text": text}])
                    }
                    Content::Text(text) => json!(text),
                    Content::Parts(parts) if inner.accepts_parts => json!(parts),
                    Content::Parts(parts) => Json::String(
                        parts
                            .iter()
                            .map(|part| match part {
                                Part::Text { text } => Ok(text.as_str()),
                                Part::Image => Err(TextError::NoImages { path: inner.path.clone() }),
                            })
                            .collect::<Result<_, _>>()?,
                    ),
                };
                Ok(json!({"role": message.role, "content": content}))
            })
            .collect::<Result<Vec<_>, TextError>>()?;
        inner
            .render(messages, options)
            .map_err(|e| TextError::Template { path: inner.path.clone(), reason: describe(&e) })
    }

    /// True when the template reads messages as lists of images and texts.
    pub fn accepts_images(&self) -> bool {
        self.inner.accepts_parts
    }
}

impl Inner {
    fn render(&self, messages: Vec<Json>, options: &RenderOptions) -> Result<String, Error> {
        let mut context = self.variables.clone();
        context.insert("messages".into(), Json::Array(messages));
        context.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        context.extend(options.extra.clone());
        self.env.get_template(NAME)?.render(Value::from(Serde(Json::Object(context))))
    }

    /// Whether a user's message with this content shows the text itself.
    fn shows(&self, text: &str, content: Json) -> bool {
        let messages = vec![json!({"role": "user", "content": content})];
        self.render(messages, &RenderOptions::default())
            .is_ok_and(|prompt| prompt.contains(text) && !prompt.contains("'type': 'text'"))
    }
}

fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_fuel(Some(FUEL));
    env.set_formatter(python_formatter);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_filter("tojson", tojson);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", strftime_now);
    env.add_template_owned(NAME, replace_generation_tags(source))?;
    Ok(env)
}

fn python_formatter(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match repr(value).filter(|_| value.kind() != ValueKind::String) {
        Some(text) => out.write_str(&text).map_err(Error::from),
        None => minijinja::escape_formatter(out, state, value),
    }
}

fn tojson(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    // Text is never escaped to ASCII, which is also transformers' default.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut dumps = Dumps::new(indent, sort_keys.unwrap_or(false));
    if let Some(separators) = separators {
        let [item, key] = <[String; 2]>::try_from(separators)
            .map_err(|found| invalid(format!("tojson: separators: expected 2, found {}", found.len())))?;
        (dumps.item, dumps.key) = (item, key);
    }
    let json = serde_json::to_value(&value).map_err(|e| invalid(e.to_string()))?;
    Ok(Value::from(dumps.dumps(&json)))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    use chrono::format::{Item, StrftimeItems};
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    if items.contains(&Item::Error) {
        return Err(invalid(format!("strftime_now: invalid format {format:?}")));
    }
    Ok(chrono::Local::now().format_with_items(items.into_iter()).to_string())
}

fn invalid(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// The reason of a template error on one line.
fn describe(e: &Error) -> String {
    let mut text = match (e.kind(), e.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    if let Some(line) = e.line() {
        text += &format!(" (line {line})");
    }
    text.replace('\n', " ")
}

/// `{% generation %}` marks the assistant's tokens for training; it renders its body unchanged, like `{% if true %}`.
fn replace_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(length) = rest[open..].find("%}") else { break };
        let inside = &rest[open + 2..open + length];
        let word = inside.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let replacement = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            other => other,
        };
        out.push_str(&rest[..open + 2]);
        out.push_str(&inside.replacen(word, replacement, usize::from(!word.is_empty())));
        rest = &rest[open + length..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
