//! Tokenizers of published models, which `tests/tokenizers.sh` fetches, against the tokenizers library
//! (`golden/text/real_tokenizers.py`).

use std::path::Path;

use serde_json::{Value, json};

use crate::tokenizer;

#[test]
fn ids_are_those_of_the_tokenizers_library() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/text/real_tokenizers.json");
    let data: Value = serde_json::from_slice(&std::fs::read(data).unwrap()).unwrap();
    let Some(root) = std::env::var_os("OCELLI_TOKENIZERS") else {
        return ocelli_tests::skip("tokenizers", "OCELLI_TOKENIZERS names no folder of tests/tokenizers.sh");
    };
    let texts: Vec<&str> = data["texts"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for (model, rows) in data["models"].as_object().unwrap() {
        let tokenizer = tokenizer(&Path::new(&root).join(model));
        let bos = tokenizer.named_token("bos_token").unwrap_or("\0").to_owned();
        let rows = rows.as_array().unwrap();
        assert_eq!(rows.len(), texts.len());
        for (text, row) in texts.iter().zip(rows) {
            let plain = tokenizer.encode_plain(text).unwrap();
            assert_eq!(json!(plain), row["plain"], "{model} {text:?}");
            // The beginning is not doubled where it is written out.
            if !text.starts_with(&bos) {
                let full = row.get("ids").unwrap_or(&row["plain"]);
                assert_eq!(json!(tokenizer.encode(text).unwrap()), *full, "{model} {text:?}");
            }
            let back = row.get("text").map_or(*text, |back| back.as_str().unwrap());
            assert_eq!(tokenizer.decode(&plain, false).unwrap(), back, "{model} {text:?}");
            let mut stream = tokenizer.detokenizer(false);
            let streamed = stream.push_all(&plain).unwrap() + &stream.finish().unwrap();
            assert_eq!(streamed, back, "{model} {text:?}, token by token");
        }
    }
}
