//! Added tokens as the files around `tokenizer.json` declare them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::AddedToken;

use super::TextError;
use crate::files::ModelFiles;

/// Tokens that `tokenizer_config.json` and `special_tokens_map.json` name.
pub(super) struct Names {
    /// By key: `bos_token`, `image_token`, ...
    pub named: BTreeMap<String, AddedToken>,
    /// Special tokens without a key.
    pub extra: Vec<AddedToken>,
    /// By key too, but only to be looked up: they do not change how text is cut into tokens.
    pub unused: BTreeMap<String, AddedToken>,
}

impl Names {
    /// Reads them as transformers does: where `tokenizer_config.json` has an `added_tokens_decoder`,
    /// `special_tokens_map.json` does not count, otherwise it wins.
    pub fn of(config: &Value, map: &Value) -> Self {
        let mut names = Self::of_one(config);
        let other = Self::of_one(map);
        if config.get("added_tokens_decoder").is_some() {
            names.unused = other.named;
        } else {
            names.named.extend(other.named);
            names.extra.extend(other.extra);
        }
        names
    }

    fn of_one(file: &Value) -> Self {
        let mut names = Self { named: BTreeMap::new(), extra: Vec::new(), unused: BTreeMap::new() };
        for (key, value) in file.as_object().into_iter().flatten() {
            if key.ends_with("_token") {
                if let Some(token) = named_token(value) {
                    names.named.insert(key.clone(), token);
                }
            } else if matches!(key.as_str(), "additional_special_tokens" | "extra_special_tokens") {
                match value {
                    Value::Array(list) => names.extra.extend(list.iter().filter_map(named_token)),
                    Value::Object(map) => {
                        for (name, value) in map {
                            if let Some(token) = named_token(value) {
                                names.named.entry(name.clone()).or_insert(token);
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        names
    }

    /// Text by key.
    pub fn into_texts(self) -> BTreeMap<String, String> {
        let all = self.unused.into_iter().chain(self.named);
        all.map(|(key, token)| (key, token.content)).collect()
    }
}

/// A special token written as a string or as an object with `content` and flags.
fn named_token(value: &Value) -> Option<AddedToken> {
    let token = match value {
        Value::String(text) => AddedToken::from(text.clone(), true),
        value => {
            let mut declared = Declared::deserialize(value).ok()?;
            declared.special = true;
            declared.token()
        }
    };
    (!token.content.is_empty()).then_some(token)
}

/// An added token as transformers writes it.
#[derive(Deserialize)]
struct Declared {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl Declared {
    fn token(self) -> AddedToken {
        AddedToken::from(self.content, self.special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized.unwrap_or(!self.special))
    }
}

/// Adds the tokens that `added_tokens_decoder` (of `tokenizer_config.json`) and `added_tokens.json` declare and
/// `tokenizer.json` lacks; each must get the id that it is declared with. A token of `tokenizer.json` gets the flags that
/// `added_tokens_decoder` gives it.
pub(super) fn declare(
    tokenizer: &mut tokenizers::Tokenizer,
    files: &ModelFiles,
    config: &Value,
    names: &Names,
) -> Result<(), TextError> {
    let mut declared: BTreeMap<u32, (&str, AddedToken)> = BTreeMap::new();
    const DECODER: &str = "tokenizer_config.json";
    for (id, value) in config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
        let bad = |reason: String| TextError::Tokenizer {
            path: files.describe(DECODER),
            reason: format!("added_tokens_decoder.{id}: {reason}"),
        };
        let mut token = Declared::deserialize(value).map_err(|e| bad(e.to_string()))?.token();
        token.special |= names.named.values().any(|named| named.content == token.content);
        let number = id.parse().map_err(|_| bad("expected a token id as key".into()))?;
        declared.insert(number, (DECODER, token));
    }
    const LEGACY: &str = "added_tokens.json";
    for (text, id) in files.json::<BTreeMap<String, u32>>(LEGACY)?.unwrap_or_default() {
        declared.entry(id).or_insert((LEGACY, AddedToken::from(text, false)));
    }
    // At once: each call goes through all tokens that were added before. In order of ids, so that each new one gets its own.
    let known = |token: &AddedToken| tokenizer.token_to_id(&token.content);
    // Checked first, so that no token gets another id than it is declared with.
    let fits = |id: &u32, file: &str, token: &AddedToken| match known(token) {
        None => true,
        Some(known) => known == *id && file == DECODER,
    };
    let vocabulary = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    let is_there = |id: &u32, token: &AddedToken| vocabulary.get(id).is_some_and(|there| same(there, token));
    let new: Vec<AddedToken> = declared
        .iter()
        .filter(|(id, (file, token))| fits(id, file, token) && !is_there(id, token))
        .map(|(_, (_, token))| token.clone())
        .collect();
    if !new.is_empty() {
        tokenizer
            .add_tokens(new)
            .map_err(|e| TextError::Tokenizer { path: files.describe(DECODER), reason: e.to_string() })?;
    }
    for (id, (file, token)) in declared {
        let found = tokenizer.token_to_id(&token.content).unwrap_or(u32::MAX);
        if found != id {
            return Err(TextError::Tokenizer {
                path: files.describe(file),
                reason: format!(
                    "token {:?}: expected id {id}, found {found} in tokenizer.json",
                    token.content
                ),
            });
        }
    }
    Ok(())
}

/// Whether two tokens are alike in everything, which `==` does not look at.
fn same(a: &AddedToken, b: &AddedToken) -> bool {
    let all = |token: &AddedToken| {
        let flags = [token.single_word, token.lstrip, token.rstrip, token.normalized, token.special];
        (token.content.clone(), flags)
    };
    all(a) == all(b)
}

/// Makes named tokens special, with the other flags that they have, and adds named and extra ones that are words of the
/// model's vocabulary. A token that no id exists for stays plain text rather than getting one past the embedding.
pub(super) fn mark_special(tokenizer: &mut tokenizers::Tokenizer, names: &Names) -> Result<(), String> {
    let vocabulary = tokenizer.get_added_vocabulary();
    let added = |content: &str| {
        let id = vocabulary.get_vocab().get(content)?;
        vocabulary.get_added_tokens_decoder().get(id)
    };
    let named = names.named.values().filter_map(|token| match added(&token.content) {
        Some(found) if found.special => None,
        Some(found) => {
            let mut found = found.clone();
            found.special = true;
            Some(found)
        }
        None => Some(token.clone()),
    });
    let extra = names.extra.iter().filter(|token| added(&token.content).is_none()).cloned();
    let tokens: Vec<AddedToken> =
        named.chain(extra).filter(|token| tokenizer.token_to_id(&token.content).is_some()).collect();
    if !tokens.is_empty() {
        tokenizer.add_special_tokens(tokens).map_err(|e| e.to_string())?;
    }
    Ok(())
}
