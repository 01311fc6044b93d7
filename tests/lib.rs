//! Helpers shared by the tests.

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

#[cfg(test)]
mod tests {
    use super::requires;

    #[test]
    fn required_by_name_or_all() {
        assert!(requires("cc", "cc") && requires("gpu, cc", "cc") && requires("all", "cc"));
        assert!(!requires("", "cc") && !requires("gpu", "cc") && !requires("ccc", "cc"));
    }
}
