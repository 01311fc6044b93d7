//! Files that are not what they should be: each refusal with its text.

use std::sync::Arc;

use ocelli_engine::weights::{MAX_HEADER, TensorFile};

use super::TempDir;
use super::build::{f32s, file, valid};

fn refusal(bytes: Vec<u8>) -> String {
    match TensorFile::in_memory("m.safetensors", Arc::from(bytes)) {
        Ok(file) => panic!("was accepted: {file:?}"),
        Err(e) => e.to_string(),
    }
}

/// A header with one tensor `x` and this rest of its entry, over `data` bytes.
fn entry(rest: &str, data: usize) -> Vec<u8> {
    file(&format!("{{\"x\":{{{rest}}}}}"), &vec![0; data])
}

#[test]
fn every_refusal_says_what_and_where() {
    let good = r#""dtype":"F32","shape":[2,3],"data_offsets":[0,24]"#;
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
        )
    };
    let mut latin = entry(good, 24);
    latin[10] = 0xff;
    let long = |n: u64| [&n.to_le_bytes()[..], b"{}"].concat();
    let many_axes = format!(r#""dtype":"U8","shape":[{}],"data_offsets":[0,1]"#, vec!["1"; 17].join(","));
    let deep = format!(r#""dtype":{},"shape":[],"data_offsets":[0,1]"#, "[".repeat(100_000));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "m.safetensors: empty file; expected safetensors"),
        (b"abc".to_vec(), "m.safetensors: truncated: expected a header length of 8 bytes, found 3"),
        (b"GGUF\x03\0\0\0\0\0\0\0".to_vec(), "expected safetensors, found a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "found a Git LFS pointer"),
        (b"PK\x03\x04aaaaaaaa".to_vec(), "found a zip archive"),
        (
            b"hello, this is no safetensors file".to_vec(),
            "header length: expected at most 100000000 bytes, found 8",
        ),
        (long(MAX_HEADER + 1), "header length: expected at most 100000000 bytes, found 100000001"),
        (long(u64::MAX), "header length: expected at most 100000000 bytes, found 18446744073709551615"),
        (long(3), "truncated: expected a header of 3 bytes, found 2"),
        (latin, "header: invalid UTF-8"),
        (file("", b""), "header: EOF while parsing a value"),
        (file("{", b""), "header: EOF while parsing an object"),
        (file("[]", b""), "header: invalid type: sequence, expected an object of tensors"),
        (file("{} {}", b""), "header: trailing characters at line 1 column 4"),
        (file(r#"{"__metadata__":{"a":1}}"#, b""), "header: __metadata__: invalid type: integer `1`"),
        (file(r#"{"x":3}"#, b""), "header: tensor `x`: invalid type: integer `3`"),
        (entry(r#""dtype":"F32","shape":[2,3]"#, 24), "header: tensor `x`: missing field `data_offsets`"),
        (
            entry(r#""dtype":"F13","shape":[],"data_offsets":[0,1]"#, 1),
            "tensor `x`: dtype: expected one of BOOL,",
        ),
        (entry(r#""dtype":"F13","shape":[],"data_offsets":[0,1]"#, 1), "found `F13`"),
        (
            entry(r#""dtype":"F32","shape":[2,-3],"data_offsets":[0,24]"#, 24),
            "tensor `x`: invalid value: integer `-3`",
        ),
        (
            entry(r#""dtype":"F32","shape":[2.5],"data_offsets":[0,24]"#, 24),
            "tensor `x`: invalid type: floating point",
        ),
        (entry(r#""dtype":"F32","shape":"big","data_offsets":[0,24]"#, 24), "a shape of at most 16 axes"),
        (entry(&many_axes, 1), "tensor `x`: invalid length 17, expected a shape of at most 16 axes"),
        (entry(&deep, 1), "tensor `x`: "),
        (entry(r#""dtype":"F32","shape":[2,3],"data_offsets":[0]"#, 24), "tensor `x`: invalid length 1"),
        (entry(r#""dtype":"F32","shape":[2,3],"data_offsets":[0,24,9]"#, 24), "tensor `x`: "),
        (
            entry(r#""dtype":"F32","shape":[2,3],"data_offsets":[24,0]"#, 24),
            "tensor `x`: data_offsets: expected begin <= end, found [24, 0]",
        ),
        (
            entry(r#""dtype":"F32","shape":[2,3],"data_offsets":[0,20]"#, 20),
            "m.safetensors: tensor `x`: shape [2, 3] of F32: expected 24 bytes, found 20",
        ),
        (
            entry(r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]"#, 0),
            "more F32 elements than can be addressed",
        ),
        (
            entry(r#""dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,0]"#, 0),
            "tensor `x`: invalid type: floating point",
        ),
        (entry(r#""dtype":"F4","shape":[3],"data_offsets":[0,1]"#, 1), "expected whole bytes, found 12 bits"),
        (
            entry(good, 23),
            "tensor `x`: data_offsets [0, 24]: expected to end within 23 bytes of data; the file is truncated",
        ),
        (entry(good, 25), "expected 24 bytes of data, found 25: the rest belongs to no tensor"),
        (file("{}", b"x"), "expected 0 bytes of data, found 1: the rest belongs to no tensor"),
        (
            file(&two("[0,4]", "[2,6]"), &[0; 6]),
            "tensor `b`: data_offsets: overlaps `a`, which ends at 4; found begin 2",
        ),
        (file(&two("[0,4]", "[0,4]"), &[0; 4]), "overlaps `"),
        (
            file(&two("[0,4]", "[5,9]"), &[0; 9]),
            "tensor `b`: data_offsets: expected begin 4, after `a`; found 5",
        ),
        (
            file(&two("[1,5]", "[5,9]"), &[0; 9]),
            "tensor `a`: data_offsets: expected begin 0, after `the header`; found 1",
        ),
        (
            file(&two("[0,4]", "[4,8]").replace("\"b\"", "\"a\""), &[0; 8]),
            "header: tensor `a` is listed twice",
        ),
        (
            file(&two("[0,4]", "[4,8]").replace("\"b\"", r#""\u0061""#), &[0; 8]),
            "header: tensor `a` is listed twice",
        ),
    ];
    for (bytes, expected) in cases {
        let text = refusal(bytes);
        assert!(
            text.starts_with("m.safetensors: ") && text.contains(expected),
            "expected `{expected}`, found `{text}`"
        );
        assert!(!text.contains('\n'), "{text}");
    }
}

#[test]
fn files_on_disk_are_refused_alike() {
    let dir = TempDir::new();
    let open = |path: &std::path::Path| {
        TensorFile::open(path).map(|file| format!("{file:?}")).expect_err("refused").to_string()
    };
    assert!(open(&dir.join("absent")).contains("absent: No such file"));
    assert!(open(&dir.0).ends_with("expected a regular file"));
    let empty = dir.write("empty.safetensors", b"");
    assert!(open(&empty).ends_with("empty.safetensors: empty file; expected safetensors"));
    let whole = valid(&[("x", "F32", &[8], f32s(&[1.0; 8]))], 0);
    for length in 1..whole.len() {
        let path = dir.write("cut.safetensors", &whole[..length]);
        let text = open(&path);
        assert!(text.contains("truncated") || text.contains("header"), "{length}: {text}");
    }
    let whole = dir.write("whole.safetensors", &whole);
    assert!(TensorFile::open(&whole).is_ok());
}

/// A header of the largest allowed size costs no more than a small multiple of its bytes, and no long time.
#[test]
fn large_headers_are_bounded() {
    let entries: Vec<String> = (0..200_000)
        .map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[],"data_offsets":[{i},{}]}}"#, i + 1))
        .collect();
    let bytes = file(&format!("{{{}}}", entries.join(",")), &vec![0; 200_000]);
    let all = TensorFile::in_memory("many", Arc::from(bytes)).expect("many tensors are no error");
    assert_eq!(all.names().count(), 200_000);
    assert_eq!(all.names().nth(77_777), Some("77777"));
}
