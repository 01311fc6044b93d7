//! Places of pictures in prompts.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Error, Prompt, Result};
use serde::Deserialize;
use serde_json::Value;

/// The prompt with each `mark` replaced by what stands for the next picture. Errors if marks and pictures differ in number.
pub fn splice(prompt: &str, mark: &str, pictures: &[String]) -> Result<String> {
    let mut pieces = prompt.split(mark);
    let places = pieces.clone().count() - 1;
    if places != pictures.len() {
        let pictures = pictures.len();
        return Err(Error::Request(format!(
            "the prompt has {places} {mark} tokens, but {pictures} pictures were given"
        )));
    }
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for (piece, picture) in pieces.zip(pictures) {
        out += picture;
        out += piece;
    }
    Ok(out)
}

/// Tokens of a rendered conversation in which each `mark` is replaced by what stands for the next picture, whose features take the
/// tokens `image`, `rows` of them for each picture.
pub fn lay_out(
    tokenizer: &Tokenizer,
    text: &str,
    mark: &str,
    pictures: &[String],
    image: u32,
    rows: &[usize],
) -> Result<Prompt> {
    Prompt::with_image_tokens(tokenizer.encode(&splice(text, mark, pictures)?)?, image, rows)
}

/// As [`lay_out`], of pictures and videos: `kinds` are marks with their tokens. Each mark is replaced by what `expand` makes of the
/// next picture's number, the mark and the text since the mark before; the picture has `rows` of the mark's token.
pub fn lay_out_kinds(
    tokenizer: &Tokenizer,
    text: &str,
    kinds: &[(&str, u32)],
    rows: &[usize],
    mut expand: impl FnMut(usize, &str, &str) -> String,
) -> Result<Prompt> {
    let (mut out, mut rest, mut places) = (String::with_capacity(text.len()), text, 0);
    let next = |rest: &str| {
        let found = kinds.iter().filter_map(|(mark, _)| Some((rest.find(mark)?, *mark)));
        found.min_by_key(|(at, _)| *at)
    };
    while let Some((at, mark)) = next(rest) {
        let before = rest.get(..at).unwrap_or_default();
        out += before;
        if places < rows.len() {
            out += &expand(places, mark, before);
        }
        rest = rest.get(at + mark.len()..).unwrap_or_default();
        places += 1;
    }
    if places != rows.len() {
        let (marks, pictures) =
            (kinds.iter().map(|kind| kind.0).collect::<Vec<_>>().join(" or "), rows.len());
        return Err(Error::Request(format!(
            "the prompt has {places} {marks} tokens, but {pictures} pictures were given"
        )));
    }
    let ids: Vec<u32> = kinds.iter().map(|kind| kind.1).collect();
    Prompt::with_tokens_of(tokenizer.encode(&(out + rest))?, &ids, rows)
}

/// The string of a special token that `tokenizer_config.json` names, at the top or among its extra special tokens.
#[must_use]
pub fn special_token(config: Option<&Value>, key: &str) -> Option<String> {
    let config = config?;
    let places =
        [Some(config), config.get("extra_special_tokens"), config.get("model_specific_special_tokens")];
    places.into_iter().flatten().find_map(|place| {
        let value = place.get(key)?;
        let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
        (!text.is_empty()).then(|| text.to_owned())
    })
}

/// The string of one of `tokenizer.json`'s added tokens, by its id.
pub fn added_token(files: &ModelFiles, id: u32) -> Result<String> {
    /// The rest is large, and passed over.
    #[derive(Deserialize)]
    struct Tokenizer {
        #[serde(default)]
        added_tokens: Vec<Value>,
    }
    let Tokenizer { added_tokens } = files.require_json("tokenizer.json")?;
    let mut added = added_tokens.iter();
    let token = added.find(|token| token.get("id").and_then(Value::as_u64) == Some(u64::from(id)));
    let content = token.and_then(|token| token.get("content")).and_then(Value::as_str);
    content.map(str::to_owned).ok_or_else(|| Error::Config {
        path: files.describe("tokenizer.json"),
        reason: format!("added_tokens: expected the image token {id}, found none"),
    })
}
