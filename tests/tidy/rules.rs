//! The rules. Each takes files and gives its complaints, one line each.

use ocelli_bench::record::Record;

use crate::source::{Keep, lines_with, lines_with_word, mask, without_tests};
use crate::tree::File;

/// Where macros may be defined, and why: the list of ops and the instantiation of SIMD code.
const MACROS: &[&str] =
    &["kernels/src/ops/list.rs", "kernels/src/quant/mod.rs", "kernels/src/cpu/simd/mod.rs"];

/// Files above the size that one file may have.
const LARGE: &[&str] = &[];

/// The rules' own words would break them.
const SELF: &[&str] = &["tests/tidy/"];

/// Crates whose code may not panic on user input.
const NO_PANIC: &[&str] = &[
    "kernels/src/",
    "engine/src/",
    "models/src/",
    "engine/cli/src/",
    "engine/python/src/",
    "engine/search/src/",
    "engine/serve/src/",
];

/// Which of our crates each may use.
const DIRECTION: &[(&str, &[&str])] = &[
    ("ocelli-kernels", &[]),
    ("ocelli-engine", &["ocelli-kernels"]),
    ("ocelli-models", &["ocelli-kernels", "ocelli-engine"]),
    ("ocelli-bench", &["ocelli-kernels", "ocelli-engine", "ocelli-models"]),
    ("ocelli-search", &["ocelli-engine"]),
    ("ocelli-serve", &["ocelli-engine", "ocelli-search"]),
    ("ocelli-train", &["ocelli-kernels", "ocelli-engine"]),
    ("ocelli-python", &["ocelli-kernels", "ocelli-engine", "ocelli-models"]),
    (
        "ocelli",
        &[
            "ocelli-kernels",
            "ocelli-engine",
            "ocelli-models",
            "ocelli-bench",
            "ocelli-search",
            "ocelli-serve",
            "ocelli-train",
        ],
    ),
    (
        "ocelli-tests",
        &["ocelli-kernels", "ocelli-engine", "ocelli-models", "ocelli-bench", "ocelli-train", "ocelli"],
    ),
];

const MIB: u64 = 1 << 20;

fn at(file: &File, line: usize, complaint: &str) -> String {
    format!("{}:{line}: {complaint}", file.path)
}

fn text(file: &File) -> &str {
    file.text.as_deref().unwrap_or("")
}

fn is_test_code(file: &File) -> bool {
    file.ends(&["/tests.rs", "_tests.rs"])
        || file.path.contains("/tests/")
        || file.under(&["tests/", "kernels/src/conformance/"])
        || file.ends(&["/cases.rs"])
}

/// Rust files have at most 800 lines, kernels of the devices 400.
pub fn file_length(files: &[File]) -> Vec<String> {
    let limit = |file: &File| {
        if file.ends(&[".rs"]) {
            Some(800)
        } else if file.ends(&[".cu", ".cuh", ".wgsl"]) {
            Some(400)
        } else {
            None
        }
    };
    let check = |file: &File| {
        let (limit, lines) = (limit(file)?, text(file).lines().count());
        (lines > limit).then(|| format!("{}: {lines} lines, expected at most {limit}", file.path))
    };
    files.iter().filter_map(check).collect()
}

/// Crates depend on each other in one direction only, and take the workspace's lints.
pub fn crate_direction(files: &[File]) -> Vec<String> {
    let mut found = vec![];
    for file in files.iter().filter(|f| f.ends(&["/Cargo.toml"])) {
        let manifest: toml::Table = match text(file).parse() {
            Ok(manifest) => manifest,
            Err(error) => {
                found.push(format!("{}: {error}", file.path));
                continue;
            }
        };
        let name = manifest.get("package").and_then(|p| p.get("name")).and_then(toml::Value::as_str);
        let Some((_, allowed)) = DIRECTION.iter().find(|(crate_name, _)| Some(*crate_name) == name) else {
            found.push(format!("{}: crate {name:?} has no place in the direction of crates", file.path));
            continue;
        };
        for dependency in dependencies(&manifest) {
            let ours = dependency == "ocelli" || dependency.starts_with("ocelli-");
            if ours && !allowed.contains(&dependency.as_str()) {
                found.push(format!("{}: depends on {dependency}, which is not below it", file.path));
            }
        }
        let lints = manifest.get("lints").and_then(|l| l.get("workspace")).and_then(toml::Value::as_bool);
        if lints != Some(true) {
            found.push(format!("{}: expected [lints] workspace = true", file.path));
        }
    }
    found
}

/// Names in every table of dependencies, renames resolved.
fn dependencies(manifest: &toml::Table) -> Vec<String> {
    let mut names = vec![];
    for (key, value) in manifest {
        let Some(table) = value.as_table() else { continue };
        match key.as_str() {
            "dependencies" | "dev-dependencies" | "build-dependencies" => {
                for (name, value) in table {
                    let package = value.get("package").and_then(toml::Value::as_str);
                    names.push(package.unwrap_or(name).to_owned());
                }
            }
            "target" => {
                names.extend(table.values().filter_map(toml::Value::as_table).flat_map(dependencies));
            }
            _ => {}
        }
    }
    names
}

/// Models know no backend, kernels no files and no text.
pub fn crate_knowledge(files: &[File]) -> Vec<String> {
    let mut found = vec![];
    let rules: [(&str, &[&str]); 2] = [
        ("models/src/", &["cuda", "wgpu", "Cuda", "Wgpu"]),
        ("kernels/src/", &["safetensors", "tokenizers", "ocelli_engine"]),
    ];
    for (folder, words) in rules {
        for file in files.iter().filter(|f| f.ends(&[".rs"]) && f.under(&[folder])) {
            let code = mask(text(file), Keep::CodeAndStrings);
            for word in words {
                for line in lines_with_word(&code, word) {
                    found.push(at(file, line, &format!("`{word}` may not be named under {folder}")));
                }
            }
        }
    }
    found
}

