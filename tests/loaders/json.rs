//! The small files of a model: JSON as Python reads it, and links of a cache that lead nowhere.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::Checkpoint;
use ocelli_engine::{Ctx, Error, Pipeline, Precision};
use ocelli_kernels::{Backend, DeviceOptions};

use crate::{TempDir, golden};

fn model() -> TempDir {
    let dir = TempDir::new();
    for entry in std::fs::read_dir(golden("smolvlm")).expect("the golden model") {
        let entry = entry.expect("a file");
        std::fs::copy(entry.path(), dir.join(&entry.file_name().to_string_lossy())).expect("a copy");
    }
    dir
}

fn load(dir: &TempDir) -> Result<Pipeline, Error> {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let mut cx = Ctx::new(&*device, Precision::default())?;
    let files = ModelFiles::dir(&dir.0);
    let model = ocelli_models::load(&files, &mut cx)?;
    Pipeline::new(&files, model, 1)
}

/// Writes `fields` into the outermost object of a file, before its own.
fn prepend(dir: &TempDir, name: &str, fields: &str) {
    let text = std::fs::read_to_string(golden("smolvlm").join(name)).expect("a JSON file");
    dir.write(name, text.replacen('{', &format!("{{{fields},"), 1));
}

#[test]
fn what_python_reads_is_read() {
    let dir = model();
    for (name, fields) in [
        (
            "config.json",
            r#""model_type": "x", "model_type": 7, "text_config": [NaN], "y": Infinity, "y": 1e999"#,
        ),
        ("generation_config.json", r#""eos_token_id": "x", "y": -Infinity, "z": {"y": 1, "y": NaN}"#),
        ("processor_config.json", r#""image_processor": {"do_resize": NaN}, "y": "\ud800""#),
        (
            "tokenizer_config.json",
            r#""eos_token": 7, "added_tokens_decoder": NaN, "added_tokens_decoder": null"#,
        ),
    ] {
        // One by one, so that none hides behind another.
        prepend(&dir, name, fields);
        load(&dir).map(drop).unwrap_or_else(|error| panic!("{error}"));
    }
    let tokenizer = ocelli_engine::text::Tokenizer::load(&ModelFiles::dir(&dir.0)).expect("the tokenizer");
    let own =
        ocelli_engine::text::Tokenizer::load(&ModelFiles::dir(golden("smolvlm"))).expect("the tokenizer");
    assert_eq!(tokenizer.eos_ids(), own.eos_ids());
}

#[test]
fn what_is_read_has_to_make_sense() {
    for (from, to) in
        [("\"vocab_size\": ", "\"vocab_size\": NaN, \"was\": "), ("\"vision_config\"", "\"was\"")]
    {
        let dir = model();
        let text = std::fs::read_to_string(dir.join("config.json")).expect("a JSON file");
        assert!(text.contains(from));
        dir.write("config.json", text.replace(from, to));
        let error = load(&dir).map(drop).expect_err("refused").to_string();
        let field = from.split('"').nth(1).expect("a name");
        assert!(error.contains("config.json: ") && error.contains(field), "{error}");
        assert!(!error.contains("invalid JSON"), "{error}");
    }
    let dir = model();
    dir.write("config.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n");
    let error = load(&dir).map(drop).expect_err("refused");
    assert!(error.to_string().ends_with("config.json: a Git LFS pointer, not the file itself"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("git lfs pull")));
}

#[cfg(unix)]
#[test]
fn a_link_that_leads_nowhere_is_named() {
    let link = |dir: &TempDir, name: &str| {
        let _ = std::fs::remove_file(dir.join(name));
        std::os::unix::fs::symlink(format!("../../blobs/{name}"), dir.join(name)).expect("a link");
    };
    for name in [
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "model.safetensors",
    ] {
        let dir = model();
        link(&dir, name);
        let error = load(&dir).map(drop).expect_err(name);
        let expected = format!("{name}: a link to ../../blobs/{name}, which does not exist");
        assert!(error.to_string().ends_with(&expected), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("HF_HUB_OFFLINE")), "{name}");
    }
    // Shards, and their index.
    let index = r#"{"weight_map": {"a": "one.safetensors"}}"#;
    for name in ["model.safetensors.index.json", "one.safetensors"] {
        let dir = TempDir::new();
        dir.write("model.safetensors.index.json", index);
        link(&dir, name);
        let error = Checkpoint::open(&ModelFiles::dir(&dir.0)).map(drop).expect_err(name).to_string();
        assert!(
            error.ends_with(&format!("{name}: a link to ../../blobs/{name}, which does not exist")),
            "{error}"
        );
    }
}
