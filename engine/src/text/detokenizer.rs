//! Streaming detokenization.

use super::tokenizer::Decoding;
use super::{TextError, Tokenizer};

/// Turns token ids into text as they arrive.
///
/// The pieces that [`Detokenizer::push`] and [`Detokenizer::finish`] return, put together, are exactly what
/// [`Tokenizer::decode`] gives for all ids at once: no half character is ever returned (an incomplete one waits for
/// its remaining tokens; one that never completes is U+FFFD), and no space is added or lost at a piece's start.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// Bytes that do not yet form a character.
    Bytes(Vec<u8>),
    /// `ids[..shown]` are context whose text was returned, the rest waits.
    Window { ids: Vec<u32>, shown: usize },
}

impl Detokenizer {
    /// A decoder at the start of an answer; `skip_special` leaves special tokens out.
    pub fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        let state = match tokenizer.decoding() {
            Decoding::ByteLevel => State::Bytes(Vec::new()),
            Decoding::ByteFallback | Decoding::Text => State::Window { ids: Vec::new(), shown: 0 },
        };
        Self { tokenizer, skip_special, state }
    }

    /// Takes the next token and returns the text that became certain, which may be empty.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        let Some(token) = self.tokenizer.id_to_token(id) else {
            return Ok(String::new());
        };
        if self.skip_special && self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        match &mut self.state {
            State::Bytes(bytes) => {
                push_bytes(&token, bytes);
                Ok(take_text(bytes))
            }
            State::Window { ids, .. } => {
                ids.push(id);
                if self.tokenizer.decoding() == Decoding::ByteFallback && is_byte_token(&token) {
                    // A run of byte tokens is valid or invalid as a whole: wait for its end.
                    return Ok(String::new());
                }
                self.advance(false)
            }
        }
    }

    /// Takes several tokens; see [`Detokenizer::push`].
    ///
    /// # Errors
    /// As [`Detokenizer::push`].
    pub fn push_all(&mut self, ids: &[u32]) -> Result<String, TextError> {
        let mut text = String::new();
        for &id in ids {
            text += &self.push(id)?;
        }
        Ok(text)
    }

    /// The text still held back, once no more tokens will come. The decoder is then at its start again.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn finish(&mut self) -> Result<String, TextError> {
        let text = match &mut self.state {
            State::Bytes(bytes) => String::from_utf8_lossy(&std::mem::take(bytes)).into_owned(),
            State::Window { .. } => self.advance(true)?,
        };
        *self = Self::new(self.tokenizer.clone(), self.skip_special);
        Ok(text)
    }

    /// Returns the text of the waiting tokens, if it only adds to what was returned; at the `end` in any case.
    fn advance(&mut self, end: bool) -> Result<String, TextError> {
        let State::Window { ids, shown } = &mut self.state else { return Ok(String::new()) };
        if *shown == ids.len() {
            return Ok(String::new());
        }
        let before = self.tokenizer.decode(&ids[..*shown], false)?;
        let now = self.tokenizer.decode(ids, false)?;
        let common: usize =
            now.chars().zip(before.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        if now.len() == common || (common < before.len() && !end) {
            return Ok(String::new());
        }
        // The tokens just shown stay as context: decoders treat the first token of a text differently.
        ids.drain(..*shown);
        *shown = ids.len();
        Ok(now[common..].to_owned())
    }
}

/// Appends the bytes of a byte-level token.
///
/// Byte-level vocabularies spell each byte as one printable character: `!`..`~`, `¡`..`¬` and `®`..`ÿ` stand for
/// themselves, the other 68 bytes, in order, are U+0100 onwards. A token with any other character is plain text.
fn push_bytes(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for c in token.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(start);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// The bytes of a token by its name.
pub(super) fn bytes_of(token: &str, decoding: Decoding) -> Vec<u8> {
    match decoding {
        Decoding::ByteLevel => {
            let mut bytes = Vec::new();
            push_bytes(token, &mut bytes);
            bytes
        }
        Decoding::ByteFallback => match byte_token(token) {
            Some(byte) => vec![byte],
            None => token.replace('\u{2581}', " ").into_bytes(),
        },
        Decoding::Text => token.as_bytes().to_vec(),
    }
}

fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// Removes and returns the text at the front of `bytes`, leaving a last incomplete character. Invalid bytes become
/// U+FFFD exactly as `String::from_utf8_lossy` does on the whole.
fn take_text(bytes: &mut Vec<u8>) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut used = 0;
    loop {
        match std::str::from_utf8(&bytes[used..]) {
            Ok(valid) => {
                text.push_str(valid);
                used = bytes.len();
                break;
            }
            Err(e) => {
                let valid = used + e.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[used..valid]));
                used = valid;
                match e.error_len() {
                    Some(invalid) => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        used += invalid;
                    }
                    None => break,
                }
            }
        }
    }
    bytes.drain(..used);
    text
}

fn is_byte_token(token: &str) -> bool {
    byte_token(token).is_some()
}

/// The byte that `<0xNN>` stands for.
fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'))?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_alphabet_is_a_bijection() {
        let mut seen = [false; 256];
        for c in (0..0x200).filter_map(char::from_u32) {
            if let Some(byte) = byte_of(c) {
                assert!(!std::mem::replace(&mut seen[usize::from(byte)], true), "{byte} twice");
            }
        }
        assert!(seen.iter().all(|&s| s));
        // The anchors of the published alphabet: space is U+0120, newline U+010A, 0x7f U+0121, 0xa0 U+0142.
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('ġ'), Some(0x7f));
        assert_eq!(byte_of('ł'), Some(0xa0));
        assert_eq!(byte_of('Ń'), Some(0xad));
    }

    #[test]
    fn text_waits_for_whole_characters() {
        let mut bytes = vec![b'a', 0xf0, 0x9f];
        assert_eq!(take_text(&mut bytes), "a");
        bytes.extend([0xa6, 0x80, 0xe4]);
        assert_eq!(take_text(&mut bytes), "🦀");
        bytes.push(b'x');
        assert_eq!(take_text(&mut bytes), "\u{fffd}x");
        assert!(bytes.is_empty());
    }

    #[test]
    fn byte_tokens() {
        assert_eq!(bytes_of("\u{2581}a", Decoding::ByteFallback), b" a");
        assert_eq!(bytes_of("<0x0A>", Decoding::ByteFallback), b"\n");
        assert_eq!(bytes_of("Ġä", Decoding::ByteLevel), b" \xe4");
        assert!(is_byte_token("<0xE4>") && !is_byte_token("<0xE>") && !is_byte_token("<0x+4>x"));
    }
}