/// No panic on user input: no `unwrap` and no `expect` with a message outside tests.
pub fn no_unwrap(files: &[File]) -> Vec<String> {
    let mut found = vec![];
    for file in files.iter().filter(|f| f.ends(&[".rs"]) && f.under(NO_PANIC) && !is_test_code(f)) {
        let code = without_tests(&mask(text(file), Keep::Code));
        for word in [".unwrap()", ".expect(\"", "panic!("] {
            for line in lines_with(&code, word) {
                found.push(at(file, line, &format!("`{word}` outside tests")));
            }
        }
    }
    found
}

/// Nothing unfinished is left behind.
pub fn no_leftovers(files: &[File]) -> Vec<String> {
    let mut found = vec![];
    for file in files.iter().filter(|f| !f.under(SELF)) {
        if file.ends(&[".rs"]) {
            let code = mask(text(file), Keep::Code);
            for word in ["todo!", "unimplemented!", "dbg!"] {
                for line in lines_with_word(&code, word) {
                    found.push(at(file, line, &format!("`{word}` left behind")));
                }
            }
            for line in lines_with(&code, "#[ignore") {
                found.push(at(file, line, "a test that never runs"));
            }
        }
        if file.ends(&[".rs", ".c", ".cu", ".cuh", ".wgsl", ".py", ".sh", ".toml", ".md"]) {
            for word in ["FIXME", "TODO", "XXX", "HACK"] {
                for line in lines_with_word(text(file), word) {
                    found.push(at(file, line, &format!("`{word}` left behind")));
                }
            }
        }
    }
    found
}

/// Macros are defined only where they are agreed on.
pub fn no_macros(files: &[File]) -> Vec<String> {
    let mut found = vec![];
    for file in files.iter().filter(|f| f.ends(&[".rs"]) && !MACROS.contains(&f.path.as_str())) {
        for line in lines_with_word(&mask(text(file), Keep::Code), "macro_rules!") {
            found.push(at(file, line, "a macro besides the list of ops and the SIMD instantiation"));
        }
    }
    found
}

/// The tree stays small enough to travel.
pub fn sizes(files: &[File]) -> Vec<String> {
    let mut found = vec![];
    let limits =
        [("", 72), ("tests/golden/", 47), ("models/demo/", 8), ("models/dual/", 5), ("models/painter/", 5)];
    for (folder, limit) in limits {
        let bytes: u64 = files.iter().filter(|f| f.under(&[folder])).map(|f| f.bytes).sum();
        if bytes > limit * MIB {
            let place = if folder.is_empty() { "the tree" } else { folder };
            found.push(format!("{place}: {bytes} bytes, expected at most {limit} MiB"));
        }
    }
    for file in files.iter().filter(|f| f.bytes > 4 * MIB && !LARGE.contains(&f.path.as_str())) {
        found.push(format!("{}: {} bytes, expected at most 4 MiB", file.path, file.bytes));
    }
    found
}

/// Nothing refers to a place on one person's machine.
pub fn no_machine_paths(files: &[File]) -> Vec<String> {
    let kinds = [
        ".rs", ".toml", ".lock", ".py", ".sh", ".md", ".c", ".h", ".cu", ".cuh", ".wgsl", ".yml", ".txt",
        ".json", ".jinja", "run",
    ];
    let mut found = vec![];
    for file in files.iter().filter(|f| !f.under(SELF) && f.ends(&kinds) && !f.ends(&["tokenizer.json"])) {
        for place in ["/work/", "/home/", "/root/", "/Users/"] {
            for line in lines_with_path(text(file), place) {
                found.push(at(file, line, &format!("a path of one machine, {place}")));
            }
        }
    }
    found
}

/// Lines where `place` starts a path, rather than being a folder inside one.
fn lines_with_path(text: &str, place: &str) -> Vec<usize> {
    let inside = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '}' | '/');
    let has = |line: &str| {
        line.match_indices(place).any(|(at, _)| !line[..at].chars().next_back().is_some_and(inside))
    };
    text.lines().enumerate().filter(|(_, line)| has(line)).map(|(i, _)| i + 1).collect()
}

/// Dependencies come from the one public registry.
pub fn lock_sources(files: &[File]) -> Vec<String> {
    let public = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
    let mut found = vec![];
    for file in files.iter().filter(|f| f.path == "Cargo.lock") {
        for (i, line) in text(file).lines().enumerate() {
            if line.starts_with("source = ") && line != public {
                found.push(at(file, i + 1, &format!("expected {public}, found {line}")));
            }
        }
    }
    found
}

/// Kept benchmark records can be read.
pub fn records(files: &[File]) -> Vec<String> {
    let kept = files.iter().filter(|f| f.under(&["bench/record/"]) && f.ends(&[".json"]));
    kept.filter_map(|f| Record::parse(text(f)).err().map(|error| format!("{}: {error}", f.path))).collect()
}

/// Scripts that are run by path can be run: their first line names an interpreter.
pub fn scripts(files: &[File]) -> Vec<String> {
    let scripts = files.iter().filter(|f| f.ends(&[".sh"]) || f.path == ".ci/run");
    scripts
        .filter(|f| !text(f).starts_with("#!"))
        .map(|f| format!("{}: expected a #! line", f.path))
        .collect()
}
