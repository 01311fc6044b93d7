//! WGSL sources and the small preprocessor that expands them.
//!
//! A kernel is one `.wgsl` file of an op's folder. Lines that begin with `#` are directives:
//!
//! | directive | meaning |
//! | --- | --- |
//! | `#include "file"` | the text of a file, the first time it is named |
//! | `#include "file" A=x B=y` | the text of a template with these values, each time |
//! | `#default NAME value` | a value for `NAME` unless the launch gives one |
//! | `#define NAME value` | a value for `NAME` |
//! | `#if`, `#elif`, `#else`, `#endif` | conditions: `A`, `!A`, `A == x`, `A != x`, `A < 4`, `A >= 4`, joined by `&&` or `\|\|` |
//!
//! `${NAME}` is replaced anywhere. A bare name holds if it is defined and neither `0` nor `false`.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// Values of names, as a launch gives them.
pub type Defines = BTreeMap<&'static str, String>;

/// Why a source could not be expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceError {
    /// The file.
    pub file: String,
    /// Its line, from 1 on.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

// `FILES`: every `.wgsl` file below `kernels/src` with its text, listed by `build.rs`.
include!(concat!(env!("OUT_DIR"), "/wgsl.rs"));

/// The text of a file.
fn file(path: &str) -> Option<&'static str> {
    FILES.iter().find(|(name, _)| *name == path).map(|(_, text)| *text)
}

/// The WGSL text of the kernel in `path` under these values.
pub fn expand(path: &str, defines: &Defines) -> Result<String, SourceError> {
    let mut out = Expansion {
        values: defines.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        included: HashSet::new(),
        text: String::new(),
        depth: 0,
    };
    out.file(path, &At { file: path, line: 0 })?;
    Ok(out.text)
}

struct Expansion {
    values: BTreeMap<String, String>,
    included: HashSet<String>,
    text: String,
    depth: usize,
}

#[derive(Clone, Copy)]
struct At<'a> {
    file: &'a str,
    line: usize,
}

impl At<'_> {
    fn fail<T>(&self, what: impl Into<String>) -> Result<T, SourceError> {
        Err(SourceError { file: self.file.to_owned(), line: self.line, what: what.into() })
    }
}

/// One open `#if`: whether a branch was taken, and whether this one is.
struct Branch {
    taken: bool,
    on: bool,
    line: usize,
}

impl Expansion {
    fn file(&mut self, path: &str, from: &At<'_>) -> Result<(), SourceError> {
        let Some(text) = file(path) else { return from.fail(format!("no source file `{path}`")) };
        if self.depth == 8 {
            return from.fail(format!("`{path}` is included too deeply"));
        }
        self.depth += 1;
        let mut branches: Vec<Branch> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let at = At { file: path, line: index + 1 };
            let on = branches.iter().all(|branch| branch.on);
            let Some(directive) = line.trim_start().strip_prefix('#') else {
                if on {
                    let line = self.substitute(line, &at)?;
                    self.text.push_str(&line);
                    self.text.push('\n');
                }
                continue;
            };
            let (word, rest) = directive.split_once(char::is_whitespace).unwrap_or((directive, ""));
            match word {
                "if" => {
                    let yes = on && self.condition(rest, &at)?;
                    // Inside a branch that is left out nothing is taken.
                    branches.push(Branch { taken: yes || !on, on: yes, line: at.line });
                }
                "elif" | "else" => {
                    let Some(mut branch) = branches.pop() else {
                        return at.fail(format!("#{word} without #if"));
                    };
                    let outer = branches.iter().all(|branch| branch.on);
                    branch.on = outer && !branch.taken && (word == "else" || self.condition(rest, &at)?);
                    branch.taken |= branch.on;
                    branches.push(branch);
                }
                "endif" => {
                    if branches.pop().is_none() {
                        return at.fail("#endif without #if");
                    }
                }
                _ if !on => {}
                "include" => self.include(rest, &at)?,
                "define" | "default" => {
                    let (name, value) =
                        rest.trim().split_once(char::is_whitespace).unwrap_or((rest.trim(), ""));
                    let value = self.substitute(value.trim(), &at)?;
                    if word == "define" || !self.values.contains_key(name) {
                        self.values.insert(name.to_owned(), value);
                    }
                }
                _ => return at.fail(format!("unknown directive #{word}")),
            }
        }
        self.depth -= 1;
        match branches.last() {
            Some(branch) => At { file: path, line: branch.line }.fail("#if without #endif"),
            None => Ok(()),
        }
    }

    fn include(&mut self, rest: &str, at: &At<'_>) -> Result<(), SourceError> {
        let rest = self.substitute(rest, at)?;
        let Some((path, arguments)) = rest.trim().strip_prefix('"').and_then(|rest| rest.split_once('"'))
        else {
            return at.fail("#include takes a path in quotes");
        };
        let mut before = Vec::new();
        let mut template = false;
        for argument in arguments.split_whitespace() {
            let Some((name, value)) = argument.split_once('=') else {
                return at.fail(format!("`{argument}`: expected NAME=value"));
            };
            template = true;
            before.push((name.to_owned(), self.values.insert(name.to_owned(), value.to_owned())));
        }
        if template || self.included.insert(path.to_owned()) {
            self.file(path, at)?;
        }
        for (name, value) in before {
            match value {
                Some(value) => self.values.insert(name, value),
                None => self.values.remove(&name),
            };
        }
        Ok(())
    }

    fn substitute(&self, line: &str, at: &At<'_>) -> Result<String, SourceError> {
        let mut out = String::with_capacity(line.len());
        let mut rest = line;
        while let Some((before, after)) = rest.split_once("${") {
            let Some((name, after)) = after.split_once('}') else { return at.fail("`${` without `}`") };
            let Some(value) = self.values.get(name) else { return at.fail(format!("`{name}` has no value")) };
            out.push_str(before);
            out.push_str(value);
            rest = after;
        }
        out.push_str(rest);
        Ok(out)
    }

    fn condition(&self, text: &str, at: &At<'_>) -> Result<bool, SourceError> {
        let text = self.substitute(text, at)?;
        let mut any = false;
        for term in text.split("||") {
            let mut all = true;
            for factor in term.split("&&") {
                all &= self.factor(factor.trim(), at)?;
            }
            any |= all;
        }
        Ok(any)
    }

    fn factor(&self, text: &str, at: &At<'_>) -> Result<bool, SourceError> {
        let value = |name: &str| self.values.get(name.trim()).map_or(name.trim(), String::as_str).to_owned();
        for operator in ["==", "!=", "<=", ">=", "<", ">"] {
            let Some((left, right)) = text.split_once(operator) else { continue };
            let (left, right) = (value(left), value(right));
            let numbers = || match (left.parse::<i64>(), right.parse::<i64>()) {
                (Ok(left), Ok(right)) => Ok((left, right)),
                _ => at.fail(format!("`{text}`: expected numbers, found `{left}` and `{right}`")),
            };
            return Ok(match operator {
                "==" => left == right,
                "!=" => left != right,
                "<=" => numbers().map(|(l, r)| l <= r)?,
                ">=" => numbers().map(|(l, r)| l >= r)?,
                "<" => numbers().map(|(l, r)| l < r)?,
                _ => numbers().map(|(l, r)| l > r)?,
            });
        }
        let (name, negated) = text.strip_prefix('!').map_or((text, false), |name| (name.trim(), true));
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return at.fail(format!("`{text}` is not a condition"));
        }
        let holds = self.values.get(name).is_some_and(|value| value != "0" && value != "false");
        Ok(holds != negated)
    }
}
