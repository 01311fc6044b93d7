//! Several files and their index.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::Checkpoint;

use super::build::{f32s, valid};
use super::{TempDir, elements};

fn model(index: &str) -> (TempDir, Result<Checkpoint, String>) {
    let dir = TempDir::new();
    let one = valid(&[("a", "F32", &[2], f32s(&[1.0, 2.0])), ("both", "F32", &[1], f32s(&[3.0]))], 0);
    let two = valid(&[("b", "F32", &[1], f32s(&[4.0])), ("both", "F32", &[1], f32s(&[5.0]))], 0);
    dir.write("one.safetensors", one);
    dir.write("two.safetensors", two);
    dir.write("broken.safetensors", b"\x10\0\0\0\0\0\0\0{}");
    dir.write("model.safetensors.index.json", index);
    let opened = Checkpoint::open(&ModelFiles::dir(&dir.0)).map_err(|e| e.to_string());
    (dir, opened)
}

#[test]
fn the_index_chooses_the_file() {
    let (dir, checkpoint) = model(
        r#"{"metadata":{"total_size":1},"weight_map":{"a":"one.safetensors","both":"two.safetensors"}}"#,
    );
    let checkpoint = checkpoint.expect("a valid index");
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "both"]);
    assert_eq!(elements::<f32>(&checkpoint.tensor("both").expect("both")), [5.0]);
    assert_eq!(elements::<f32>(&checkpoint.tensor("a").expect("a")), [1.0, 2.0]);
    assert_eq!(checkpoint.files().len(), 2);
    let text = checkpoint.tensor("b").map(|_| ()).expect_err("not in the index").to_string();
    assert!(text.ends_with("model.safetensors.index.json: no tensor `b`"), "{text}");
    drop(dir);
}

#[test]
fn indexes_that_do_not_agree_with_the_files() {
    let outside = |path: &str| format!(r#"{{"weight_map":{{"a":"{path}"}}}}"#);
    let cases = [
        ("{}".into(), "missing field `weight_map`"),
        ("[".into(), "invalid JSON: EOF"),
        (r#"{"weight_map":{}}"#.into(), "weight_map: expected tensors, found none"),
        (r#"{"weight_map":{"a":3}}"#.into(), "weight_map: tensor `a`: invalid type: integer `3`"),
        (
            outside("three.safetensors"),
            "tensor `a`: expected the file `three.safetensors`, found no such file",
        ),
        (
            outside("two.safetensors"),
            "tensor `a`: expected it in `two.safetensors`, found no such tensor there",
        ),
        (
            outside("broken.safetensors"),
            "broken.safetensors: truncated: expected a header of 16 bytes, found 2",
        ),
        (outside(""), "expected a file beside the index, found ``"),
        (outside("../one.safetensors"), "expected a file beside the index, found `../one.safetensors`"),
        (outside("x/../../one.safetensors"), "expected a file beside the index"),
        (outside("/etc/passwd"), "expected a file beside the index, found `/etc/passwd`"),
        (outside("./one.safetensors"), "expected a file beside the index"),
        (outside(r"..\\one.safetensors"), "expected a file beside the index"),
        (
            r#"{"weight_map":{"a":"one.safetensors","a":"one.safetensors"}}"#.into(),
            "weight_map: tensor `a` is listed twice",
        ),
    ];
    for (index, expected) in cases {
        let (dir, opened) = model(&index);
        let text = opened.map(|c| format!("{c:?}")).expect_err("refused");
        assert!(text.contains(expected), "expected `{expected}`, found `{text}`");
        drop(dir);
    }
}

#[test]
fn a_model_without_weights_says_what_is_there() {
    let dir = TempDir::new();
    let open = || {
        Checkpoint::open(&ModelFiles::dir(&dir.0)).map(|c| format!("{c:?}")).expect_err("refused").to_string()
    };
    assert!(open().ends_with("expected model.safetensors or model.safetensors.index.json, found neither"));
    dir.write("pytorch_model.bin", b"x");
    assert!(open().ends_with("`pytorch_model.bin` is not read: convert it to model.safetensors"));
    dir.write("model.safetensors", valid(&[], 0));
    dir.write("config.json", "{");
    assert!(open().contains("config.json: invalid JSON"));
}
