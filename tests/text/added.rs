//! Flags of added tokens that the files around `tokenizer.json` give, against transformers (`golden/text/added_tokens.py`),
//! and stop texts that are tokens.

use std::path::Path;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::text::Tokenizer;
use serde_json::{Value, json};

use crate::{demo_dir, tokenizer};

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A family's tokenizer with the two tokens of the data, and the files of a case beside it.
fn load(data: &Value, row: &Value) -> Tokenizer {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/text");
    let mut base = read(&dir.join(row["family"].as_str().unwrap()).join("tokenizer.json"));
    let words = base["model"]["vocab"].as_object().unwrap().values();
    let added = base["added_tokens"].as_array().unwrap().iter().map(|token| &token["id"]);
    let next = words.chain(added).filter_map(Value::as_u64).max().unwrap() + 1;
    for (i, key) in ["mark", "plain"].into_iter().enumerate() {
        let mut token = data[key].clone();
        token["id"] = json!(next + i as u64);
        base["added_tokens"].as_array_mut().unwrap().push(token);
    }
    let mut files = vec![("tokenizer.json", &*base.to_string().into_bytes().leak())];
    for (name, content) in row["files"].as_object().unwrap() {
        files.push((name.clone().leak(), content.to_string().into_bytes().leak()));
    }
    Tokenizer::load(&ModelFiles::Embedded { label: "case", files: files.leak() }).unwrap()
}

#[test]
fn flags_are_those_of_transformers() {
    let data = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/text/added_tokens.json"));
    let (mut as_it_is, mut changed) = (Value::Null, 0);
    for row in data["rows"].as_array().unwrap() {
        let tokenizer = load(&data, row);
        let prompts = data["prompts"].as_array().unwrap().iter();
        for (i, prompt) in prompts.map(|prompt| prompt.as_str().unwrap()).enumerate() {
            let what = format!("{} {}: {prompt:?}", row["family"], row["case"]);
            let ids = tokenizer.encode_plain(prompt).unwrap();
            assert_eq!(json!(ids), row["ids"][i], "{what}");
            assert_eq!(json!(tokenizer.decode(&ids, true).unwrap()), row["shown"][i], "{what}");
            let mut stream = tokenizer.detokenizer(true);
            let streamed = stream.push_all(&ids).unwrap() + &stream.finish().unwrap();
            assert_eq!(json!(streamed), row["shown"][i], "{what}");
        }
        if row["case"] == "as it is" {
            as_it_is = row.clone();
        }
        changed += usize::from(row["ids"] != as_it_is["ids"] || row["shown"] != as_it_is["shown"]);
    }
    assert!(changed >= 40, "{changed}");
}

/// A token that is declared under another id is an error and changes nothing.
#[test]
fn ids_must_be_those_of_the_tokenizer() {
    let tokenizer_json = std::fs::read(demo_dir().join("tokenizer.json")).unwrap();
    let config = json!({"added_tokens_decoder": {"7": {"content": "<image>", "lstrip": true}}}).to_string();
    let files = vec![
        ("tokenizer.json", &*tokenizer_json.leak()),
        ("tokenizer_config.json", &*config.into_bytes().leak()),
    ];
    let e =
        Tokenizer::load(&ModelFiles::Embedded { label: "m", files: files.leak() }).unwrap_err().to_string();
    assert_eq!(e, "m:tokenizer_config.json: token \"<image>\": expected id 7, found 473 in tokenizer.json");
}

#[test]
fn stop_texts_that_are_tokens() {
    let smolvlm = tokenizer(&Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/smolvlm"));
    let ids = |stops: &[&str]| smolvlm.stop_ids(&stops.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
    assert_eq!(ids(&["<row_3_col_5>"]), [smolvlm.token_to_id("<row_3_col_5>").unwrap()]);
    assert_eq!(ids(&["<end_of_utterance>\n", "x", "<image>", "<image>"]), [494, 495]);
    // Ordinary words are met in the text itself, with any token around them.
    assert_eq!(ids(&["A", ".", "the", "", "\n", "</end>"]), [0_u32; 0]);
    for whole in smolvlm.named_tokens().values() {
        assert_eq!(ids(&[whole]).len(), 1, "{whole}");
        assert_eq!(smolvlm.hidden_in(whole), None);
    }
    assert_eq!(smolvlm.hidden_in("x<image>"), Some("<image>"));
    assert_eq!(smolvlm.hidden_in("<end_of_utterance>User"), Some("<end_of_utterance>"));
    assert_eq!(smolvlm.hidden_in("User:"), None);
}
