use std::path::Path;

use ocelli_engine::text::{StopMatcher, Tokenizer};
use proptest::prelude::*;

use crate::{demo_dir, golden_dirs, tokenizer};

fn all() -> Vec<Tokenizer> {
    // WordPiece, BPE with `</w>`, Unigram: decoders that treat the first or last token differently.
    let others = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/tokenizers");
    let others = ["blip", "clip", "siglip", "siglip2"].map(|name| others.join(name));
    golden_dirs().iter().chain(&others).chain([&demo_dir()]).map(|dir| tokenizer(dir)).collect()
}

thread_local! {
    static TOKENIZERS: Vec<Tokenizer> = all();
}

/// Streams the ids and checks every piece: the concatenation is the whole text, whatever was returned so far is a
/// beginning of it, and a replacement character never appears where the whole text has none.
fn check_stream(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Result<(), TestCaseError> {
    let whole = tokenizer.decode(ids, skip_special).unwrap();
    let mut stream = tokenizer.detokenizer(skip_special);
    let mut text = String::new();
    for &id in ids {
        text += &stream.push(id).unwrap();
        prop_assert!(whole.starts_with(&text), "{:?} does not begin {:?}", text, whole);
    }
    text += &stream.finish().unwrap();
    prop_assert_eq!(text, whole);
    Ok(())
}

fn text() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        "[a-zA-Z0-9 .,!?'\n]{0,12}",
        "[\u{4e00}-\u{4fff}]{1,4}",
        "[\u{1f300}-\u{1f64f}]{1,3}",
        "\\PC{0,6}",
        Just("👩\u{200d}👩\u{200d}👧".to_owned()),
        Just("<image>".to_owned()),
        Just("  ".to_owned()),
    ];
    prop::collection::vec(word, 0..8).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn text_survives_streaming(text in text(), skip: bool) {
        TOKENIZERS.with(|all| {
            for tokenizer in all {
                let ids = tokenizer.encode(&text).unwrap();
                check_stream(tokenizer, &ids, skip)?;
            }
            Ok::<(), TestCaseError>(())
        })?;
    }

    #[test]
    fn byte_level_text_comes_back_exactly(text in text()) {
        TOKENIZERS.with(|all| {
            // The last one is the demo tokenizer: byte-level without normalization.
            let demo = all.last().unwrap();
            let ids = demo.encode_plain(&text).unwrap();
            let mut stream = demo.detokenizer(false);
            let mut back = stream.push_all(&ids).unwrap();
            back += &stream.finish().unwrap();
            prop_assert_eq!(back, text);
            Ok::<(), TestCaseError>(())
        })?;
    }

    #[test]
    fn any_ids_survive_streaming(ids in prop::collection::vec(0u32..2000, 0..40), skip: bool) {
        TOKENIZERS.with(|all| {
            for tokenizer in all {
                let known: Vec<u32> = ids
                    .iter()
                    .map(|id| id % tokenizer.vocab_size() as u32)
                    .filter(|id| tokenizer.id_to_token(*id).is_some())
                    .collect();
                check_stream(tokenizer, &known, skip)?;
            }
            Ok::<(), TestCaseError>(())
        })?;
    }

    #[test]
    fn stops_do_not_depend_on_the_pieces(
        text in "[abc é]{0,24}",
        stops in prop::collection::vec("[abc é]{1,4}", 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let run = |pieces: &[&str]| {
            let mut matcher = StopMatcher::new(&stops);
            let (mut out, mut stopped) = (String::new(), None);
            for piece in pieces {
                let step = matcher.push(piece);
                out += &step.text;
                stopped = stopped.or(step.stopped);
            }
            out += &matcher.finish();
            (out, stopped)
        };
        // By definition: the stop string with the least end, then the least start.
        let first = stops
            .iter()
            .enumerate()
            .filter_map(|(i, s)| text.find(s.as_str()).map(|at| (at + s.len(), at, i)))
            .min();
        let expected = match first {
            Some((_, at, i)) => (text[..at].to_owned(), Some(i)),
            None => (text.clone(), None),
        };
        let chars: Vec<usize> = text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
        let mut at: Vec<usize> = cuts.iter().map(|cut| *cut.get(&chars)).chain([0, text.len()]).collect();
        at.sort_unstable();
        let pieces: Vec<&str> = at.windows(2).map(|w| &text[w[0]..w[1]]).collect();
        prop_assert_eq!(run(&pieces), expected.clone());
        let single: Vec<&str> = chars.windows(2).map(|w| &text[w[0]..w[1]]).collect();
        prop_assert_eq!(run(&single), expected);
    }
}

#[test]
fn characters_over_token_boundaries() {
    let demo = tokenizer(&demo_dir());
    for text in ["🦀", "日本語", "ÄÖÜ", "👩\u{200d}👩\u{200d}👧"] {
        let ids = demo.encode_plain(text).unwrap();
        assert!(ids.len() > text.chars().count(), "{text}: some character takes several tokens");
        let mut stream = demo.detokenizer(true);
        for &id in &ids {
            let piece = stream.push(id).unwrap();
            assert!(!piece.contains('\u{fffd}'), "{text}: {piece:?}");
        }
        assert_eq!(stream.finish().unwrap(), "");
        // The first token alone is half a character: it shows only at the end, as U+FFFD.
        assert_eq!(stream.push(ids[0]).unwrap(), "");
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    }
}

/// Sentencepiece-style tokenizers write a space before each word; the first one of an answer is not shown.
#[test]
fn leading_space_is_shown_once() {
    let llava =
        golden_dirs().into_iter().find(|dir| dir.ends_with("llava")).map(|dir| tokenizer(&dir)).unwrap();
    let ids = llava.encode_plain("the house is the house").unwrap();
    let mut stream = llava.detokenizer(true);
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert!(!pieces[0].starts_with(' ') && pieces.iter().skip(1).any(|p| p.starts_with(' ')), "{pieces:?}");
    assert_eq!(pieces.concat() + &stream.finish().unwrap(), "the house is the house");
}
