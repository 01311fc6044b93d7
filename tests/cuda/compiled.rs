//! Kernels that were compiled and found right: what a compiler makes of a text is always the same, so a kernel is compiled again where
//! its text, its headers, its constants or the compiler changed.
//!
//! `tests/cuda/compiled/` has a digest of each, a file for each part of an architecture. One in [`SAMPLE`] is compiled all the same, so
//! that a file that says too much is found. `OCELLI_KNOWN=none` compiles every kernel, `OCELLI_KNOWN=update` does so too and writes
//! the file of each part without a fault.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ocelli_kernels::Arch;
use ocelli_kernels::cuda::{KernelKey, nvrtc, source};

/// Of so many known kernels one is compiled again.
const SAMPLE: u64 = 16;
/// Digests in a line of a file.
const ACROSS: usize = 6;

/// What the switch asks for.
#[derive(Clone, Copy, PartialEq)]
enum Use {
    Known,
    None,
    Update,
}

/// What is known of a part of an architecture's kernels.
pub struct Compiled {
    file: PathBuf,
    how: Use,
    known: BTreeSet<u64>,
}

/// What the machine code of a kernel depends on, and what is looked for in it.
pub fn digest(key: &KernelKey, arch: Arch, compiler: (u32, u32)) -> u64 {
    let options = nvrtc::options(key, arch).join(" ");
    let text =
        format!("{}.{} {} {:016x} {options}", compiler.0, compiler.1, key.path, source::digest(key.path));
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The digests of a file; lines that begin with `#` are none.
fn read(text: &str) -> Result<BTreeSet<u64>, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let words = lines.flat_map(str::split_whitespace);
    words.map(|word| u64::from_str_radix(word, 16).map_err(|error| format!("{word}: {error}"))).collect()
}

/// A file of digests.
fn write(digests: &BTreeSet<u64>) -> String {
    let mut text = "# Kernels that were compiled and found right; see tests/cuda/compiled.rs.\n".to_owned();
    let all: Vec<String> = digests.iter().map(|digest| format!("{digest:016x}")).collect();
    all.chunks(ACROSS).for_each(|line| text = format!("{text}{}\n", line.join(" ")));
    text
}

impl Compiled {
    /// That of a part.
    pub fn of(arch: Arch, part: usize) -> Result<Self, String> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cuda/compiled");
        let file = folder.join(format!("{arch}-{part}.txt"));
        let how = match std::env::var("OCELLI_KNOWN").unwrap_or_default().as_str() {
            "" => Use::Known,
            "none" => Use::None,
            "update" => Use::Update,
            other => return Err(format!("OCELLI_KNOWN: expected none or update, found {other}")),
        };
        let text = if how == Use::Known {
            std::fs::read_to_string(&file).unwrap_or_default()
        } else {
            String::new()
        };
        Ok(Self { known: read(&text).map_err(|why| format!("{}: {why}", file.display()))?, file, how })
    }

    /// Whether a kernel of this digest is to be compiled.
    pub fn asks_for(&self, digest: u64) -> bool {
        digest.is_multiple_of(SAMPLE) || !self.known.contains(&digest)
    }

    /// Writes down that all kernels of the part are right, where that is asked for.
    pub fn keep(&self, all: &BTreeSet<u64>) -> std::io::Result<()> {
        if self.how != Use::Update {
            return Ok(());
        }
        std::fs::create_dir_all(self.file.parent().unwrap_or(&self.file))?;
        std::fs::write(&self.file, write(all))
    }
}

#[test]
fn what_is_known_is_compiled_no_more_but_for_a_sample() {
    let key = |path, value: &str| KernelKey {
        path,
        defines: source::Defines::from_iter([("ROWS", value.to_owned())]),
    };
    let (norm, rope) = ("ops/norm/norm.cu", "ops/rope/rope.cu");
    let one = digest(&key(norm, "4"), Arch::Sm80, (12, 9));
    assert_eq!(one, digest(&key(norm, "4"), Arch::Sm80, (12, 9)));
    let others = [
        digest(&key(norm, "8"), Arch::Sm80, (12, 9)),
        digest(&key(rope, "4"), Arch::Sm80, (12, 9)),
        digest(&key(norm, "4"), Arch::Sm90a, (12, 9)),
        digest(&key(norm, "4"), Arch::Sm80, (13, 0)),
    ];
    assert!(others.iter().all(|other| *other != one));

    let digests: BTreeSet<u64> = (1..40).collect();
    assert_eq!(read(&write(&digests)), Ok(digests.clone()));
    assert!(read("0123 word").is_err());
    let known = Compiled { file: PathBuf::new(), how: Use::Known, known: digests };
    let asked: Vec<u64> = (1..42).filter(|digest| known.asks_for(*digest)).collect();
    assert_eq!(asked, [16, 32, 40, 41]);
}
