//! Helpers shared by the tests.

pub mod collector;
pub mod command;

use std::env;
use std::path::PathBuf;

/// Ends a test that cannot run here: prints `skipped: what: why`, which `tests/run.sh` shows and counts.
///
/// `OCELLI_REQUIRE` names what must not be absent (`all`, or a comma-separated list of `what`): then this fails.
///
/// ```no_run
/// if !std::path::Path::new("/usr/bin/cc").exists() {
///     return ocelli_tests::skip("cc", "no C compiler");
/// }
/// ```
///
/// # Panics
///
/// When `what` is required.
pub fn skip(what: &str, why: &str) {
    let required = env::var("OCELLI_REQUIRE").unwrap_or_default();
    assert!(!requires(&required, what), "{what} is required by OCELLI_REQUIRE={required}, but {why}");
    println!("\nskipped: {what}: {why}");
}

fn requires(list: &str, what: &str) -> bool {
    list.split(',').map(str::trim).any(|item| item == what || item == "all")
}

/// The root of the repository: where it was built, or what `OCELLI_ROOT` says on another machine.
pub fn root() -> PathBuf {
    if let Some(root) = env::var_os("OCELLI_ROOT") {
        return PathBuf::from(root);
    }
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests.parent().map_or(tests.clone(), PathBuf::from)
}

/// Rewrites the tables of READMEs instead of comparing them.
const UPDATE: &str = "OCELLI_UPDATE_README";

/// Compares what stands between the lines `begin` and `end` of a file of the repository with `table`; with `OCELLI_UPDATE_README` set,
/// writes it there.
///
/// # Panics
///
/// When it differs, or the file or the lines are absent.
pub fn holds_table(file: &str, begin: &str, end: &str, table: &str) {
    let path = root().join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
    let parts = text.split_once(&format!("{begin}\n"));
    let parts = parts.and_then(|(before, rest)| Some((before, rest.split_once(end)?)));
    let Some((before, (found, after))) = parts else {
        panic!("{file}: expected a line `{begin}` and later `{end}`")
    };
    if env::var_os(UPDATE).is_some() {
        let text = [before, begin, "\n", table, end, after].concat();
        return std::fs::write(&path, text).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    assert_eq!(found, table, "{file}: run this test with {UPDATE}=1 to write the table anew");
}

#[cfg(test)]
mod tests {
    use super::requires;

    #[test]
    fn required_by_name_or_all() {
        assert!(requires("cc", "cc") && requires("gpu, cc", "cc") && requires("all", "cc"));
        assert!(!requires("", "cc") && !requires("gpu", "cc") && !requires("ccc", "cc"));
    }
}
