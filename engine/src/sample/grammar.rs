//! Answers of a given form: a JSON schema, a regular expression, a grammar or a list of choices says which tokens may come next.
//!
//! The library `llguidance` computes that from the bytes of the tokens. A [`Grammar`] is compiled once; each answer follows a copy of
//! it, its `Guide`, whose masks are computed on other threads while the device runs the pass before.

use std::cell::OnceCell;
use std::fmt;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// Most choices of a list.
const MOST_CHOICES: usize = 10_000;

/// The form of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// Any JSON object.
    Object,
    /// JSON that a schema describes. Between its parts are the spaces of `{"a": 1, "b": 2}`, unless the schema's own `x-guidance` says
    /// otherwise.
    Schema(Value),
    /// Text that a regular expression matches as a whole, in the syntax of Rust's `regex` without looks and anchors.
    Regex(String),
    /// Text of a context-free grammar in the syntax of Lark; it begins with `start`.
    Lark(String),
    /// One of these texts.
    Choices(Vec<String>),
}

impl Form {
    /// The same in the library's terms, named `answer`.
    fn grammar(&self) -> Result<GrammarWithLexer> {
        let grammar = match self {
            Self::Object => GrammarWithLexer::from_json_schema(spaced(json!({"type": "object"}))),
            Self::Schema(schema) => match schema {
                Value::Object(_) | Value::Bool(_) => {
                    GrammarWithLexer::from_json_schema(spaced(schema.clone()))
                }
                _ => return Err(Error::Grammar("a JSON schema: expected an object".into())),
            },
            Self::Regex(regex) => GrammarWithLexer::from_regex(regex),
            Self::Lark(text) => GrammarWithLexer::from_lark(text.clone()),
            Self::Choices(choices) => {
                if choices.is_empty() || choices.len() > MOST_CHOICES || choices.iter().any(String::is_empty)
                {
                    return Err(Error::Grammar(format!(
                        "choices: expected 1 to {MOST_CHOICES} texts that are not empty, found {}{}",
                        choices.len(),
                        if choices.iter().any(String::is_empty) { ", one of them empty" } else { "" }
                    )));
                }
                let texts: Vec<String> =
                    choices.iter().map(|text| Value::from(&**text).to_string()).collect();
                GrammarWithLexer::from_lark(format!("start: CHOICE\nCHOICE: {}\n", texts.join(" | ")))
            }
        };
        Ok(GrammarWithLexer { name: Some("answer".into()), ..grammar })
    }
}

/// A schema with the spaces that are written where it does not say which.
fn spaced(mut schema: Value) -> Value {
    if let Value::Object(fields) = &mut schema {
        fields.entry("x-guidance").or_insert_with(
            || json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}),
        );
    }
    schema
}

/// What compiles forms for a tokenizer.
pub struct Grammars {
    factory: ParserFactory,
}

impl Grammars {
    /// For answers in the tokens of a tokenizer.
    ///
    /// # Errors
    /// If its tokens are not bytes, or it names no token that ends an answer.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        if !tokenizer.is_of_bytes() {
            return Err(Error::Grammar(
                "the model's tokens are words, not bytes: its answers cannot be held to a form".into(),
            ));
        }
        let count = tokenizer.vocab_size();
        let ends: Vec<u32> =
            tokenizer.eos_ids().iter().copied().filter(|&id| (id as usize) < count).collect();
        let Some(&end) = ends.first() else {
            return Err(Error::Grammar("the model's files name no token that ends an answer".into()));
        };
        let words: Vec<Vec<u8>> = (0..count as u32).map(|id| word(tokenizer, id)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(count as u32, end), &words).with_eos_tokens(&ends);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let failed = |error: anyhow::Error| Error::Grammar(one_line(&error.to_string()));
        let mut factory = ParserFactory::new_simple(&env).map_err(failed)?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        Ok(Self { factory })
    }

    /// Compiles a form.
    ///
    /// # Errors
    /// What is wrong with it, or too large.
    pub fn compile(&self, form: &Form) -> Result<Grammar> {
        // Models often begin an answer with a space, which is no part of its text.
        let start = GrammarWithLexer::from_lark("start: \" \"? @answer\n".into());
        let grammar = TopLevelGrammar { grammars: vec![start, form.grammar()?], max_tokens: None };
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        // What can begin no answer is no form.
        let first = matcher.compute_mask_or_eos();
        match (matcher.get_error(), first) {
            (Some(error), _) => Err(Error::Grammar(one_line(&error))),
            (None, Err(error)) => Err(Error::Grammar(one_line(&error.to_string()))),
            (None, Ok(_)) => {
                Ok(Grammar(Arc::new(Compiled { form: form.clone(), matcher: Mutex::new(matcher) })))
            }
        }
    }
}

