//! `ocelli kernels`, `devices`, `bench`, `completions` and `man`.

use crate::{Temp, example, golden, ocelli};

#[test]
fn kernels() {
    let text = ocelli(&["kernels", "list"]).well();
    let value = ocelli(&["kernels", "list", "--json"]).json();
    for op in ["matmul", "attention", "patch_embed", "norm", "rope", "gather_rows", "merge_patches", "sample"]
    {
        assert!(text.lines().any(|line| line.starts_with(op)), "{op}: {text}");
        assert!(value["rows"].as_array().unwrap().iter().any(|row| row["op"] == op), "{op}: {value}");
    }
    let why = ["kernels", "why", "matmul", "m=1", "n=576", "k=576", "w=bf16"];
    let value = ocelli(&[&why[..], &["--json"]].concat()).json();
    let rows = value["rows"].as_array().unwrap();
    assert_eq!(rows.iter().filter(|row| row["picked"] == true).count(), 1, "{value}");
    for row in rows {
        assert!(row["rejected"].is_string() != row["est_us"].is_number(), "{row}");
    }
    let text = ocelli(&why).well();
    assert!(text.contains("m=1 n=576 k=576") && text.contains("->"), "{text}");
}

#[test]
fn devices() {
    let value = ocelli(&["devices", "--json"]).json();
    let devices = value["devices"].as_array().unwrap();
    let cpu = devices.iter().find(|device| device["backend"] == "cpu").unwrap();
    assert!(cpu["unavailable"].is_null(), "{cpu}");
    assert!(ocelli(&["devices"]).well().lines().count() >= devices.len());
}

#[test]
fn kernel_bench() {
    let value = ocelli(&["bench", "kernels", "--backend", "cpu", "--only", "step head", "--json"]).json();
    assert!(value["schema"].as_str().unwrap().contains("bench.kernels"), "{value}");
    for field in ["cpu", "isa", "threads"] {
        assert!(!value["machine"][field].is_null(), "{field}: {}", value["machine"]);
    }
    for roof in ["fma_f32_gflops", "int8_gops", "read_gbps", "copy_gbps", "launch_us"] {
        assert!(value["roofs"][roof].as_f64().unwrap() > 0.0, "{roof}: {}", value["roofs"]);
    }
    let rows = value["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "in bf16 and in int8: {value}");
    for row in rows {
        assert_eq!((&row["backend"], &row["picked"]), (&"cpu".into(), &true.into()), "{row}");
        assert!(row["variant"].is_string() && row["roof"].is_string(), "{row}");
        let figure = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name}: {row}"));
        assert!(figure("bytes") > 0.0 && figure("flops") >= 0.0 && figure("fraction") > 0.0, "{row}");
        assert!(figure("p20_us") <= figure("median_us") && figure("median_us") <= figure("p80_us"), "{row}");
        assert_eq!(
            (&row["op"], &row["spec"]["m"], &row["spec"]["x"]),
            (&"matmul".into(), &1.into(), &"f32".into())
        );
        assert!(
            row["spec"]["w"].is_string() && row["spec"]["n"].is_u64() && row["spec"]["k"].is_u64(),
            "{row}"
        );
    }
    ocelli(&["bench", "kernels", "--backend", "cpu", "--only", "no such shape"]).fails(2, &["no such shape"]);
    ocelli(&["bench", "kernels", "--threads", "0"]).fails(2, &["--threads"]);
}

#[test]
fn picture_bench() {
    let (a, b) = (example("01.png"), golden("pictures").join("444.jpg"));
    let [a, b] = [&a, &b].map(|path| path.to_str().unwrap());
    let value = ocelli(&["bench", "pictures", "--runs", "2", "--json", a, b]).json();
    assert_eq!((&value["schema"], &value["runs"]), (&"ocelli.bench.pictures.v1".into(), &2.into()));
    for (row, file) in value["pictures"].as_array().unwrap().iter().zip([a, b]) {
        assert_eq!(row["file"], file);
        assert!(
            row["decode_ms"]["median"].as_f64().unwrap() > 0.0 && row["width"].as_u64().unwrap() > 1,
            "{row}"
        );
    }
    assert_eq!(ocelli(&["bench", "pictures", a, b]).well().lines().count(), 2);
    ocelli(&["bench", "pictures", "absent.png"]).fails(1, &["absent.png"]);
    ocelli(&["bench", "pictures"]).fails(2, &["FILE"]);
}

