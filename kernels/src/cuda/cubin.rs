//! Machine code of kernels: compiled when it is asked for, kept on disk.
//!
//! A file holds a line with everything that the code depends on, then the code. Its name is a digest of that line without the
//! compiler's version, which makes folders that were compiled ahead usable where there is no compiler. Within the cache,
//! versions have folders of their own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::nvrtc::{self, Nvrtc};
use super::source::{self, EMPTY, KernelKey, fnv};
use crate::spec::{Arch, KernelError};

/// First word of the line; another one when the form of files changes.
const MAGIC: &str = "ocelli-cubin-1";

/// Compiles kernels and keeps their code.
pub struct Cubins {
    nvrtc: OnceLock<Result<Nvrtc, String>>,
    /// A folder that was compiled ahead.
    ahead: Option<PathBuf>,
    /// Where code is kept; nowhere if absent.
    cache: Option<PathBuf>,
}

/// Where code came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A folder that was compiled ahead.
    Ahead,
    /// The cache.
    Cache,
    /// The compiler.
    Compiled,
}

/// What code depends on, beside the compiler.
fn identity(key: &KernelKey, arch: Arch) -> String {
    format!("{} {:016x} {}", key.path, source::digest(key.path), nvrtc::options(key, arch).join(" "))
}

/// Name of the file for a kernel.
fn file_name(key: &KernelKey, identity: &str) -> String {
    let stem = key.path.trim_end_matches(".cu").trim_start_matches("ops/").replace('/', "-");
    format!("{stem}-{:016x}.cubin", fnv(EMPTY, identity.as_bytes()))
}

impl Cubins {
    /// Code from a folder that was compiled ahead, then from a cache, then from the compiler.
    #[must_use]
    pub fn new(ahead: Option<PathBuf>, cache: Option<&Path>) -> Self {
        Self { nvrtc: OnceLock::new(), ahead, cache: cache.map(|cache| cache.join("cuda")) }
    }

    /// As [`new`](Self::new), with the folder that `OCELLI_CUBINS` names.
    #[must_use]
    pub fn from_env(cache: Option<&Path>) -> Self {
        let ahead = std::env::var_os("OCELLI_CUBINS").filter(|value| !value.is_empty()).map(PathBuf::from);
        Self::new(ahead, cache)
    }

    /// The compiler, or why there is none.
    pub fn nvrtc(&self) -> Result<&Nvrtc, KernelError> {
        self.nvrtc.get_or_init(Nvrtc::find).as_ref().map_err(|what| KernelError::Device(what.clone()))
    }

    /// Machine code of a kernel.
    pub fn get(&self, key: &KernelKey, arch: Arch) -> Result<(Vec<u8>, Origin), KernelError> {
        let identity = identity(key, arch);
        let name = file_name(key, &identity);
        if let Some(ahead) = &self.ahead
            && let Some(code) = read(&ahead.join(&name), &identity)
        {
            return Ok((code, Origin::Ahead));
        }
        let nvrtc = self.nvrtc();
        if let Some(cache) = &self.cache {
            let folders = match &nvrtc {
                Ok(nvrtc) => vec![cache.join(folder(nvrtc))],
                // Without a compiler, whatever version made the code.
                Err(_) => {
                    std::fs::read_dir(cache).into_iter().flatten().flatten().map(|e| e.path()).collect()
                }
            };
            if let Some(code) = folders.iter().find_map(|folder| read(&folder.join(&name), &identity)) {
                return Ok((code, Origin::Cache));
            }
        }
        let nvrtc = nvrtc.map_err(|error| match error {
            KernelError::Device(what) => KernelError::Compile { kernel: format!("{key} for {arch}"), what },
            other => other,
        })?;
        let code = nvrtc.compile(key, arch)?.code;
        if let Some(cache) = &self.cache
            && let Err(error) = write(&cache.join(folder(nvrtc)), &name, &identity, &code)
        {
            tracing::warn!("{}: a kernel's code could not be kept: {error}", cache.display());
        }
        Ok((code, Origin::Compiled))
    }

    /// Puts a kernel's code into a folder, for use as one that was compiled ahead.
    pub fn keep(key: &KernelKey, arch: Arch, code: &[u8], folder: &Path) -> Result<PathBuf, KernelError> {
        let identity = identity(key, arch);
        let name = file_name(key, &identity);
        write(folder, &name, &identity, code)
            .map_err(|error| KernelError::Device(format!("{}: {error}", folder.join(&name).display())))?;
        Ok(folder.join(name))
    }

    /// Compiles a kernel into a folder, for use as one that was compiled ahead.
    pub fn compile_to(&self, key: &KernelKey, arch: Arch, folder: &Path) -> Result<PathBuf, KernelError> {
        Self::keep(key, arch, &self.get(key, arch)?.0, folder)
    }
}

/// The folder of a compiler's version.
fn folder(nvrtc: &Nvrtc) -> String {
    format!("nvrtc-{}.{}", nvrtc.version.0, nvrtc.version.1)
}

/// The code in a file, if it is there and was made from these very sources.
fn read(path: &Path, identity: &str) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let head = format!("{MAGIC} {identity}\n");
    bytes.strip_prefix(head.as_bytes()).filter(|code| code.starts_with(b"\x7fELF")).map(<[u8]>::to_vec)
}

/// Writes a file whole or not at all.
fn write(folder: &Path, name: &str, identity: &str, code: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let part = folder.join(format!("{name}.{}.{:?}.part", std::process::id(), std::thread::current().id()));
    let mut file = std::fs::File::create(&part)?;
    let written = file
        .write_all(format!("{MAGIC} {identity}\n").as_bytes())
        .and_then(|()| file.write_all(code))
        .and_then(|()| std::fs::rename(&part, folder.join(name)));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}
