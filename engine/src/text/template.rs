//! Chat templates in the environment that transformers renders them in.

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::python::{Dumps, repr};
use super::source::{Source, Sources, hint_about_pictures};
use super::{TextError, Tokenizer, forms, methods};
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
    /// Further fields for the template, such as `tool_calls` or `reasoning_content`.
    #[serde(flatten)]
    pub more: Map<String, Json>,
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
    /// The text as it is, with marks in the places of images and videos.
    pub fn plain(&self, image: &str, video: &str) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => parts
                .iter()
                .map(|part| match part {
                    Part::Image => image,
                    Part::Video => video,
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
    /// The place of the next video of the request.
    Video,
    /// A text.
    Text {
        /// The text.
        text: String,
    },
}

impl Part {
    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Image | Self::Video => None,
            Self::Text { text } => Some(text),
        }
    }
}

impl Message {
    /// A message of text alone.
    pub fn text(role: impl Into<String>, text: impl Into<String>) -> Self {
        let content = Content::Parts(vec![Part::Text { text: text.into() }]);
        Self { role: role.into(), content, more: Map::new() }
    }

    /// A user's message: `images` images, then the text.
    pub fn user(images: usize, text: impl Into<String>) -> Self {
        let mut parts = vec![Part::Image; images];
        parts.push(Part::Text { text: text.into() });
        Self { role: "user".into(), content: Content::Parts(parts), more: Map::new() }
    }

    /// How many images the message places.
    pub fn images(&self) -> usize {
        match &self.content {
            Content::Text(_) => 0,
            Content::Parts(parts) => parts.iter().filter(|part| matches!(part, Part::Image)).count(),
        }
    }

    /// Whether the message places videos.
    pub fn shows_video(&self) -> bool {
        matches!(&self.content, Content::Parts(parts) if parts.contains(&Part::Video))
    }

    /// Whether the message places images or videos.
    pub fn shows(&self) -> bool {
        matches!(&self.content, Content::Parts(parts) if parts.iter().any(|part| part.text().is_none()))
    }
}

/// What a template is rendered with, besides the messages and the special tokens.
#[derive(Clone, Debug)]
pub struct RenderOptions {
    /// Ends the prompt with the header of the assistant's answer. On by default.
    pub add_generation_prompt: bool,
    /// Further variables, such as `tools` or a template's own switches.
    pub extra: Map<String, Json>,
    /// What stands for an image in the text of a message when the template takes text alone, for families whose own
    /// code puts it there. Without it such a message is an error.
    pub image_text: Option<String>,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, extra: Map::new(), image_text: None }
    }
}

impl RenderOptions {
    /// Adds a variable written as `name=value`. The value is JSON (`true`, `3`, `["a"]`), one of Python's `True`, `False`
    /// and `None`, or else a string.
    ///
    /// # Errors
    /// When there is no name before a `=`.
    pub fn assign(&mut self, assignment: &str) -> Result<(), TextError> {
        let (name, value) = assignment
            .split_once('=')
            .map(|(name, value)| (name.trim(), value.trim()))
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| TextError::Variable { found: assignment.to_owned() })?;
        let value = match value {
            "True" => Json::Bool(true),
            "False" => Json::Bool(false),
            "None" => Json::Null,
            value => serde_json::from_str(value).unwrap_or_else(|_| Json::from(value)),
        };
        self.extra.insert(name.to_owned(), value);
        Ok(())
    }
}

/// A compiled chat template. Cloning is cheap.
///
/// Rendered as transformers does: `trim_blocks` and `lstrip_blocks` on, loop controls, Python's string and dict methods,
/// `raise_exception`, `strftime_now`, a `tojson` without HTML escapes, the special tokens as variables. Plain values
/// print as in Python (`None`, `True`). All kinds of line breaks in the template's text are `\n`.
#[derive(Clone)]
pub struct ChatTemplate {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    env: Environment<'static>,
    path: String,
    /// Special tokens and the variables that transformers always passes.
    variables: Map<String, Json>,
    /// Other templates of the model.
    named: BTreeMap<String, ChatTemplate>,
    /// What to do when it takes text alone.
    hint: Option<String>,
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
    /// Looked for in `processor_config.json`, `chat_template.json`, `chat_template.jinja` and `tokenizer_config.json`, in
    /// this order, which is that of transformers' processors. Among several named templates the one called `default` is
    /// taken; the others, and those of `additional_chat_templates/`, are reached with [`ChatTemplate::named`].
    ///
    /// # Errors
    /// When a template does not compile, or there are named templates but no default.
    pub fn load(files: &ModelFiles, tokenizer: &Tokenizer) -> Result<Option<Self>, TextError> {
        let Some(sources) = Sources::find(files)? else { return Ok(None) };
        let hint = hint_about_pictures(&sources.absent, sources.model_type.as_deref());
        let compile = |source: &Source| Inner::new(&source.text, source.path.clone(), special(tokenizer));
        let mut inner = compile(&sources.default)?;
        for (name, source) in &sources.named {
            let other = Inner { hint: Some(hint.clone()), ..compile(source)? };
            inner.named.insert(name.clone(), Self { inner: Arc::new(other) });
        }
        inner.hint = Some(hint);
        Ok(Some(Self { inner: Arc::new(inner) }))
    }

