//! Wrong arguments: exit code 2 (or 1 where the machine lacks what is asked for) before anything is loaded.

use crate::{command, demo, ended, example, ocelli};

#[test]
fn wrong_arguments() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "no command"),
        (&["kernels"], "no command"),
        (&["runn"], "runn"),
        (&["run"], "PROMPT"),
        (&["run", "--nothing", "x"], "--nothing"),
        (&["run", "a", "b"], "'b'"),
        (&["run", "--threads", "0", "x"], "--threads"),
        (&["run", "--threads", "many", "x"], "--threads"),
        (&["run", "--backend", "tpu", "x"], "tpu"),
        (&["run", "--dtype", "int3", "x"], "int3"),
        (&["run", "--processor", "do_image_splitting", "x"], "KEY=VALUE"),
        (&["run", "--temperature", "-1", "x"], "temperature"),
        (&["run", "--temperature=-1", "x"], "temperature"),
        (&["run", "--temperature", "nan", "x"], "temperature"),
        (&["run", "--top-p", "0", "x"], "top_p"),
        (&["run", "--max-tokens", "0", "x"], "--max-tokens"),
        (&["run", "--max-tokens", "1.5", "x"], "--max-tokens"),
        (&["run", "--top-k", "-1", "x"], "--top-k"),
        (&["run", "--seed", "-1", "x"], "--seed"),
        (&["run", "--stop-token", "-1", "x"], "--stop-token"),
        (&["run", "--device", "-1", "x"], "--device"),
        (&["run", "--threads", "-1", "x"], "--threads"),
        (&["run", "--max-pixels", "-1", "x"], "--max-pixels"),
        (&["run", "-q", "-v", "x"], "--quiet"),
        (&["run", "--image", "-", "x"], "--image"),
        (&["run", "--image", "https://example.org/a.png", "x"], "--image"),
        (&["run", "--image", "file:///a.png", "x"], "--image"),
        (&["run", "--image", "data:image/png;base64,AAAA", "x"], "--image"),
        (&["bench", "model", "--image", "http://example.org/a.png"], "--image"),
        (&["inspect", "--images", "-1"], "--images"),
        (&["inspect", "--prompt-tokens", "-1"], "--prompt-tokens"),
        (&["inspect", "a", "--model", "b"], "--model"),
        (&["quantize", "a", "--model", "b", "--out", "x", "--format", "int4"], "--model"),
        (&["quantize", "--out", "x", "--format", "int4", "--group", "-1"], "--group"),
        (&["embed", "--model", "x"], "PICTURE"),
        (&["embed", "--model", "x", "--batch", "0", "a.png"], "--batch"),
        (&["embed", "--model", "x", "--format", "csv", "a.png"], "csv"),
        (&["serve", "--port", "70000"], "--port"),
        (&["serve", "--host", "here"], "--host"),
        (&["serve", "--api-key", "two words"], "--api-key"),
        (&["serve", "--max-running", "0"], "--max-running"),
        (&["serve", "--timeout", "0"], "--timeout"),
        (&["serve", "--allow-remote-images", "http://x"], "--allow-remote-images"),
        (&["classify", "--model", "x", "a.png"], "--labels"),
        (&["classify", "--model", "x", "--labels", "a"], "PICTURE"),
        (&["classify", "--model", "x", "--labels", "a,,b", "a.png"], "--labels"),
        (&["classify", "--model", "x", "--labels", "a", "--template", "a photo", "a.png"], "{}"),
        (&["run", "--stop", "", "x"], "stop"),
        (&["run", "--image"], "--image"),
        (&["run", ""], "prompt is empty"),
        (&["run", "  \n"], "prompt is empty"),
        (&["inspect", "--image-size", "512"], "WIDTHxHEIGHT"),
        (&["inspect", "--image-size", "0x9"], "WIDTHxHEIGHT"),
        (&["inspect", "--image-size", "99999999999x9"], "pixels"),
        (&["inspect", "--image-size", "9x9", "--image-size", "8x8", "--images", "1"], "--images"),
        (&["inspect", "--max-tokens", "0"], "--max-tokens"),
        (&["inspect", "--processor", "no_such_field=1"], "no_such_field"),
        (&["quantize", "--format", "int4"], "--out"),
        (&["quantize", "--out", "x"], "--format"),
        (&["quantize", "--out", "x", "--format", "int3"], "int3"),
        (&["bench"], "no command"),
        (&["bench", "model", "--runs", "0"], "--runs"),
        (&["bench", "model", "--prompt-tokens", "0"], "--prompt-tokens"),
        (&["bench", "model", "--prompt-tokens", "9", "--depth", "9"], "--depth"),
        (&["completions", "cmd"], "cmd"),
        (&["kernels", "list", "matmull"], "matmull"),
        (&["kernels", "why", "matmul", "q=1"], "`q`"),
        (&["kernels", "why", "matmul", "m=x"], "m=x"),
    ];
    for (args, part) in cases {
        ocelli(args).fails(2, &[part]);
    }
}