/// The bytes of a token; those of tokens that are no text begin with a mark.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let Some(text) = tokenizer.id_to_token(id) else { return Vec::new() };
    if tokenizer.is_special(id) || (tokenizer.is_added(id) && text.starts_with('<') && text.ends_with('>')) {
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], text.as_bytes()].concat();
    }
    tokenizer.token_bytes(id)
}

fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ").chars().take(500).collect()
}

/// A form that is ready for answers. Cloning is cheap.
#[derive(Clone)]
pub struct Grammar(Arc<Compiled>);

struct Compiled {
    form: Form,
    matcher: Mutex<Matcher>,
}

impl Grammar {
    /// What it was made of.
    #[must_use]
    pub fn form(&self) -> &Form {
        &self.0.form
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Grammar").field(&self.0.form).finish()
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        self.0.form == other.0.form
    }
}

/// What may come next in an answer, once that is computed.
struct Next {
    matcher: Option<Matcher>,
    allowed: Result<SimpleVob, String>,
}

impl Next {
    /// After a token, or at the beginning.
    fn after(mut matcher: Matcher, token: Option<u32>) -> Self {
        let consumed = token.map_or(Ok(()), |token| matcher.consume_token(token));
        let allowed = consumed.and_then(|()| matcher.compute_mask_or_eos());
        let allowed = allowed.map_err(|error| one_line(&error.to_string()));
        Self { matcher: Some(matcher), allowed }
    }
}

/// An answer on its way through a grammar.
pub(crate) struct Guide {
    coming: Receiver<Next>,
    here: OnceCell<Next>,
}

impl Guide {
    /// At the beginning of an answer; begins to compute what may come first.
    pub fn new(grammar: &Grammar) -> Self {
        let compiled = grammar.0.clone();
        Self::spawn(move || {
            let matcher = compiled.matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
            Next::after(matcher, None)
        })
    }

    fn spawn(work: impl FnOnce() -> Next + Send + 'static) -> Self {
        let (done, coming) = sync_channel(1);
        rayon::spawn(move || {
            let _ = done.send(work());
        });
        Self { coming, here: OnceCell::new() }
    }

    /// Whether what may come next is known, or why nothing can be.
    pub fn is_ready(&self) -> bool {
        if self.here.get().is_none()
            && let Ok(next) = self.coming.try_recv()
        {
            let _ = self.here.set(next);
        }
        self.here.get().is_some()
    }

    fn next(&self) -> &Next {
        self.here.get_or_init(|| {
            let lost = || Next { matcher: None, allowed: Err("its thread was lost".into()) };
            self.coming.recv().unwrap_or_else(|_| lost())
        })
    }

    /// Goes on with a token that was allowed; begins to compute what may come behind it.
    pub fn consume(&mut self, token: u32) {
        self.next();
        if let Some(Next { matcher: Some(matcher), allowed: Ok(_) }) = self.here.take() {
            *self = Self::spawn(move || Next::after(matcher, Some(token)));
        }
    }

    /// Sets the bits of the tokens that may come next, waiting until they are known; none after an error. `ends` are tokens that end
    /// the answer wherever the grammar's own end tokens may.
    pub fn write(&self, words: &mut [i32], ends: impl Iterator<Item = u32>) {
        let Ok(allowed) = &self.next().allowed else { return };
        for (word, bits) in words.iter_mut().zip(allowed.as_slice()) {
            *word = bits.cast_signed();
        }
        let env = self.next().matcher.as_ref().and_then(|matcher| matcher.tok_env().ok());
        let accepts = env.is_some_and(|env| allowed.is_allowed(env.eos_token()));
        for end in ends.filter(|_| accepts) {
            if let Some(word) = words.get_mut(end as usize / 32) {
                *word |= 1 << (end % 32);
            }
        }
    }

    /// Why nothing may come next.
    pub fn error(&self) -> Error {
        let why = self.next().allowed.as_ref().err();
        Error::Grammar(why.cloned().unwrap_or_else(|| "no token of the model can go on".into()))
    }
}

#[cfg(test)]
#[path = "grammar_tests.rs"]
mod tests;