    /// Compiles a template given as text; `path` is what error messages call it.
    ///
    /// # Errors
    /// When the template does not compile.
    pub fn new(source: &str, path: impl Into<String>, tokenizer: &Tokenizer) -> Result<Self, TextError> {
        Self::with_variables(source, path.into(), special(tokenizer))
    }

    fn with_variables(source: &str, path: String, variables: Map<String, Json>) -> Result<Self, TextError> {
        Ok(Self { inner: Arc::new(Inner::new(source, path, variables)?) })
    }

    /// Another template of the model, such as `tool_use`.
    pub fn named(&self, name: &str) -> Option<&Self> {
        self.inner.named.get(name)
    }

    /// Names of the model's other templates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inner.named.keys().map(String::as_str)
    }

    /// Renders the prompt of a conversation. Images appear as the template's own placeholder, before it is expanded
    /// to the image's tokens.
    ///
    /// A message of text alone is passed to the template as it was given, a string or a list of parts, unless the template
    /// shows its text only in the other form. What it shows is seen by rendering these very messages.
    ///
    /// # Errors
    /// When the template raises an exception or fails, and when it cannot place the images.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String, TextError> {
        let inner = &*self.inner;
        let contents = forms::choose(inner, messages, options)?;
        inner.render(pair(messages, contents), options).result.map_err(|e| inner.error(&e))
    }

    /// Whether the template reads a variable of this name.
    pub fn reads(&self, name: &str) -> bool {
        let template = self.inner.env.get_template(NAME);
        template.is_ok_and(|template| template.undeclared_variables(false).contains(name))
    }

    /// Whether the template's source has this text in it.
    pub fn mentions(&self, text: &str) -> bool {
        self.inner.env.get_template(NAME).is_ok_and(|template| template.source().contains(text))
    }

    /// Whether the template takes a user's message with an image. True as well if it fails for other reasons.
    pub fn accepts_images(&self) -> bool {
        let message = Message::user(1, "text");
        let system = Message::text("system", "text");
        let refused = |messages: &[Message]| {
            matches!(self.render(messages, &RenderOptions::default()), Err(TextError::NoImages { .. }))
        };
        !refused(std::slice::from_ref(&message)) && !refused(&[system, message])
    }
}

/// Special tokens as variables.
fn special(tokenizer: &Tokenizer) -> Map<String, Json> {
    tokenizer.named_tokens().iter().map(|(key, token)| (key.clone(), Json::from(token.as_str()))).collect()
}

/// Messages as the template gets them.
pub(super) fn pair(messages: &[Message], contents: Vec<Json>) -> Vec<Json> {
    let pairs = messages.iter().zip(contents);
    let fields = |(message, content): (&Message, Json)| {
        let mut fields = message.more.clone();
        fields.extend([("role".into(), Json::from(message.role.as_str())), ("content".into(), content)]);
        Json::Object(fields)
    };
    pairs.map(fields).collect()
}

/// What came of rendering a template.
pub(super) struct Rendered {
    /// The prompt.
    pub result: Result<String, Error>,
    /// Bytes that were written, also before an error.
    pub written: usize,
}

impl Inner {
    fn new(source: &str, path: String, mut variables: Map<String, Json>) -> Result<Self, TextError> {
        for key in ["tools", "documents"] {
            variables.entry(key).or_insert(Json::Null);
        }
        let env = environment(source)
            .map_err(|e| TextError::Template { path: path.clone(), reason: describe(&e) })?;
        Ok(Self { env, path, variables, named: BTreeMap::new(), hint: None })
    }

    pub(super) fn render(&self, messages: Vec<Json>, options: &RenderOptions) -> Rendered {
        let mut context = self.variables.clone();
        context.insert("messages".into(), Json::Array(messages));
        context.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        context.extend(options.extra.clone());
        let mut bytes = Vec::new();
        let result = self.env.get_template(NAME).and_then(|template| {
            template.render_captured_to(Value::from(Serde(Json::Object(context))), &mut bytes).map(drop)
        });
        let written = bytes.len();
        let text = || String::from_utf8(bytes).map_err(|_| invalid("the prompt is not UTF-8".into()));
        Rendered { result: result.and_then(|()| text()), written }
    }

    pub(super) fn error(&self, e: &Error) -> TextError {
        let (path, reason) = (self.path.clone(), describe(e));
        if is_raised(e) { TextError::Refused { path, reason } } else { TextError::Template { path, reason } }
    }

    pub(super) fn no_images(&self) -> TextError {
        TextError::NoImages { path: self.path.clone(), hint: self.hint.clone() }
    }
}

/// The template's own complaint, as `raise_exception` makes it.
#[derive(Debug, thiserror::Error)]
#[error("raised by the template")]
struct Raised;

/// Whether the template itself refused the messages.
pub(super) fn is_raised(e: &Error) -> bool {
    let mut source = std::error::Error::source(e);
    while let Some(e) = source {
        if e.is::<Raised>() {
            return true;
        }
        source = e.source();
    }
    false
}

fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_fuel(Some(FUEL));
    env.set_formatter(python_formatter);
    env.set_unknown_method_callback(methods::call);
    env.add_filter("tojson", tojson);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message).with_source(Raised))
    });
    env.add_function("strftime_now", strftime_now);
    env.add_template_owned(NAME, replace_generation_tags(&with_newlines(source)))?;
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

/// Line breaks as Python reads them from a text file, and Jinja from any source.
fn with_newlines(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
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