/// The hint says what to do, not how to make the number the prompt.
#[test]
fn no_limit_of_tokens() {
    for command in [&["run", "x"][..], &["inspect"], &["bench", "model"]] {
        let done = ocelli(&[command, &["--max-tokens", "-1"]].concat());
        done.fails(2, &["'-1'", "--max-tokens", "whole number"]);
        assert!(done.stderr.contains("hint: a large number is no limit"), "{done:?}");
    }
    let done = ocelli(&["run", "--top-k", "-1", "x"]);
    assert!(done.stderr.contains("hint: 0 keeps all"), "{done:?}");
    let picture = example("01.png");
    for large in ["100000", "18446744073709551615", "99999999999999999999999999"] {
        let args = ["run", "--image", picture.to_str().unwrap(), "--max-tokens", large];
        assert_eq!(
            ocelli(&[&args[..], &["How many objects are there?"]].concat()).well(),
            "two\n",
            "{large}"
        );
        let plan = ocelli(&["inspect", "--max-tokens", large, "--json"]).json()["plan"].clone();
        assert_eq!(plan["request"]["max_tokens"], 2048, "{large}");
    }
}

#[test]
fn devices_that_are_not_there() {
    let prompt = ["What is this?"];
    let run = |flags: &[&str]| ocelli(&[&["run"], flags, &prompt[..]].concat());
    run(&["--device", "99"]).fails(1, &["device 99"]);
    run(&["--backend", "cpu", "--device", "99"]).fails(1, &["device 99"]);
    for backend in ["cuda", "wgpu"] {
        let done = run(&["--backend", backend]);
        if done.code != Some(0) {
            done.fails(1, &[backend]);
        }
    }
}

#[test]
fn instruction_sets_that_are_not_there() {
    let level = |name: &str, args: &[&str]| ended(command(args).env("OCELLI_ISA", name).spawn().unwrap());
    let absent = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
    for args in [&["run", "x"][..], &["kernels", "why", "matmul"], &["inspect"]] {
        level("foo", args).fails(1, &["OCELLI_ISA", "foo"]);
        level(absent, args).fails(1, &[absent]);
    }
}

#[test]
fn wrong_processor_fields() {
    let picture = example("01.png");
    let run = |field: &str| {
        ocelli(&["run", "--processor", field, "--image", picture.to_str().unwrap(), "What is this?"])
    };
    run("no_such_field=1").fails(2, &["no_such_field"]);
    run("do_image_splitting=perhaps").fails(2, &["do_image_splitting", "perhaps"]);
    run("do_image_splitting=false").well();
}

#[test]
fn help_and_version() {
    let help = ocelli(&["--help"]).well();
    for command in [
        "run",
        "imagine",
        "embed",
        "index",
        "search",
        "classify",
        "serve",
        "verify",
        "inspect",
        "bench",
        "quantize",
        "devices",
        "kernels",
        "completions",
        "man",
    ] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command}: {help}");
        let own = ocelli(&[command, "--help"]).well();
        assert!(own.contains("Usage: ocelli"), "{own}");
    }
    assert!(ocelli(&["--version"]).well().starts_with("ocelli "));
    assert!(ocelli(&["run", "--help"]).well().contains("--max-tokens"));
    assert!(demo().is_dir());
}
