//! The rules of the repository that no compiler checks.

mod families;
mod figures;
mod peers;
mod rules;
mod source;
mod tree;

use tree::File;

fn obeys(rule: fn(&[File]) -> Vec<String>) {
    let files = tree::files(&ocelli_tests::root());
    assert!(files.len() > 50, "found only {} files of the repository", files.len());
    let complaints = rule(&files);
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn file_length() {
    obeys(rules::file_length);
}

#[test]
fn crate_direction() {
    obeys(rules::crate_direction);
}

#[test]
fn crate_knowledge() {
    obeys(rules::crate_knowledge);
}

#[test]
fn no_unwrap() {
    obeys(rules::no_unwrap);
}

#[test]
fn no_leftovers() {
    obeys(rules::no_leftovers);
}

#[test]
fn no_macros() {
    obeys(rules::no_macros);
}

#[test]
fn sizes() {
    obeys(rules::sizes);
}

#[test]
fn no_machine_paths() {
    obeys(rules::no_machine_paths);
}

#[test]
fn lock_sources() {
    obeys(rules::lock_sources);
}

#[test]
fn records() {
    obeys(rules::records);
}

#[test]
fn scripts() {
    obeys(rules::scripts);
}

/// Each rule complains about a file made to break it, and not about one that obeys.
mod can_fail {
    use super::rules;
    use super::tree::File;

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), bytes: text.len() as u64, text: Some(text.into()) }
    }

    fn expect(rule: fn(&[File]) -> Vec<String>, path: &str, text: &str, complaints: usize) {
        let found = rule(&[file(path, text)]);
        assert_eq!(found.len(), complaints, "{path}: {text:.80}: {found:?}");
    }

    #[test]
    fn file_length() {
        expect(rules::file_length, "engine/src/a.rs", &"//\n".repeat(801), 1);
        expect(rules::file_length, "engine/src/a.rs", &"//\n".repeat(800), 0);
        expect(rules::file_length, "kernels/src/a.wgsl", &"//\n".repeat(401), 1);
    }

    #[test]
    fn crate_direction() {
        let manifest = |name: &str, rest: &str| {
            format!("[package]\nname = \"{name}\"\n[lints]\nworkspace = true\n{rest}")
        };
        let check = |name: &str, rest: &str, complaints| {
            expect(rules::crate_direction, "x/Cargo.toml", &manifest(name, rest), complaints);
        };
        check("ocelli-engine", "[dependencies]\nocelli-kernels.workspace = true", 0);
        check("ocelli-kernels", "[dependencies]\nocelli-engine.workspace = true", 1);
        check("ocelli-kernels", "[dev-dependencies]\nocelli-tests = \"1\"", 1);
        check("ocelli-models", "[target.'cfg(unix)'.dependencies]\nx = { package = \"ocelli-bench\" }", 1);
        check("ocelli-new", "", 1);
        expect(rules::crate_direction, "x/Cargo.toml", "[package]\nname = \"ocelli\"", 1);
        expect(rules::crate_direction, "x/Cargo.toml", "not toml", 1);
    }

    #[test]
    fn crate_knowledge() {
        expect(rules::crate_knowledge, "models/src/a.rs", "use x::cuda;\nlet b = \"wgpu\"; // cuda", 2);
        expect(rules::crate_knowledge, "engine/src/a.rs", "use x::cuda;", 0);
        expect(rules::crate_knowledge, "kernels/src/a.rs", "use safetensors::A;", 1);
    }

    #[test]
    fn no_unwrap() {
        let bad =
            "fn a() { b().unwrap(); c().expect(\"d\"); }\n#[cfg(test)]\nmod t { fn e() { f().unwrap() } }";
        expect(rules::no_unwrap, "engine/src/a.rs", bad, 2);
        expect(rules::no_unwrap, "engine/cli/src/a.rs", bad, 2);
        expect(rules::no_unwrap, "bench/src/a.rs", bad, 0);
        expect(rules::no_unwrap, "models/src/tests.rs", bad, 0);
        expect(rules::no_unwrap, "models/src/a.rs", "// a.unwrap()\nlet b = c.unwrap_or(1);", 0);
    }

    #[test]
    fn no_leftovers() {
        expect(rules::no_leftovers, "bench/src/a.rs", "fn a() { todo!() }\n// FIXME: b\n#[ignore]\n", 3);
        expect(rules::no_leftovers, "bench/a.py", "# TODO later", 1);
        expect(rules::no_leftovers, "bench/src/a.rs", "let todo = \"dbg!\"; // a fixme", 0);
    }

    #[test]
    fn no_macros() {
        expect(rules::no_macros, "engine/src/a.rs", "macro_rules! a { () => {} }", 1);
        expect(rules::no_macros, "kernels/src/ops/list.rs", "macro_rules! a { () => {} }", 0);
    }

    #[test]
    fn sizes() {
        let large = |path: &str, mib: u64| File { path: path.into(), bytes: mib << 20, text: None };
        let complaints = |files: &[File]| rules::sizes(files).len();
        assert_eq!(complaints(&[large("a.bin", 5)]), 1);
        assert_eq!(complaints(&[large("a.bin", 4)]), 0);
        let many = |path: &str, n: u64| (0..n).map(|i| large(&format!("{path}{i}"), 1)).collect::<Vec<_>>();
        assert_eq!(complaints(&many("a", 73)), 1);
        assert_eq!(complaints(&many("tests/golden/", 48)), 1);
        assert_eq!(complaints(&many("models/demo/", 9)), 1);
    }

    #[test]
    fn no_machine_paths() {
        expect(rules::no_machine_paths, "README.md", "see /work/x or \"/home/me\"", 2);
        expect(rules::no_machine_paths, "README.md", "see docs/work/x and ~/.cache", 0);
    }

    #[test]
    fn lock_sources() {
        expect(rules::lock_sources, "Cargo.lock", "source = \"git+https://example.org/a\"", 1);
    }

    #[test]
    fn records() {
        expect(rules::records, "bench/record/m/a.json", "{\"schema\": 1}", 1);
        expect(rules::records, "bench/other/a.json", "{\"schema\": 1}", 0);
    }

    #[test]
    fn scripts() {
        expect(rules::scripts, "tests/run.sh", "cargo test", 1);
        expect(rules::scripts, "tests/run.sh", "#!/bin/sh\ncargo test", 0);
    }
}
