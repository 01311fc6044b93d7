//! The command as tests run it: the binary that lies beside the test's own (`tests/run.sh` builds it first).

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::root;

/// A folder for one test, removed when dropped.
pub struct Temp(pub PathBuf);

impl Temp {
    /// A folder that nobody else has.
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("ocelli-cli-{}-{id}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder for temporary files");
        Self(dir)
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file; gives its path.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), bytes).expect("a temporary file");
        self.path(name)
    }

    /// A copy of the files of a folder.
    pub fn copy_of(from: &Path) -> Self {
        let to = Self::new();
        for entry in std::fs::read_dir(from).expect("a folder to copy") {
            let entry = entry.expect("an entry of the folder");
            if entry.path().is_file() {
                std::fs::copy(entry.path(), to.0.join(entry.file_name())).expect("a copy");
            }
        }
        to
    }

    /// Changes a JSON file.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = json(&std::fs::read_to_string(self.path(name)).expect("a JSON file"));
        change(&mut value);
        self.write(name, value.to_string());
    }
}

impl Default for Temp {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl AsRef<OsStr> for Temp {
    fn as_ref(&self) -> &OsStr {
        self.0.as_ref()
    }
}

/// The demo model.
pub fn demo() -> PathBuf {
    root().join("models/demo/model")
}

/// A picture of the demo model's examples.
pub fn example(name: &str) -> PathBuf {
    root().join("models/demo/examples").join(name)
}

/// The checkpoint of a family with its references.
pub fn golden(family: &str) -> PathBuf {
    root().join("tests/golden").join(family)
}

/// Text as JSON.
pub fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The command with these arguments; nothing on its stdin, no network, backtraces asked for so that one would show.
pub fn command<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let own = std::env::current_exe().expect("the path of this test");
    let binary = own.parent().and_then(Path::parent).expect("target/release").join("ocelli");
    assert!(binary.is_file(), "{} is absent: cargo build --release --workspace --bins", binary.display());
    let mut command = Command::new(binary);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
        .env("HF_HUB_OFFLINE", "1")
        .env("RUST_BACKTRACE", "1")
        .env_remove("RUST_LOG")
        .env_remove("HF_ENDPOINT");
    command.env("HF_HOME", std::env::temp_dir().join("ocelli-cli-no-cache"));
    // Choices that were measured on this machine are for its user, not for tests.
    command.env("OCELLI_CACHE", std::env::temp_dir().join("ocelli-cli-no-cache"));
    command
}

/// How a command ended.
#[derive(Debug)]
pub struct Done {
    /// Its exit code.
    pub code: Option<i32>,
    /// All of it.
    pub stdout: String,
    /// Without the notes.
    pub stderr: String,
    /// Lines on stderr that begin with `note: `, without that.
    pub notes: Vec<String>,
}

/// Waits for the end of a command.
pub fn ended(child: Child) -> Done {
    let output = child.wait_with_output().expect("the command's output");
    let (mut stderr, mut notes) = (String::new(), Vec::new());
    for line in String::from_utf8(output.stderr).expect("UTF-8 on stderr").split_inclusive('\n') {
        match line.strip_prefix("note: ") {
            Some(note) => notes.push(note.trim_end().to_owned()),
            None => stderr.push_str(line),
        }
    }
    let stdout = String::from_utf8(output.stdout).expect("UTF-8 on stdout");
    Done { code: output.status.code(), stdout, stderr, notes }
}

/// Runs the command.
pub fn ocelli<S: AsRef<OsStr>>(args: &[S]) -> Done {
    ended(command(args).spawn().expect("the command starts"))
}

/// Runs the command with something on its stdin.
pub fn with_stdin<S: AsRef<OsStr>>(args: &[S], input: &[u8]) -> Done {
    let mut child = command(args).stdin(Stdio::piped()).spawn().expect("the command starts");
    // A command that does not read its stdin may have closed it.
    let _ = child.stdin.take().expect("a pipe").write_all(input);
    ended(child)
}

impl Done {
    /// Exit code 0 and nothing on stderr but notes; gives stdout.
    #[track_caller]
    pub fn well(self) -> String {
        assert_eq!((self.code, &*self.stderr), (Some(0), ""), "stdout: {}", self.stdout);
        self.stdout
    }

    /// As [`well`](Self::well), with one JSON object on one line and no notes.
    #[track_caller]
    pub fn json(self) -> Value {
        assert_eq!(self.notes, Vec::<String>::new());
        let text = self.well();
        assert_eq!(text.lines().count(), 1, "{text}");
        json(&text)
    }

    /// This exit code, one error line that contains all of `parts`, at most one hint, nothing else.
    #[track_caller]
    pub fn fails(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.stdout, "", "{self:?}");
        self.fails_after_output(code, parts);
    }

    /// As [`fails`](Self::fails), but stdout may have something.
    #[track_caller]
    pub fn fails_after_output(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let lines: Vec<&str> = self.stderr.lines().collect();
        let (error, hint) = match lines[..] {
            [error] => (error, None),
            [error, hint] => (error, Some(hint)),
            _ => panic!("expected one error line and at most one hint: {self:?}"),
        };
        assert!(error.starts_with("error: ") && !error.starts_with("error: internal"), "{self:?}");
        assert!(hint.is_none_or(|hint| hint.starts_with("hint: ") && hint.len() > 10), "{self:?}");
        for part in parts {
            assert!(error.contains(part), "no `{part}` in: {self:?}");
        }
    }
}

/// Reads until `count` bytes came or the end.
pub fn read_some(from: &mut impl Read, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.take(count as u64).read_to_end(&mut bytes).expect("a readable pipe");
    bytes
}
