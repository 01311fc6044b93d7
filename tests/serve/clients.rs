//! OpenAI's own clients and a browser, where `tests/clients.sh` could fetch what they need.

use std::process::Command;

use ocelli_tests::{root, skip};

use crate::http::{Server, example};

/// Runs a client's script, which prints what it checked and ends with `ok`.
fn run(variable: &str, what: &str, command: impl FnOnce(&str) -> Command) {
    let Some(place) = std::env::var(variable).ok().filter(|place| !place.is_empty()) else {
        return skip(what, "tests/clients.sh fetches it");
    };
    let folder = std::env::temp_dir().join(format!("ocelli-{what}-{}", std::process::id()));
    let server = Server::start(&["--api-key", "secret", "--files-dir", folder.to_str().expect("UTF-8")]);
    let mut command = command(&place);
    let output = command
        .args([format!("http://{}/v1", server.address), "secret".into()])
        .arg(example("01.png"))
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let _ = std::fs::remove_dir_all(folder);
    assert!(output.status.success() && out.ends_with("ok\n"), "{out}\n{err}");
}

#[test]
fn python() {
    run("OCELLI_OPENAI_PYTHON", "openai-python", |python| {
        let mut command = Command::new(python);
        command.arg(root().join("tests/serve/client.py"));
        command
    });
}

#[test]
fn javascript() {
    run("OCELLI_OPENAI_NODE", "openai-javascript", |modules| {
        let mut command = Command::new("node");
        command.arg(root().join("tests/serve/client.cjs")).env("NODE_PATH", modules);
        command
    });
}

/// The browser, by the names that it has.
fn chromium() -> Option<String> {
    let there =
        |name: &&&str| Command::new(**name).arg("--version").output().is_ok_and(|out| out.status.success());
    ["chromium", "chromium-browser", "google-chrome"].iter().find(there).map(|&name| {
        let which = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().expect("sh");
        String::from_utf8_lossy(&which.stdout).trim().to_owned()
    })
}

/// Runs a script with a browser and more arguments; it ends with `ok`.
pub fn browse(script: &str, more: &[&std::ffi::OsStr]) {
    let modules = std::env::var("OCELLI_PUPPETEER").unwrap_or_default();
    let Some(chromium) = chromium().filter(|_| !modules.is_empty()) else {
        return skip("chromium", "there is none, or no puppeteer-core, which tests/clients.sh fetches");
    };
    let own = std::env::current_exe().expect("the path of this test");
    let logs = own.ancestors().nth(3).expect("target").join("test-logs");
    std::fs::create_dir_all(&logs).expect("a folder for pictures of the page");
    let mut command = Command::new("node");
    command
        .arg(root().join("tests/serve").join(script))
        .arg(chromium)
        .arg(&logs)
        .args(more)
        .env("NODE_PATH", modules);
    let output = command.output().expect("node");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.ends_with("ok\n"), "{out}\n{err}");
}

#[test]
fn browser() {
    let server = Server::start(&[]);
    browse("page.cjs", &[format!("http://{}/", server.address).as_ref(), example("01.png").as_os_str()]);
}
