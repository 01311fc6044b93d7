//! Passes a digest of all sources to the crate: what was measured with other kernels is not used with these. Lists the WGSL
//! and CUDA files.

use std::path::{Path, PathBuf};

/// FNV-1a of 64 bits.
struct Digest(u64);

impl Digest {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// Every file below a folder.
fn files(folder: &Path, all: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { files(&path, all)? } else { all.push(path) }
    }
    Ok(())
}

/// A Rust constant that holds source files.
struct Listing(String);

impl Listing {
    fn new() -> Self {
        Self(
            "/// Every source file by its path below `kernels/src`.\npub const FILES: &[(&str, &str)] = &[\n"
                .into(),
        )
    }

    fn add(&mut self, name: &str, whole: &Path) {
        let below = name.trim_start_matches("src/");
        self.0.push_str(&format!("    ({below:?}, include_str!({whole:?})),\n"));
    }

    fn write(self, to: &Path) -> std::io::Result<()> {
        std::fs::write(to, self.0 + "];\n")
    }
}

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=src");
    let mut all = Vec::new();
    files(Path::new("src"), &mut all)?;
    all.sort();
    let mut digest = Digest(0xcbf2_9ce4_8422_2325);
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let mut wgsl = Listing::new();
    let mut cuda = Listing::new();
    for path in all {
        let name = path.to_string_lossy().replace('\\', "/");
        digest.add(name.as_bytes());
        digest.add(&std::fs::read(&path)?);
        if name.ends_with(".wgsl") {
            wgsl.add(&name, &Path::new(&root).join(&path));
        } else if name.ends_with(".cu") || name.ends_with(".cuh") {
            cuda.add(&name, &Path::new(&root).join(&path));
        }
    }
    let out = std::env::var("OUT_DIR").unwrap_or_default();
    wgsl.write(&Path::new(&out).join("wgsl.rs"))?;
    cuda.write(&Path::new(&out).join("cuda.rs"))?;
    println!("cargo:rustc-env=OCELLI_KERNELS_DIGEST={:016x}", digest.0);
    Ok(())
}
