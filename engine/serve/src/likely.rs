//! Log probabilities of tokens in OpenAI's shapes.

use ocelli_engine::sample::{Likely, Logprobs};
use ocelli_engine::text::Tokenizer;
use serde_json::{Map, Value as Json, json};

/// Most of the likeliest tokens that are named.
pub(crate) const MOST: u64 = 20;

/// A token as text; what is no whole character is shown as U+FFFD, and is whole in its bytes.
fn text(words: &Tokenizer, token: u32) -> (String, Vec<u8>) {
    let bytes = words.token_bytes(token);
    (String::from_utf8_lossy(&bytes).into_owned(), bytes)
}

/// As chats have it: of each token that is a part of the answer's text.
pub(crate) fn of_chat(words: &Tokenizer, all: &[Logprobs]) -> Json {
    let one = |likely: &Likely| {
        let (token, bytes) = text(words, likely.token);
        json!({"token": token, "logprob": likely.logprob, "bytes": bytes})
    };
    let entry = |of: &Logprobs| {
        let mut entry = one(&of.chosen);
        entry["top_logprobs"] = of.top.iter().map(one).collect();
        entry
    };
    let content: Vec<Json> = all.iter().filter(|of| of.shown).map(entry).collect();
    json!({"content": content, "refusal": null})
}

/// As texts have it. `offset`: characters before the first of these tokens.
pub(crate) fn of_text(words: &Tokenizer, all: &[Logprobs], mut offset: usize) -> Json {
    let (mut tokens, mut chosen, mut top, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for of in all.iter().filter(|of| of.shown) {
        let (token, _) = text(words, of.chosen.token);
        offsets.push(offset);
        offset += token.chars().count();
        tokens.push(token);
        chosen.push(of.chosen.logprob);
        let named = of.top.iter().map(|likely| (text(words, likely.token).0, json!(likely.logprob)));
        top.push(Json::Object(named.collect::<Map<_, _>>()));
    }
    json!({"tokens": tokens, "token_logprobs": chosen, "top_logprobs": top, "text_offset": offsets})
}

/// Characters of the tokens.
pub(crate) fn length(words: &Tokenizer, all: &[Logprobs]) -> usize {
    all.iter().filter(|of| of.shown).map(|of| text(words, of.chosen.token).0.chars().count()).sum()
}
