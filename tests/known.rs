//! What was run whole as it is now: a backend's kernels of an op and all that drives them. Of those the software drivers and the emulator
//! run a share of the cases.
//!
//! `known.txt` of a backend's folder has a digest of each op's sources. `OCELLI_KNOWN=none` runs every case; after all of them passed,
//! `OCELLI_KNOWN=update` and the test `sources_are_written_down` write the file anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ocelli_kernels::OP_NAMES;

/// Of so many pairs of neighbouring cases one is run.
const SHARE: usize = 4;
/// What asks for other things than the file's, see the module.
const KNOWN: &str = "OCELLI_KNOWN";

/// A backend, as its folder below `kernels/src` and in `tests` is called.
#[derive(Clone, Copy)]
pub struct Backend(pub &'static str);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Files below a folder, by their paths from `base`.
fn files(base: &Path, folder: &Path, all: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(base, &path, all);
        } else {
            let name = path.strip_prefix(base).unwrap().to_string_lossy().replace('\\', "/");
            all.insert(name, std::fs::read(&path).unwrap());
        }
    }
}

impl Backend {
    /// Whether results of an op depend on a file below `kernels/src`, as far as this goes: shared device code counts for every op, host
    /// code for those that it is of.
    fn counts(self, path: &str, op: &str) -> bool {
        let (ending, other) = match self.0 {
            "wgpu" => (&["wgsl"][..], "cuda"),
            _ => (&["cu", "cuh"][..], "wgpu"),
        };
        if path == "cuda/nvrtc.rs" {
            // The emulator has a compiler of its own; what this one makes is looked at by itself.
            return false;
        }
        let (stem, kind) = path.rsplit_once('.').unwrap_or((path, ""));
        if kind != "rs" {
            return ending.contains(&kind);
        }
        let foreign = |word: &str| word == "cpu" || word == "grad" || word == other;
        let of = [self.0, "quant", "spec", "conformance"];
        !stem.split('/').any(foreign)
            && (of.iter().any(|folder| path.starts_with(&format!("{folder}/")))
                || path.starts_with(&format!("ops/{op}/")))
    }

    /// A digest of all that counts.
    fn digest(self, op: &str, sources: &BTreeMap<String, Vec<u8>>) -> u64 {
        let counts = sources.iter().filter(|(path, _)| path.starts_with("../") || self.counts(path, op));
        counts.fold(0xcbf2_9ce4_8422_2325, |hash, (path, bytes)| {
            path.bytes()
                .chain(bytes.iter().copied())
                .fold(hash, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
        })
    }

    fn sources(self) -> BTreeMap<String, Vec<u8>> {
        let (base, mut all) = (root().join("kernels/src"), BTreeMap::new());
        files(&base, &base, &mut all);
        if self.0 == "cuda" {
            let (mut emulator, folder) = (BTreeMap::new(), root().join("tests/emulator"));
            files(&folder, &folder, &mut emulator);
            all.extend(emulator.into_iter().map(|(path, bytes)| (format!("../{path}"), bytes)));
        }
        all
    }

    fn file(self) -> PathBuf {
        root().join("tests").join(self.0).join("known.txt")
    }

    /// One of how many pairs of cases of an op is to be run.
    pub fn every(self, op: &str) -> usize {
        if std::env::var_os(KNOWN).is_some() {
            return 1;
        }
        let line = format!("{op} {:016x}", self.digest(op, &self.sources()));
        let text = std::fs::read_to_string(self.file()).unwrap_or_default();
        let known = text.lines().any(|known| known == line);
        if known {
            println!("{op}: as it was when all cases passed: a share of 1/{SHARE} of them");
        }
        if known { SHARE } else { 1 }
    }

    /// Writes the file, where that is asked for.
    pub fn write(self) {
        if std::env::var(KNOWN).is_ok_and(|how| how == "update") {
            let sources = self.sources();
            let line = |op: &&str| format!("{op} {:016x}\n", self.digest(op, &sources));
            std::fs::write(self.file(), OP_NAMES.iter().map(line).collect::<String>()).unwrap();
        }
    }
}

#[test]
fn a_digest_is_of_what_counts() {
    let (cuda, wgpu) = (Backend("cuda"), Backend("wgpu"));
    for (path, of_cuda, of_wgpu) in [
        ("ops/norm/rows.cu", true, false),
        ("ops/rope/angle.cuh", true, false),
        ("ops/norm/rows.wgsl", false, true),
        ("ops/norm/cuda.rs", true, false),
        ("ops/norm/wgpu/mod.rs", false, true),
        ("ops/norm/cpu.rs", false, false),
        ("ops/norm/cases.rs", true, true),
        ("ops/rope/cases.rs", false, false),
        ("ops/norm/grad/mod.rs", false, false),
        ("cuda/launch.rs", true, false),
        ("cuda/nvrtc.rs", false, false),
        ("wgpu/launch.rs", false, true),
        ("cpu/gemm/mod.rs", false, false),
        ("quant/grouped/cpu.rs", false, false),
        ("quant/table.rs", true, true),
        ("spec/text.rs", true, true),
    ] {
        assert_eq!((cuda.counts(path, "norm"), wgpu.counts(path, "norm")), (of_cuda, of_wgpu), "{path}");
    }
    let mut sources = cuda.sources();
    let (norm, rope) = (cuda.digest("norm", &sources), cuda.digest("rope", &sources));
    sources.get_mut("ops/norm/cuda.rs").unwrap().push(b'\n');
    assert!(norm != cuda.digest("norm", &sources) && rope == cuda.digest("rope", &sources));
    sources.get_mut("../machine.h").unwrap().push(b'\n');
    assert_ne!(rope, cuda.digest("rope", &sources));
}
