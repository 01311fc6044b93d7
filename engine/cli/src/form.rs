//! The form that answers are held to, from arguments.

use std::path::{Path, PathBuf};

use clap::Args;
use ocelli_engine::sample::{Form, Grammar};
use ocelli_engine::{Error, Pipeline};

use crate::fail::Failure;

/// Most bytes of a schema or a grammar.
const MOST: u64 = 16 << 20;

/// What answers have to look like; one of these at most.
#[derive(Debug, Default, Args)]
#[group(multiple = false)]
pub struct FormArgs {
    /// Hold the answer to a JSON schema, read from a file.
    #[arg(long, value_name = "FILE")]
    pub schema: Option<PathBuf>,
    /// Hold the answer to a regular expression, which matches all of it.
    #[arg(long, value_name = "REGEX")]
    pub regex: Option<String>,
    /// Hold the answer to a grammar in the syntax of Lark, read from a file; it begins with `start`.
    #[arg(long, value_name = "FILE")]
    pub grammar: Option<PathBuf>,
    /// Hold the answer to one of these texts, with commas between.
    #[arg(long, value_name = "TEXT", value_delimiter = ',')]
    pub choices: Vec<String>,
}

impl FormArgs {
    /// The form, and the flag that it comes from.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn read(&self) -> Result<Option<(&'static str, Form)>, Failure> {
        if let Some(path) = &self.schema {
            let text = text("--schema", path)?;
            let schema = serde_json::from_str(&text);
            let schema = schema.map_err(|error| {
                Failure::usage(format!("--schema: {}: not JSON: {error}", path.display()))
            })?;
            return Ok(Some(("--schema", Form::Schema(schema))));
        }
        if let Some(path) = &self.grammar {
            return Ok(Some(("--grammar", Form::Lark(text("--grammar", path)?))));
        }
        let regex = self.regex.iter().map(|regex| ("--regex", Form::Regex(regex.clone())));
        let choices = Some(&self.choices).filter(|choices| !choices.is_empty());
        let choices = choices.map(|choices| ("--choices", Form::Choices(choices.clone())));
        Ok(regex.chain(choices).next())
    }
}

/// Compiles a form for a model.
///
/// # Errors
/// What is wrong with it, named by its flag.
pub fn compile(form: Option<&(&'static str, Form)>, pipeline: &Pipeline) -> Result<Option<Grammar>, Failure> {
    let compile = |(flag, form): &(&'static str, Form)| {
        pipeline.grammar(form).map_err(|error| match error {
            Error::Grammar(why) => Failure::usage(format!("{flag}: {why}")),
            other => other.into(),
        })
    };
    form.map(compile).transpose()
}

fn text(flag: &str, path: &Path) -> Result<String, Failure> {
    let named = |error: String| Failure::usage(format!("{flag}: {}: {error}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| named(error.to_string()))?.len();
    if size > MOST {
        return Err(named(format!("expected at most {MOST} bytes, found {size}")));
    }
    std::fs::read_to_string(path).map_err(|error| named(error.to_string()))
}
