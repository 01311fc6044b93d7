//! Tokenizers in the `tokenizers` library's JSON format, with the special tokens that the files around it name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::{
    AddedToken, DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    TokenizerImpl,
};

use super::added::Names;
use super::{Detokenizer, TextError};
use crate::files::ModelFiles;

/// A tokenizer and its special tokens. Cloning is cheap: clones share the vocabulary.
///
/// Reads `tokenizer.json`, and where present `tokenizer_config.json`, `special_tokens_map.json`,
/// `added_tokens.json`, `generation_config.json` and `config.json`.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    tokenizer: tokenizers::Tokenizer,
    /// Text of named special tokens: `bos_token`, `eos_token`, `image_token`, ...
    named: BTreeMap<String, String>,
    eos_ids: Vec<u32>,
    id_bound: u32,
    decoding: Decoding,
}

/// How token strings become text; it decides what a streaming decoder has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoding {
    /// Every token is a run of bytes; the text is their concatenation read as UTF-8.
    ByteLevel,
    /// Tokens are text; `<0xNN>` tokens are bytes that form characters together.
    ByteFallback,
    /// Tokens are text.
    Text,
}

/// A tokenizer that is being read on another thread.
pub struct Reading(Source);

enum Source {
    Thread(JoinHandle<Result<Tokenizer, TextError>>),
    /// There is no thread for it.
    Files(ModelFiles),
    Read(Tokenizer),
}

impl Reading {
    /// Waits for it.
    ///
    /// # Errors
    /// Those of [`Tokenizer::load`].
    pub fn wait(self) -> Result<Tokenizer, TextError> {
        match self.0 {
            Source::Thread(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Source::Files(files) => Tokenizer::load(&files),
            Source::Read(tokenizer) => Ok(tokenizer),
        }
    }
}

impl From<Tokenizer> for Reading {
    fn from(tokenizer: Tokenizer) -> Self {
        Self(Source::Read(tokenizer))
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("id_bound", &self.inner.id_bound)
            .field("eos_ids", &self.inner.eos_ids)
            .field("decoding", &self.inner.decoding)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads the tokenizer of a model.
    ///
    /// # Errors
    /// When `tokenizer.json` is absent or invalid, or when another file gives a token an id that it does not have.
    pub fn load(files: &ModelFiles) -> Result<Self, TextError> {
        let path = files.describe("tokenizer.json");
        let bytes = files.require("tokenizer.json")?;
        let mut tokenizer =
            parsed(&bytes).map_err(|reason| TextError::Tokenizer { path: path.clone(), reason })?;
        // Padding and truncation that happened to be on when the file was saved are not part of encoding.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|e| TextError::Tokenizer { path: path.clone(), reason: e.to_string() })?;

        let config: Value = files.json("tokenizer_config.json")?.unwrap_or_default();
        let map: Value = files.json("special_tokens_map.json")?.unwrap_or_default();
        let names = Names::of(&config, &map);
        super::added::declare(&mut tokenizer, files, &config, &names)?;
        super::added::mark_special(&mut tokenizer, &names)
            .map_err(|reason| TextError::Tokenizer { path: path.clone(), reason })?;
        let named = names.into_texts();

        let eos_ids = eos_ids(files, &tokenizer, named.get("eos_token").map(String::as_str))?;
        let id_bound = id_bound(&tokenizer);
        let decoding = decoding(tokenizer.get_decoder());
        Ok(Self { inner: Arc::new(Inner { tokenizer, named, eos_ids, id_bound, decoding }) })
    }

    /// Begins to [`load`](Self::load) on another thread: large vocabularies take a while.
    pub fn begin(files: &ModelFiles) -> Reading {
        let files = files.clone();
        let theirs = files.clone();
        let thread = std::thread::Builder::new().name("ocelli-tokenizer".into());
        Reading(match thread.spawn(move || Self::load(&theirs)) {
            Ok(thread) => Source::Thread(thread),
            Err(_) => Source::Files(files),
        })
    }

    /// The same with special tokens that code adds to those of the files: the ones that no file has get the ids after the last, in
    /// order.
    ///
    /// # Errors
    /// When the tokenizer refuses them.
    pub fn with_added(mut self, tokens: &[String]) -> Result<Self, TextError> {
        if !tokens.is_empty() {
            let inner = Arc::make_mut(&mut self.inner);
            let tokens = tokens.iter().map(|token| AddedToken::from(token.clone(), true));
            inner.tokenizer.add_special_tokens(tokens).map_err(|e| TextError::Encode(e.to_string()))?;
            inner.id_bound = id_bound(&inner.tokenizer);
        }
        Ok(self)
    }

    /// Token ids of a prompt. The tokenizer's own BOS/EOS template is applied unless the text already begins with the
    /// BOS token, as a rendered chat template usually does, so that BOS is never doubled.
    ///
    /// Special tokens that are written out in `text` become their ids, as in transformers.
    ///
    /// # Errors
    /// When the tokenizer's own rules fail on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let has_bos =
            self.named_token("bos_token").is_some_and(|bos| !bos.is_empty() && text.starts_with(bos));
        self.encode_with(text, !has_bos)
    }

