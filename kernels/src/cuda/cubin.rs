//! Machine code of kernels: compiled when it is asked for, kept on disk.
//!
//! A file holds a line with everything that the code depends on, then the code. Its name is a digest of that line without the
//! compiler's version, which makes folders that were compiled ahead usable where there is no compiler. Within the cache,
//! versions have folders of their own.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::nvrtc::{self, Nvrtc};
use super::source::{self, EMPTY, KernelKey, fnv};
use crate::spec::{Arch, KernelError};

/// The variable that names a file to which a line is appended for each kernel whose code was had: where it came from, and the kernel.
const LOG: &str = "OCELLI_KERNEL_LOG";

/// First word of the line; another one when the form of files changes.
const MAGIC: &str = "ocelli-cubin-1";

/// Compiles kernels and keeps their code.
pub struct Cubins {
    nvrtc: OnceLock<Result<Nvrtc, String>>,
    /// The latest major version of CUDA that the driver knows.
    driver: Option<u32>,
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

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ahead => "ahead",
            Self::Cache => "cache",
            Self::Compiled => "compiled",
        })
    }
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
        Self { nvrtc: OnceLock::new(), driver: None, ahead, cache: cache.map(|cache| cache.join("cuda")) }
    }

    /// The same for a driver that knows CUDA up to this major version, by a compiler that is no newer where there is one.
    #[must_use]
    pub(super) fn for_driver(self, major: u32) -> Self {
        Self { driver: Some(major), ..self }
    }

    /// As [`new`](Self::new), with the folder that `OCELLI_CUBINS` names.
    #[must_use]
    pub fn from_env(cache: Option<&Path>) -> Self {
        let ahead = std::env::var_os("OCELLI_CUBINS").filter(|value| !value.is_empty()).map(PathBuf::from);
        Self::new(ahead, cache)
    }

    /// The compiler, or why there is none.
    pub fn nvrtc(&self) -> Result<&Nvrtc, KernelError> {
        let find = || Nvrtc::find_for(self.driver);
        self.nvrtc.get_or_init(find).as_ref().map_err(|what| KernelError::Device(what.clone()))
    }

    /// Machine code of a kernel.
    pub fn get(&self, key: &KernelKey, arch: Arch) -> Result<(Vec<u8>, Origin), KernelError> {
        let had = self.find(key, arch)?;
        log(key, arch, had.1);
        Ok(had)
    }

    fn find(&self, key: &KernelKey, arch: Arch) -> Result<(Vec<u8>, Origin), KernelError> {
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

    /// Where the code of a kernel was had, for the error of a driver that does not take it.
    pub(super) fn maker(&self, key: &KernelKey, arch: Arch) -> String {
        let identity = identity(key, arch);
        let ahead = self.ahead.as_ref().map(|folder| folder.join(file_name(key, &identity)));
        if let Some(path) = ahead.filter(|path| read(path, &identity).is_some()) {
            return format!("its code was compiled ahead, {}", path.display());
        }
        match self.nvrtc.get() {
            Some(Ok(Nvrtc { version: (major, minor), path, .. })) => format!(
                "its code is that of NVRTC {major}.{minor} at {}; OCELLI_NVRTC names another",
                path.display()
            ),
            _ => "its code is from the cache".to_owned(),
        }
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

    /// The same for many kernels, on all cores; gives the bytes of their files. It ends at the first error.
    pub fn compile_all(
        &self,
        keys: &BTreeSet<KernelKey>,
        arch: Arch,
        folder: &Path,
    ) -> Result<u64, KernelError> {
        let (keys, next) = (keys.iter().collect::<Vec<_>>(), AtomicUsize::new(0));
        let results = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some(key) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let result = self.compile_to(key, arch, folder);
                        let failed = result.is_err();
                        results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                        if failed {
                            next.store(keys.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let mut bytes = 0;
        for path in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
            bytes += std::fs::metadata(path?).map_or(0, |file| file.len());
        }
        Ok(bytes)
    }
}

/// Appends where a kernel's code came from to the file that [`LOG`] names. A line that cannot be written is not worth an error.
fn log(key: &KernelKey, arch: Arch, origin: Origin) {
    let Some(path) = std::env::var_os(LOG).filter(|path| !path.is_empty()) else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    // One write a line, so that lines of processes that run at once stay whole.
    let _ = file.and_then(|mut file| file.write_all(format!("{origin} {arch} {key}\n").as_bytes()));
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
