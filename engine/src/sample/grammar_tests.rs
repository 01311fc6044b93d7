use std::path::Path;

use super::*;
use crate::files::ModelFiles;

fn tokenizer(path: &str) -> Tokenizer {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    Tokenizer::load(&ModelFiles::Dir(root.join(path))).unwrap()
}

/// An answer whose tokens are drawn among those that a form allows, an end token where that is the draw; with the ids that may end it.
fn walk(tokenizer: &Tokenizer, grammar: &Grammar, seed: u64, most: usize) -> Option<String> {
    let (mut guide, mut state, mut answer) = (Guide::new(grammar), seed, Vec::new());
    let extra = tokenizer.vocab_size() as u32 - 1;
    for _ in 0..most {
        let allowed = |ends: &[u32]| -> Vec<u32> {
            let mut words = vec![0; tokenizer.vocab_size().div_ceil(32)];
            guide.write(&mut words, ends.iter().copied());
            let has = |id: &u32| words[*id as usize / 32] >> (id % 32) & 1 == 1;
            (0..tokenizer.vocab_size() as u32).filter(has).collect()
        };
        let ids = allowed(&[extra]);
        // In some vocabularies the last token has a text, which the form may allow.
        let is_text = allowed(&[]).contains(&extra);
        assert!(!ids.is_empty(), "{:?}: {}", answer, guide.error());
        let ends = |id: &u32| tokenizer.eos_ids().contains(id);
        // Other end tokens may come where the tokenizer's may, and nowhere else.
        assert_eq!(ids.contains(&extra), is_text || ids.iter().any(ends), "{answer:?}");
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let token = ids[(state >> 33) as usize % ids.len()];
        if ends(&token) || (token == extra && !is_text) {
            return Some(tokenizer.decode(&answer, false).unwrap());
        }
        answer.push(token);
        guide.consume(token);
    }
    None
}

#[test]
fn walks_through_a_form_give_answers_of_that_form() {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["count", "names"],
        "properties": {
            "count": {"type": "integer", "minimum": 0, "maximum": 120},
            "names": {"type": "array", "items": {"enum": ["round", "square", "größer"]}, "maxItems": 3},
        },
    });
    // Byte-level tokens, tokens with bytes to fall back to, and a large vocabulary of such.
    for path in
        ["models/demo/model", "tests/golden/llama", "tests/golden/text/gemma3", "tests/golden/qwen3_vl"]
    {
        let tokenizer = tokenizer(path);
        let grammars = Grammars::new(&tokenizer).unwrap();
        let of = |form: Form| grammars.compile(&form).unwrap();
        let (count, regex) =
            (of(Form::Schema(schema.clone())), of(Form::Regex("[a-c]{2,5}(x|[0-9]+)".into())));
        let choices =
            of(Form::Choices(vec!["two".into(), "twenty".into(), "a \"b\"\n".into(), "größer".into()]));
        let lark = "start: sum\nsum: term (\"+\" term)*\nterm: NUMBER | \"(\" sum \")\"\nNUMBER: /[0-9]/\n";
        let lark = of(Form::Lark(lark.into()));
        let mut found = 0;
        for seed in 0..12 {
            let answer = walk(&tokenizer, &count, seed, 200).unwrap_or_else(|| panic!("{path}: no end"));
            let value: Value =
                serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
            assert!(value["count"].as_u64().unwrap() <= 120, "{answer}");
            let names = value["names"].as_array().unwrap();
            assert!(
                names.len() <= 3
                    && names
                        .iter()
                        .all(|name| ["round", "square", "größer"].contains(&name.as_str().unwrap()))
            );
            assert!(answer.contains("\"count\": ") && answer.contains(", \"names\": ["), "{answer}");

            if let Some(answer) = walk(&tokenizer, &regex, seed, 60) {
                let letters = answer.trim_start().trim_start_matches(|c| ('a'..='c').contains(&c));
                let digits = !letters.is_empty() && letters.bytes().all(|byte| byte.is_ascii_digit());
                assert!(letters == "x" || digits, "{path}: {answer:?}");
                found += 1;
            }
            let answer = walk(&tokenizer, &choices, seed, 60).unwrap();
            let answer = answer.strip_prefix(' ').unwrap_or(&answer);
            assert!(["two", "twenty", "a \"b\"\n", "größer"].contains(&answer), "{path}: {answer:?}");
            if let Some(answer) = walk(&tokenizer, &lark, seed, 40) {
                let depth = |a: &str| a.matches('(').count() == a.matches(')').count() && !a.contains("()");
                assert!(
                    depth(&answer)
                        && answer
                            .trim_start()
                            .starts_with(['(', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']),
                    "{answer}"
                );
                found += 1;
            }
        }
        assert!(found >= 4, "{path}: {found}");
    }
}

#[test]
fn what_is_no_form_is_told() {
    let grammars = Grammars::new(&tokenizer("models/demo/model")).unwrap();
    let refused = |form: Form| match grammars.compile(&form) {
        Err(Error::Grammar(why)) => why,
        other => panic!("{other:?}"),
    };
    for (form, words) in [
        (Form::Schema(json!({"type": "count"})), "count"),
        (Form::Schema(json!([1])), "object"),
        (Form::Schema(json!({"$ref": "#/nowhere"})), "nowhere"),
        (Form::Regex("a(b".into()), "unclosed"),
        (Form::Lark("start: thing\n".into()), "thing"),
        (Form::Choices(vec![]), "found 0"),
        (Form::Choices(vec!["a".into(), String::new()]), "one of them empty"),
    ] {
        let why = refused(form.clone());
        assert!(why.contains(words) && !why.contains('\n') && why.len() <= 600, "{form:?}: {why}");
    }
    match Grammars::new(&tokenizer("tests/golden/blip")) {
        Err(Error::Grammar(why)) => assert!(why.contains("words"), "{why}"),
        _ => panic!("tokens that are words"),
    }
}

#[test]
fn a_token_that_is_not_allowed_ends_the_guide() {
    let tokenizer = tokenizer("models/demo/model");
    let grammar = Grammars::new(&tokenizer).unwrap().compile(&Form::Choices(vec!["two".into()])).unwrap();
    let mut guide = Guide::new(&grammar);
    guide.consume(tokenizer.encode_plain("{").unwrap()[0]);
    let mut words = vec![0; 16];
    guide.write(&mut words, std::iter::empty());
    assert!(words.iter().all(|&word| word == 0));
    assert!(matches!(guide.error(), Error::Grammar(_)));
}