    /// Token ids of the text alone, without the tokenizer's BOS/EOS template.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, template: bool) -> Result<Vec<u32>, TextError> {
        let encoding =
            self.inner.tokenizer.encode_fast(text, template).map_err(|e| TextError::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids; `skip_special` leaves special tokens out. An id that the tokenizer does not have gives no
    /// text: embeddings are often padded beyond the vocabulary, and a model may choose such a row.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        self.inner.tokenizer.decode(ids, skip_special).map_err(|e| TextError::Decode(e.to_string()))
    }

    /// A streaming decoder over this tokenizer; see [`Detokenizer`].
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), skip_special)
    }

    /// The id of a token given by its text, e.g. `<image>`.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(token)
    }

    /// The vocabulary's string for an id (byte-level tokenizers spell bytes as printable characters).
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.tokenizer.id_to_token(id)
    }

    /// True for special tokens such as BOS, EOS or `<image>`; ordinary added tokens are not special.
    pub fn is_special(&self, id: u32) -> bool {
        let vocabulary = self.inner.tokenizer.get_added_vocabulary();
        vocabulary.simple_id_to_token(id).is_some_and(|token| vocabulary.is_special_token(&token))
    }

    /// True for added tokens, special or not: text that is one token wherever it stands.
    pub fn is_added(&self, id: u32) -> bool {
        self.inner.tokenizer.get_added_vocabulary().simple_id_to_token(id).is_some()
    }

    /// Whether the text of an answer is the bytes of its tokens put together, but for a space before it.
    pub fn is_of_bytes(&self) -> bool {
        self.inner.decoding != Decoding::Text
    }

    /// Bytes that a token adds to a text; those of its name where tokens are words. None of an id that the tokenizer does not have.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.id_to_token(id)
            .map(|token| super::detokenizer::bytes_of(&token, self.decoding()))
            .unwrap_or_default()
    }

    /// One past the largest id, added tokens included. The model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.id_bound as usize
    }

    /// Text of a special token by its key in `tokenizer_config.json`: `bos_token`, `eos_token`, `pad_token`,
    /// `image_token`, `fake_image_token`, ...
    pub fn named_token(&self, key: &str) -> Option<&str> {
        self.inner.named.get(key).map(String::as_str)
    }

    /// Id of a special token by its key; see [`Tokenizer::named_token`].
    pub fn named_id(&self, key: &str) -> Option<u32> {
        self.token_to_id(self.named_token(key)?)
    }

    /// All named special tokens, key to text.
    pub fn named_tokens(&self) -> &BTreeMap<String, String> {
        &self.inner.named
    }

    /// Ids that end an answer: `eos_token_id` of `generation_config.json` (else of `config.json`), and the
    /// tokenizer's own EOS token. Sorted, without repeats; may be empty.
    pub fn eos_ids(&self) -> &[u32] {
        &self.inner.eos_ids
    }

    /// Ids that end an answer because a stop text is exactly one added token, such as `<end_of_utterance>`. Special tokens
    /// are left out of the text that stop texts are looked for in, so such a text would never be met there.
    pub fn stop_ids(&self, stops: &[String]) -> Vec<u32> {
        let added = self.inner.tokenizer.get_added_vocabulary().get_vocab();
        let mut ids: Vec<u32> = stops
            .iter()
            .filter_map(|stop| added.get(stop).or_else(|| added.get(stop.trim())).copied())
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The special token inside a stop text that [`Tokenizer::stop_ids`] has no id for: the text can be met only if the
    /// model spells the token with others.
    pub fn hidden_in(&self, stop: &str) -> Option<&str> {
        if !self.stop_ids(&[stop.to_owned()]).is_empty() {
            return None;
        }
        let vocabulary = self.inner.tokenizer.get_added_vocabulary();
        let tokens = vocabulary.get_vocab().keys().map(String::as_str);
        tokens
            .filter(|token| vocabulary.is_special_token(token) && stop.contains(token))
            .max_by_key(|t| t.len())
    }

    pub(super) fn decoding(&self) -> Decoding {
        self.inner.decoding
    }
}

