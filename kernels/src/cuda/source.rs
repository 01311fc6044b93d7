//! CUDA sources: `.cu` files, one kernel each, and the headers that they include by their paths below `kernels/src`.

use std::collections::BTreeMap;
use std::fmt;

// `FILES`: every `.cu` and `.cuh` file below `kernels/src` with its text, listed by `build.rs`.
include!(concat!(env!("OUT_DIR"), "/cuda.rs"));

/// The name of the entry in every `.cu` file, see `cuda/include/types.cuh`.
pub const ENTRY: &str = "ocelli_kernel";

/// Values of names, as a launch gives them.
pub type Defines = BTreeMap<&'static str, String>;

/// What a kernel is compiled from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelKey {
    /// Its file below `kernels/src`.
    pub path: &'static str,
    /// Values of names.
    pub defines: Defines,
}

impl fmt::Display for KernelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path)?;
        for (name, value) in &self.defines {
            write!(f, " {name}={value}")?;
        }
        Ok(())
    }
}

/// The text of a file.
#[must_use]
pub fn file(path: &str) -> Option<(&'static str, &'static str)> {
    FILES.iter().find(|(name, _)| *name == path).copied()
}

/// A kernel's file, then every header that it includes, directly or not. A name that no file has is left to the compiler,
/// which says where it stands.
#[must_use]
pub fn closure(path: &str) -> Vec<(&'static str, &'static str)> {
    let mut all: Vec<(&str, &str)> = file(path).into_iter().collect();
    let mut next = 0;
    while next < all.len() {
        for line in all[next].1.lines() {
            let named = line.trim_start().strip_prefix("#include").map(str::trim_start);
            let named = named.and_then(|rest| rest.strip_prefix('"')).and_then(|rest| rest.split_once('"'));
            if let Some(found) = named.and_then(|(name, _)| file(name))
                && !all.contains(&found)
            {
                all.push(found);
            }
        }
        next += 1;
    }
    all
}

/// FNV-1a of 64 bits over the texts of a kernel and its headers.
#[must_use]
pub fn digest(path: &str) -> u64 {
    closure(path).iter().fold(EMPTY, |hash, (name, text)| fnv(fnv(hash, name.as_bytes()), text.as_bytes()))
}

/// FNV-1a of nothing.
pub(super) const EMPTY: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, continued.
pub(super) fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_through_headers() {
        let names: Vec<&str> = closure("cuda/include/wgmma.cuh").iter().map(|(name, _)| *name).collect();
        assert_eq!(names[0], "cuda/include/wgmma.cuh");
        for header in ["hopper", "ptx", "types"] {
            assert!(names.contains(&format!("cuda/include/{header}.cuh").as_str()), "{names:?}");
        }
        assert_ne!(digest("cuda/include/ptx.cuh"), digest("cuda/include/hopper.cuh"));
    }
}