#[test]
fn model_bench() {
    let picture = example("02.png");
    let args = ["bench", "model", "--runs", "2", "--max-tokens", "4", "--image", picture.to_str().unwrap()];
    let value = ocelli(&[&args[..], &["--json"]].concat()).json();
    assert_eq!((&value["schema"], &value["runs"]), (&"ocelli.bench.model.v1".into(), &2.into()));
    assert_eq!(value["decode_tokens"], 3, "the first comes from the prefill");
    for figure in ["encode_ms", "first_token_ms", "prefill_tokens_per_s", "decode_tokens_per_s"] {
        let of = |quantile: &str| value[figure][quantile].as_f64().unwrap();
        assert!(
            0.0 < of("p20") && of("p20") <= of("median") && of("median") <= of("p80"),
            "{figure}: {value}"
        );
    }
    let folder = golden("smolvlm");
    let which = folder.to_str().unwrap();
    let text =
        ocelli(&["bench", "model", which, "--runs", "1", "--max-tokens", "2", "--image-size", "64x48"])
            .well();
    assert!(text.contains("picture 64x48") && text.contains("decode") && text.contains(which), "{text}");
    ocelli(&["bench", "model", which, "--model", which]).fails(2, &["--model"]);
    let bench =
        |more: &[&str]| ocelli(&[&["bench", "model", "--runs", "1", "--max-tokens", "2"], more].concat());
    let value = bench(&["--prompt-tokens", "300", "--json"]).json();
    assert_eq!((&value["prompt_tokens"], &value["tiles"]), (&300.into(), &0.into()));
    assert!(value["image"].is_null(), "{value}");
    let value = bench(&["--depth", "700", "--image-size", "64x48", "--json"]).json();
    assert_eq!((&value["prompt_tokens"], &value["image"][0]), (&700.into(), &64.into()));
    let value =
        bench(&["--images", "2", "--batch", "3", "--image-size", "64x48", "--cold-start", "--json"]).json();
    assert_eq!((&value["images"], &value["batch"]), (&2.into(), &3.into()));
    // Each request has pictures of its own, none of which is encoded twice.
    assert_eq!(value["tiles"], 6, "{value}");
    let ms = |field: &str| value["cold_start"][field]["median"].as_f64();
    // The embedded model has no files to let go of.
    assert!(ms("warm_ms").is_some_and(|ms| ms > 1.0) && ms("dropped_ms").is_none(), "{value}");
    for bytes in ["weight_bytes", "activation_bytes", "encode_activation_bytes", "peak_memory_bytes"] {
        assert!(value[bytes].as_u64().is_some_and(|bytes| bytes > 10_000), "{bytes}: {value}");
    }
    assert!(value["pictures_per_s"]["median"].as_f64().unwrap() > 0.0, "{value}");
    for option in ["--prompt-tokens", "--depth"] {
        bench(&[option, "18446744073709551615"]).fails(1, &["expected at most 2047 tokens"]);
    }
}

#[test]
fn completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = ocelli(&["completions", shell]).well();
        for word in ["ocelli", "inspect", "max-tokens"] {
            assert!(script.contains(word), "{shell} {word}");
        }
    }
}

#[test]
fn manual_pages() {
    let page = ocelli(&["man"]).well();
    assert!(page.contains(".TH ocelli 1") && page.contains("quantize"), "{page}");
    let temp = Temp::new();
    let dir = temp.path("share/man1");
    assert_eq!(ocelli(&["man", "--out", dir.to_str().unwrap()]).well(), "");
    for (page, word) in [("ocelli", "inspect"), ("ocelli-run", "temperature"), ("ocelli-kernels-why", "spec")]
    {
        let text = std::fs::read_to_string(dir.join(format!("{page}.1"))).expect(page);
        assert!(text.contains(&format!(".TH {page} 1")) && text.contains(word), "{text}");
    }
    ocelli(&["man", "--out", "/dev/null/no"]).fails(1, &["/dev/null/no"]);
}