/// The tokenizer of a file. Byte-pair models, which are the large ones, are read as they come, not by way of a tree of values.
fn parsed(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    type Direct =
        TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;
    match serde_json::from_slice::<Direct>(bytes) {
        Ok(tokenizer) => Ok(tokenizer.into()),
        Err(_) => tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| e.to_string()),
    }
}

/// One past the largest id.
fn id_bound(tokenizer: &tokenizers::Tokenizer) -> u32 {
    let past = |ids: &mut dyn Iterator<Item = &u32>| ids.max().map_or(0, |id| id.saturating_add(1));
    let model = tokenizer.get_model();
    let size = model.get_vocab_size() as u32;
    // Where each of so many ids has a token, they are all that there are; a copy of the vocabulary takes longer.
    match (0..size).all(|id| model.id_to_token(id).is_some()) {
        true => size.max(past(&mut tokenizer.get_added_vocabulary().get_vocab().values())),
        false => past(&mut tokenizer.get_vocab(true).values()),
    }
}

fn eos_ids(
    files: &ModelFiles,
    tokenizer: &tokenizers::Tokenizer,
    eos_token: Option<&str>,
) -> Result<Vec<u32>, TextError> {
    let generation: Value = files.json("generation_config.json")?.unwrap_or_default();
    let config: Value = files.json("config.json")?.unwrap_or_default();
    let null = Value::Null;
    let candidates = [
        ("generation_config.json", generation.get("eos_token_id")),
        ("config.json", config.get("eos_token_id")),
        ("config.json", config.get("text_config").and_then(|text| text.get("eos_token_id"))),
    ];
    let (file, value) = candidates
        .into_iter()
        .find_map(|(file, value)| value.filter(|v| !v.is_null()).map(|v| (file, v)))
        .unwrap_or(("", &null));
    let bad = || TextError::Tokenizer {
        path: files.describe(file),
        reason: format!("eos_token_id: expected an id or a list of ids, found {value}"),
    };
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    let mut ids = match value {
        Value::Null => Vec::new(),
        Value::Array(list) => list.iter().map(id).collect::<Option<Vec<u32>>>().ok_or_else(bad)?,
        one => vec![id(one).ok_or_else(bad)?],
    };
    ids.extend(eos_token.and_then(|token| tokenizer.token_to_id(token)));
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn decoding(decoder: Option<&DecoderWrapper>) -> Decoding {
    match decoder {
        Some(DecoderWrapper::ByteLevel(_)) => Decoding::ByteLevel,
        Some(DecoderWrapper::ByteFallback(_)) => Decoding::ByteFallback,
        Some(DecoderWrapper::Sequence(steps)) => {
            let mut steps = steps.get_decoders().iter();
            match steps.len() {
                1 => decoding(steps.next()),
                _ if steps.any(|d| matches!(d, DecoderWrapper::ByteFallback(_))) => Decoding::ByteFallback,
                _ => Decoding::Text,
            }
        }
        _ => Decoding::Text,
    }
}
